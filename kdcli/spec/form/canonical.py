"""Canonical form: a spec's nodes rearranged into the shape of schema.Spec, spans kept.

What United-Perception writes in several ways is written in one afterwards: teachers are collected,
a network is a list, jobs are a mapping, a job's `cfgs` are sorted, what train and test share stands
in both. Keys that are given nothing are not given.
"""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches

from kdcli.errors import Diagnostic, Findings, Span, did_you_mean, nearest
from kdcli.spec import schema
from kdcli.spec.form.mixing import canonical_mixing
from kdcli.spec.form.shared_data import SHARED_DATA, canonical_probe, with_held_out_test, with_shared
from kdcli.spec.form.up_keys import canonical_ema, overrides_without_effect, without_foreign_keys
from kdcli.spec.ranges import check_finite
from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar, Sequence, kind
from kdcli.spec.text.source import repeated_key

TOP_KEYS = ("runtime", "net", "mimic", "dataset", "trainer", "ema", "saver", "hooks", "sweep")
MIMIC_KEYS = ("mimic_as_jobs", "stages", "task_loss")
JOB_KEYS = tuple(k for k in schema.Job.model_fields if k not in ("losses", "options", "teachers"))
MOST_TEACHERS = 50
"""So many names of teachers a misspelt key is compared with."""
BELOW = {
    key: block
    for block, model in (
        ("dataset.train", schema.DataPart),
        ("saver", schema.Saver),
        ("runtime", schema.Runtime),
    )
    for key in model.model_fields
} | dict.fromkeys(schema.Trainer.model_fields, "trainer")
"""Keys of the language one level down, each with the block that it belongs to."""
# Arguments of a cosine that are called like a warm-up.
SHIFTS = ("warmup_iter",)
# Keys of `kwargs` that United-Perception's own specs carry and that change nothing here.
KWARG_LEFTOVERS = {
    "BboxFC_Pre": ("with_drp",),
    "BboxRes5_Pre": ("with_drp",),
    "base_cls_head": ("representation_size",),
    "vit_head": ("use_pool", "dropout"),
    "mobilenetv3": ("dropout",),
    r"efficientnet_b\d": ("checkpoint",),
    r"resnet(?:\d+|_custom)_D": ("layer_deform", "checkpoint", "fa"),
    r"convnext_(?!head)\w+": ("num_classes", "in_22k"),
    r"swin_\w+": ("use_checkpoint",),
    r"CSWin_\w+": ("patch_size", "num_classes", "use_chk", "hybrid_backbone"),
    r"(?:vit|deit)_\w+_patch\w+": ("patch_stride", "num_classes"),
}
# Keys under `cfgs` that United-Perception's own specs carry and that change nothing, there or here, and what to do.
OPTION_LEFTOVERS = {
    "DeFeat": dict.fromkeys(
        (
            "rcnn_fpn_levels",
            "rcnn_fpn_strides",
            "rcnn_fpn_base_scale",
            "teacher_proposal",
            "head_fg_loss",
            "head_bg_loss",
        ),
        "delete it",
    ),
    "FRS": {"rpn_loss": "its loss of scores is `pred_loss`, now with its defaults"},
}


def canonical(root: Mapping) -> tuple[Mapping, list[Diagnostic]]:
    """The canonical tree, with errors and warnings found on the way."""
    maker = _Maker()
    return maker.spec(root), [*check_finite(root), *maker.found]


def without_nothing(node: Node) -> Node:
    """The node without keys that have no value; elements of lists stay."""
    if isinstance(node, Scalar):
        return node
    if isinstance(node, Sequence):
        return replace(node, items=tuple(without_nothing(item) for item in node.items))
    return replace(
        node,
        entries=tuple(
            replace(e, value=without_nothing(e.value))
            for e in node.entries
            if not (isinstance(e.value, Scalar) and e.value.value is None)
        ),
    )


def network(node: Node) -> Node:
    """A network as a list of modules; one mapping is a whole model called `model`."""
    if isinstance(node, Mapping):
        if node.find("name") is None and node.entries:
            node = node.with_entry(_text_entry("name", "model", node.entries[0].key_span))
        node = Sequence(items=(node,), span=node.span)
    if not isinstance(node, Sequence):
        return node
    return replace(node, items=tuple(_module(item) for item in node.items))


