"""Canonical form: the nodes of a text, rearranged into the shape of schema.Spec, spans kept.

What United-Perception writes in several ways is written in one afterwards: teachers are collected,
a network is a list, jobs are a mapping, a job's `cfgs` are sorted, what train and test share stands
in both. Keys that are given nothing are not given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kdcli.errors import Diagnostic, Span, did_you_mean, nearest

from . import schema
from .nodes import Entry, Mapping, Node, Scalar, Sequence, kind
from .source import repeated_key

TOP_KEYS = ("runtime", "net", "mimic", "dataset", "trainer", "saver", "hooks")
MIMIC_KEYS = ("mimic_as_jobs", "stages", "task_loss")
JOB_KEYS = tuple(k for k in schema.Job.model_fields if k not in ("losses", "options", "teachers"))
SHARED_DATA = ("batch_sampler", "dataloader")
# Keys that United-Perception's own specs carry and that change nothing here.
LEFTOVERS = {"BboxFC_Pre": ("with_drp",)}


def canonical(root: Mapping) -> tuple[Mapping, list[Diagnostic]]:
    """The canonical tree, and what was wrong or worth a warning on the way."""
    maker = _Maker()
    return maker.spec(root), maker.findings


def without_nothing(node: Node) -> Node:
    """The node less every key that is given nothing; elements of lists stay."""
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


def _is_true(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value is True


@dataclass(slots=True)
class _Maker:
    findings: list[Diagnostic] = field(default_factory=list)

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.findings.append(Diagnostic(code=code, message=message, span=span, help=help))

    def warn(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        finding = Diagnostic(code=code, message=message, span=span, help=help, severity="warning")
        self.findings.append(finding)

    # the top level

    def spec(self, root: Mapping) -> Mapping:
        self._repeated(root)
        entries: list[Entry] = []
        teachers: list[Entry] = []
        has_mimic = False
        for entry in root.entries:
            value = without_nothing(entry.value)
            if isinstance(value, Scalar) and value.value is None and entry.key in TOP_KEYS:
                continue
            if entry.key.startswith("teacher"):
                if not (isinstance(value, Scalar) and value.value is None):
                    teachers.append(replace(entry, value=self._network(value)))
            elif entry.key in TOP_KEYS:
                has_mimic = has_mimic or entry.key == "mimic"
                entries.append(replace(entry, value=self._top(entry, value)))
            else:
                self._block(entry, [e.key for e in root.entries])
        if teachers:
            key_span = teachers[0].key_span
            mapping = Mapping(entries=tuple(teachers), span=key_span)
            entries.append(Entry(key="teachers", key_span=key_span, value=mapping))
        spec = replace(root, entries=tuple(entries))
        return self._runner(spec, has_mimic)

    def _top(self, entry: Entry, value: Node) -> Node:
        if entry.key == "net":
            return self._network(value)
        if entry.key == "mimic" and isinstance(value, Mapping):
            return self._mimic(value, entry)
        if entry.key == "dataset" and isinstance(value, Mapping):
            return self._dataset(value)
        if entry.key == "trainer" and isinstance(value, Mapping):
            return self._trainer(value)
        if entry.key == "hooks" and isinstance(value, Mapping):
            return Sequence(items=(value,), span=value.span)
        return value

    def _block(self, entry: Entry, keys: list[str]) -> None:
        """A top-level key that is not of the language: a building block, or a slip."""
        if entry.key.startswith("x-"):
            return
        meant = nearest(entry.key, (*TOP_KEYS, "teacher", "teacher0"), most=1)
        if entry.value.anchor is not None:
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
        known = (*TOP_KEYS, *(key for key in keys if key.startswith("teacher")), "teacher0")
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
                self.findings.append(repeated_key(entry, first))

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
        return replace(node, items=tuple(items))

    def _leftovers(self, component: Mapping, name: str) -> Mapping:
        """The component less the kwargs that mean nothing here."""
        entry = component.find("kwargs")
        if entry is None or not isinstance(entry.value, Mapping) or name not in LEFTOVERS:
            return component
        for key in LEFTOVERS[name]:
            found = entry.value.find(key)
            if found is not None:
                self.warn("KD614", f"`{key}` has no effect in kdcli", found.key_span, "delete the line")
        left = entry.value.without(*LEFTOVERS[name])
        return component.with_entry(replace(entry, value=left))

    # mimic

    def _mimic(self, mimic: Mapping, top: Entry) -> Mapping:
        as_jobs = mimic.find("mimic_as_jobs")
        if as_jobs is not None and not (
            isinstance(as_jobs.value, Scalar) and isinstance(as_jobs.value.value, bool)
        ):
            message = f"`mimic_as_jobs` must be true or false, got {kind(as_jobs.value)}"
            self.error("KD204", message, as_jobs.value.span)
        kept = [e for e in mimic.entries if e.key in ("stages", "task_loss")]
        rest = [e for e in mimic.entries if e.key not in MIMIC_KEYS]
        named = [e for e in rest if e.key.startswith("mimic_job")]
        jobs: list[Entry]
        if _is_true(as_jobs.value if as_jobs else None):
            jobs = [replace(e, value=self._job(e.value)) for e in named]
            for entry in rest:
                if entry not in named:
                    help = did_you_mean(entry.key, (*MIMIC_KEYS, "mimic_job0"))
                    if entry.key in JOB_KEYS or entry.key == "cfgs" or entry.key.startswith("teacher"):
                        help = "with `mimic_as_jobs` it belongs into a job (`mimic_job0: ...`)"
                    self.error("KD202", f"unknown key `{entry.key}` in `mimic`", entry.key_span, help)
            if not jobs:
                assert as_jobs is not None
                help = "add `mimic_job0: {...}`, or delete `mimic_as_jobs`"
                self.error("KD213", "`mimic_as_jobs` is true, but there is no job", as_jobs.key_span, help)
        else:
            for entry in named:
                help = "add `mimic_as_jobs: true` under `mimic`"
                message = f"`{entry.key}` is a job, but `mimic_as_jobs` is not true"
                self.error("KD213", message, entry.key_span, help)
            one = replace(mimic, entries=tuple(e for e in rest if e not in named))
            jobs = [Entry(key="mimic_job0", key_span=top.key_span, value=self._job(one))]
            if named and not one.entries:
                jobs = []
        made = Mapping(entries=tuple(jobs), span=mimic.span)
        key_span = as_jobs.key_span if as_jobs else top.key_span
        return replace(mimic, entries=(Entry(key="jobs", key_span=key_span, value=made), *kept))

    def _job(self, job: Node) -> Node:
        if not isinstance(job, Mapping):
            return job
        entries: list[Entry] = []
        teachers: list[Entry] = []
        for entry in job.entries:
            if entry.key in ("losses", "options"):
                help = "losses and options both stand under `cfgs`"
                self.error("KD202", f"unknown key `{entry.key}` in a job", entry.key_span, help)
            elif entry.key == "cfgs":
                entries += self._cfgs(entry)
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

    def _cfgs(self, cfgs: Entry) -> list[Entry]:
        if not isinstance(cfgs.value, Mapping):
            message = f"`cfgs` must be a mapping, got {kind(cfgs.value)}"
            self.error("KD204", message, cfgs.value.span)
            return []
        losses: list[Entry] = []
        options: list[Entry] = []
        for entry in cfgs.value.entries:
            if isinstance(entry.value, Mapping) and entry.value.find("type") is not None:
                value = self._loss(entry.value)
                losses.append(replace(entry, value=value))
            else:
                options.append(entry)
        span = cfgs.value.span
        return [
            Entry(key=key, key_span=cfgs.key_span, value=Mapping(entries=tuple(found), span=span))
            for key, found in (("losses", losses), ("options", options))
            if found
        ]

    def _loss(self, loss: Mapping) -> Mapping:
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
            self.error("KD323", message, long.key_span, "keep `T`")
            return loss
        entries = tuple(replace(e, key="T") if e is long else e for e in kwargs.value.entries)
        return loss.with_entry(replace(kwargs, value=replace(kwargs.value, entries=entries)))

    # data and training

    def _dataset(self, dataset: Mapping) -> Mapping:
        shared = [e for e in dataset.entries if e.key in SHARED_DATA]
        made = dataset.without(*SHARED_DATA)
        for side in ("train", "test"):
            part = made.find(side)
            if part is None or not isinstance(part.value, Mapping):
                continue
            value = part.value
            for entry in shared:
                own = value.find(entry.key)
                both = entry.value if own is None else _laid_over(entry.value, own.value)
                key_span = entry.key_span if own is None else own.key_span
                value = value.with_entry(Entry(key=entry.key, key_span=key_span, value=both))
            made = made.with_entry(replace(part, value=value))
        return made

    def _trainer(self, trainer: Mapping) -> Mapping:
        """Warm-up keys that slipped into the scheduler's kwargs, moved to where they belong."""
        entry = trainer.find("lr_scheduler")
        if entry is None or not isinstance(entry.value, Mapping):
            return trainer
        scheduler = entry.value
        kwargs = scheduler.find("kwargs")
        if kwargs is None or not isinstance(kwargs.value, Mapping):
            return trainer
        for moved in [e for e in kwargs.value.entries if e.key.startswith("warmup_")]:
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


def _adapter(node: Node) -> Node:
    """`adapter: auto` as a mapping."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        entry = Entry(key="type", key_span=node.span, value=node)
        return Mapping(entries=(entry,), span=node.span)
    return node


def _laid_over(shared: Node, own: Node) -> Node:
    """What one side says of itself over what both share; another type starts afresh."""
    if not isinstance(shared, Mapping) or not isinstance(own, Mapping):
        return own
    types = [node.get("type") for node in (shared, own)]
    if all(isinstance(t, Scalar) for t in types) and types[0].value != types[1].value:  # type: ignore[union-attr]
        return own
    made = shared
    for entry in own.entries:
        below = shared.get(entry.key)
        value = entry.value if below is None else _laid_over(below, entry.value)
        made = made.with_entry(replace(entry, value=value))
    return made