def _module(node: Node) -> Node:
    if not isinstance(node, Mapping) or node.find("name") is not None:
        return node
    kind_of = node.get("type")
    if isinstance(kind_of, Scalar) and kind_of.value == "self":
        return node.with_entry(_text_entry("name", "self", kind_of.span))
    return node


def _text_entry(key: str, value: str, span: Span) -> Entry:
    return Entry(key=key, key_span=span, value=Scalar(value=value, span=span, text=value))


class _Maker(Findings):
    # the top level

    used: frozenset[str] = frozenset()
    labelled: bool = True

    def spec(self, root: Mapping) -> Mapping:
        self.used = root.used
        self.labelled = _is_labelled(root)
        self._repeated(root)
        root = without_foreign_keys(root, self)
        entries: list[Entry] = []
        teachers: list[Entry] = []
        has_mimic = False
        teacher_names = [key for key in root.keys() if key.startswith("teacher")][:MOST_TEACHERS]
        named = [*TOP_KEYS, *teacher_names, "teacher0"]
        for entry in root.entries:
            value = without_nothing(entry.value)
            if isinstance(value, Scalar) and value.value is None and entry.key in TOP_KEYS:
                continue
            number = isinstance(entry.value, Scalar) and entry.value.anchor is not None
            if number and entry.key not in TOP_KEYS:
                self._block(entry, named)
            elif entry.key.startswith("teacher"):
                if not (isinstance(value, Scalar) and value.value is None):
                    teachers.append(replace(entry, value=self._network(value)))
            elif entry.key in TOP_KEYS:
                has_mimic = has_mimic or entry.key == "mimic"
                entries.append(replace(entry, value=self._top(entry, value)))
            else:
                self._block(entry, named)
        if teachers:
            key_span = teachers[0].key_span
            mapping = Mapping(entries=tuple(teachers), span=key_span)
            entries.append(Entry(key="teachers", key_span=key_span, value=mapping))
        spec = canonical_ema(replace(root, entries=tuple(entries)), self)
        return self._runner(spec, has_mimic)

    def _top(self, entry: Entry, value: Node) -> Node:
        if entry.key == "net":
            return self._network(value)
        if entry.key == "mimic" and isinstance(value, Mapping):
            made = canonical_mimic(value, entry, self)
            return made if self.labelled else without_task_loss(made)
        if entry.key == "dataset" and isinstance(value, Mapping):
            return self._dataset(value)
        if entry.key == "trainer" and isinstance(value, Mapping):
            return self._trainer(value)
        if entry.key == "hooks" and isinstance(value, Mapping):
            return Sequence(items=(value,), span=value.span)
        return value

    def _block(self, entry: Entry, known: list[str]) -> None:
        """Handle a top-level key outside the language: a building block, or a misspelt key. known: the other names."""
        if entry.key.startswith("x-"):
            return
        meant = nearest(entry.key, (*TOP_KEYS, "teacher", "teacher0"), most=1)
        if entry.value.anchor is not None:
            if entry.key in BELOW and entry.value.anchor not in self.used:
                block = BELOW[entry.key]
                message = f"nothing uses the block `{entry.key}`, which is called like a key under `{block}`"
                help = f"move it there if it is meant, else use it as `*{entry.value.anchor}`, or delete it"
                self.warn("KD642", message, entry.key_span, help)
                return
            meant = get_close_matches(entry.key, TOP_KEYS, n=1, cutoff=0.82)
            if meant and isinstance(entry.value, (Mapping, Sequence)):
                message = f"`{entry.key}` is taken for a building block, since it has an anchor"
                self.warn("KD613", message, entry.key_span, f"if you mean `{meant[0]}`, write so")
            return
        if (
            isinstance(entry.value, Mapping)
            and entry.value.find("type") is not None
            and set(entry.value.keys()) <= {"type", "kwargs"}
            and not meant
        ):
            help = "give it an anchor (`&name`) and use it as `*name`, or delete it"
            self.warn("KD601", f"nothing uses the building block `{entry.key}`", entry.key_span, help)
            return
        close = did_you_mean(entry.key, known) if meant else None
        help = close or "own blocks carry an anchor (`key: &name ...`) or a name that starts with `x-`"
        self.error("KD201", f"unknown top-level key `{entry.key}`", entry.key_span, help)

    def _repeated(self, root: Mapping) -> None:
        for entry in root.repeated:
            first = root.find(entry.key)
            assert first is not None
            blocks = entry.value.anchor is not None and first.value.anchor is not None
            of_language = entry.key in TOP_KEYS or entry.key.startswith("teacher")
            if blocks and not of_language:
                # Both stay reachable by their anchors: United-Perception's specs do this.
                message = f"two building blocks are called `{entry.key}`"
                self.warn("KD604", message, entry.key_span, "each is found by its anchor; rename one")
            else:
                self.found.append(repeated_key(entry, first))

    def _runner(self, spec: Mapping, has_mimic: bool) -> Mapping:
        runtime = spec.get("runtime")
        if runtime is not None and not isinstance(runtime, Mapping):
            return spec
        if runtime is not None and runtime.find("runner") is not None:
            return spec
        if has_mimic:
            mimic = spec.find("mimic")
            assert mimic is not None
            message = "`mimic` is given, but `runtime.runner.type` does not say `kd`"
            help = "add `runtime: {runner: {type: kd}}`, or `type: base` to train without distilling"
            self.error("KD211", message, mimic.key_span, help)
            return spec
        span = spec.span
        base = Mapping(entries=(_text_entry("type", "base", span),), span=span)
        runner = Entry(key="runner", key_span=span, value=base)
        if runtime is None:
            made = Mapping(entries=(runner,), span=span)
            return spec.with_entry(Entry(key="runtime", key_span=span, value=made))
        entry = spec.find("runtime")
        assert entry is not None
        return spec.with_entry(replace(entry, value=runtime.with_entry(runner)))

    def _network(self, node: Node) -> Node:
        node = network(node)
        if not isinstance(node, Sequence):
            return node
        items = []
        for item in node.items:
            type_of = item.get("type") if isinstance(item, Mapping) else None
            name = str(type_of.value) if isinstance(type_of, Scalar) else ""
            items.append(self._leftovers(item, name) if isinstance(item, Mapping) else item)
        return replace(node, items=tuple(self._single(items)))

    def _single(self, items: list[Node]) -> list[Node]:
        """Keep the last of modules with the same name and type, in the first one's place, as United-Perception does."""
        places: dict[tuple[object, object], int] = {}
        kept: list[Node] = []
        for item in items:
            name, kind_of = (item.get(key) if isinstance(item, Mapping) else None for key in ("name", "type"))
            if isinstance(name, Scalar) and isinstance(kind_of, Scalar) and kind_of.value != "self":
                first = places.setdefault((name.value, kind_of.value), len(kept))
                if first < len(kept):
                    message = f"a second `{name.text}` of the same type replaces the first one"
                    self.warn("KD615", message, name.span, "delete one of them")
                    kept[first] = item
                    continue
            kept.append(item)
        return kept

    def _leftovers(self, component: Mapping, name: str) -> Mapping:
        """The component without kwargs that do nothing here."""
        entry = component.find("kwargs")
        leftovers = [
            key for kind, keys in KWARG_LEFTOVERS.items() if re.fullmatch(kind, name) for key in keys
        ]
        if entry is None or not isinstance(entry.value, Mapping) or not leftovers:
            return component
        for key in leftovers:
            leftover = entry.value.find(key)
            if leftover is not None:
                self.warn("KD614", f"`{key}` has no effect in kdcli", leftover.key_span, "delete the line")
        left = entry.value.without(*leftovers)
        return component.with_entry(replace(entry, value=left))

    # data and training

    def _dataset(self, dataset: Mapping) -> Mapping:
        shared = [e for e in dataset.entries if e.key in SHARED_DATA]
        made = dataset.without(*SHARED_DATA)
        for side in ("train", "test"):
            part = made.find(side)
            if part is None or not isinstance(part.value, Mapping):
                continue
            value = with_shared(part.value, shared)
            made = made.with_entry(replace(part, value=canonical_mixing(value, self)))
        self.found += overrides_without_effect(dataset, shared)
        made = with_held_out_test(made)
        probe = made.find("probe")
        if probe is not None and isinstance(probe.value, Mapping):
            made = made.with_entry(
                replace(probe, value=canonical_probe(probe.value, shared, made.get("test")))
            )
        return made

    def _trainer(self, trainer: Mapping) -> Mapping:
        """Move warm-up keys from the scheduler's kwargs to where they belong.

        The `warmup_iter` among the kwargs of a cosine is no warm-up: it shifts the cosine.
        """
        entry = trainer.find("lr_scheduler")
        if entry is None or not isinstance(entry.value, Mapping):
            return trainer
        scheduler = entry.value
        kwargs = scheduler.find("kwargs")
        if kwargs is None or not isinstance(kwargs.value, Mapping):
            return trainer
        kind_of = scheduler.get("type")
        kept = SHIFTS if isinstance(kind_of, Scalar) and kind_of.value == "CosineAnnealingLR" else ()
        slipped = [e for e in kwargs.value.entries if e.key.startswith("warmup_") and e.key not in kept]
        for moved in slipped:
            outer = scheduler.find(moved.key)
            same = (
                outer is not None
                and isinstance(outer.value, Scalar)
                and isinstance(moved.value, Scalar)
                and outer.value.value == moved.value.value
            )
            if outer is None or same:
                message = f"`{moved.key}` belongs beside `kwargs`, not into it"
                self.warn("KD603", message, moved.key_span, "it is read as if it stood there")
                scheduler = scheduler.with_entry(outer or moved)
            else:
                message = f"`{moved.key}` is given twice, with different values"
                help = f"delete this one; the other is in line {outer.key_span.line}"
                self.error("KD217", message, moved.key_span, help)
            kwargs = replace(kwargs, value=kwargs.value.without(moved.key))
            scheduler = scheduler.with_entry(kwargs)
        return trainer.with_entry(replace(entry, value=scheduler))


def _is_labelled(root: Mapping) -> bool:
    """Whether the training data does not say `labels: none`."""
    node: Node | None = root
    for key in ("dataset", "train", "dataset", "kwargs", "labels"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return not (isinstance(node, Scalar) and node.value == "none")


def without_task_loss(mimic: Mapping) -> Mapping:
    """A `mimic` that says `task_loss: false` where it does not say anything of it."""
    if mimic.find("task_loss") is not None:
        return mimic
    no = Scalar(value=False, span=mimic.span)
    return mimic.with_entry(Entry(key="task_loss", key_span=mimic.span, value=no))


def canonical_mimic(mimic: Mapping, top: Entry, findings: Findings) -> Mapping:
    """`mimic` as {jobs, stages, task_loss}; top: its entry in the spec."""
    as_jobs = mimic.find("mimic_as_jobs")
    if as_jobs is not None and not (
        isinstance(as_jobs.value, Scalar) and isinstance(as_jobs.value.value, bool)
    ):
        message = f"`mimic_as_jobs` must be true or false, got {kind(as_jobs.value)}"
        findings.error("KD204", message, as_jobs.value.span)
    kept = [e for e in mimic.entries if e.key in ("stages", "task_loss")]
    rest = [e for e in mimic.entries if e.key not in MIMIC_KEYS]
    named = [e for e in rest if e.key.startswith("mimic_job")]
    jobs: list[Entry]
    if _is_true(as_jobs.value if as_jobs else None):
        jobs = [replace(e, value=_job(e.value, findings)) for e in named]
        for entry in rest:
            if entry not in named:
                help = did_you_mean(entry.key, (*MIMIC_KEYS, "mimic_job0"))
                if entry.key in JOB_KEYS or entry.key == "cfgs" or entry.key.startswith("teacher"):
                    help = "with `mimic_as_jobs` it belongs into a job (`mimic_job0: ...`)"
                findings.error("KD202", f"unknown key `{entry.key}` in `mimic`", entry.key_span, help)
        if not jobs:
            assert as_jobs is not None
            help = "add `mimic_job0: {...}`, or delete `mimic_as_jobs`"
            findings.error("KD213", "`mimic_as_jobs` is true, but there is no job", as_jobs.key_span, help)
    else:
        for entry in named:
            help = "add `mimic_as_jobs: true` under `mimic`"
            message = f"`{entry.key}` is a job, but `mimic_as_jobs` is not true"
            findings.error("KD213", message, entry.key_span, help)
        one = replace(mimic, entries=tuple(e for e in rest if e not in named))
        jobs = [Entry(key="mimic_job0", key_span=top.key_span, value=_job(one, findings))]
        if named and not one.entries:
            jobs = []
    made = Mapping(entries=tuple(jobs), span=mimic.span)
    key_span = as_jobs.key_span if as_jobs else top.key_span
    return replace(mimic, entries=(Entry(key="jobs", key_span=key_span, value=made), *kept))


def _job(job: Node, findings: Findings) -> Node:
    if not isinstance(job, Mapping):
        return job
    entries: list[Entry] = []
    teachers: list[Entry] = []
    for entry in job.entries:
        if entry.key in ("losses", "options"):
            help = "losses and options both stand under `cfgs`"
            findings.error("KD202", f"unknown key `{entry.key}` in a job", entry.key_span, help)
        elif entry.key == "cfgs":
            entries += _cfgs(_less_leftovers(entry, job, findings), findings)
        elif entry.key.startswith("teacher") and entry.key != "teacher_weighting":
            teachers.append(entry)
        elif entry.key == "adapter":
            entries.append(replace(entry, value=_adapter(entry.value)))
        else:
            entries.append(entry)
    if teachers:
        span = teachers[0].key_span
        mapping = Mapping(entries=tuple(teachers), span=span)
        entries.append(Entry(key="teachers", key_span=span, value=mapping))
    return replace(job, entries=tuple(entries))


def _less_leftovers(cfgs: Entry, job: Mapping, findings: Findings) -> Entry:
    named = job.get("mimic_ins_type")
    method = str(named.value) if isinstance(named, Scalar) else ""
    if method not in OPTION_LEFTOVERS or not isinstance(cfgs.value, Mapping):
        return cfgs
    for key, help in OPTION_LEFTOVERS[method].items():
        entry = cfgs.value.find(key)
        if entry is not None:
            findings.warn("KD614", f"`{key}` has no effect in `{method}`", entry.key_span, help)
    return replace(cfgs, value=cfgs.value.without(*OPTION_LEFTOVERS[method]))


def _cfgs(cfgs: Entry, findings: Findings) -> list[Entry]:
    if not isinstance(cfgs.value, Mapping):
        message = f"`cfgs` must be a mapping, got {kind(cfgs.value)}"
        findings.error("KD204", message, cfgs.value.span)
        return []
    losses: list[Entry] = []
    options: list[Entry] = []
    for entry in cfgs.value.entries:
        if isinstance(entry.value, Mapping) and {"type", "kwargs"} & set(entry.value.keys()):
            value = _loss(entry.value, findings)
            losses.append(replace(entry, value=value))
        else:
            options.append(entry)
    span = cfgs.value.span
    return [
        Entry(key=key, key_span=cfgs.key_span, value=Mapping(entries=tuple(entries), span=span))
        for key, entries in (("losses", losses), ("options", options))
        if entries
    ]


def _loss(loss: Mapping, findings: Findings) -> Mapping:
    """A loss with its adapter as a mapping, and its temperature called `T`."""
    adapter = loss.find("adapter")
    if adapter is not None:
        loss = loss.with_entry(replace(adapter, value=_adapter(adapter.value)))
    kwargs = loss.find("kwargs")
    if kwargs is None or not isinstance(kwargs.value, Mapping):
        return loss
    long, short = kwargs.value.find("temperature"), kwargs.value.find("T")
    if long is None:
        return loss
    if short is not None:
        message = "`T` and `temperature` are one argument, given twice"
        findings.error("KD323", message, long.key_span, "keep `T`")
        return loss
    entries = tuple(replace(e, key="T") if e is long else e for e in kwargs.value.entries)
    return loss.with_entry(replace(kwargs, value=replace(kwargs.value, entries=entries)))


def _adapter(node: Node) -> Node:
    """`adapter: auto` as a mapping."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        entry = Entry(key="type", key_span=node.span, value=node)
        return Mapping(entries=(entry,), span=node.span)
    return node


def _is_true(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value is True
