"""Keys of United-Perception that this language has no place for: mapped, named in one notice, or refused.

They are handled before the canonical form is made, so that nothing after it knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kdcli.errors import Diagnostic, Findings, Span
from kdcli.spec.text.nodes import Entry, Mapping, Node, Plain, Scalar, Sequence, kind, to_data
from kdcli.spec.text.overrides import is_argument

RUNNERS = {
    "quant": "quantisation",
    "quant_ptq": "quantisation",
    "sparse": "sparsity",
    "bignas": "architecture search",
    "point": "3-D detection",
    "multitask": "multitask",
}
"""What the other runners of United-Perception are for."""

BLOCKS = {
    "quant": "quantisation",
    "sparsity": "sparsity",
    "bignas": "architecture search",
    "multitask_cfg": "multitask",
}
"""Top-level blocks that only one of the other runners reads."""

TASKS = {"3d": "3-D detection", "point": "3-D detection", "seg": "segmentation"}
"""Tasks, as `task_names`, a dataset or a loader names them."""

MOVED = {
    "fp16": ("runtime", "fp16"),
    "iter_base": ("runtime", "iter_base"),
    "lr_scheduler": ("trainer", "lr_scheduler"),
}
"""Keys of the top level that belong one level down. `ema` is moved by the canonical form, without a word."""

IDLE = {
    "runtime": ("rank_init", "async_norm"),
    "dataloader": ("worker_init",),
    "dataset": ("save_score", "inference_cfg", "cache"),
    "saver": ("save_result",),
}
"""Keys that change nothing in the training here, by the block that they stand in."""

PLAIN = {"register_type": "base", "lr_register_type": "base", "pad_type": "batch_pad"}
"""Keys of which one value is what is done here anyway; another one would change the training."""

OFF = ("has_mask", "multilabel", "fix_seed")
"""Keys that change nothing where they are false; true is left to be an unknown argument, or is one of ABSENT."""

ABSENT = {
    "has_mask": (
        "kdcli detects boxes and has no instance masks",
        "`has_mask: false` trains the boxes alone",
    ),
    "multilabel": (
        "an image has one right class for each head here, not several at once",
        "leave it out where each image has one class; `label: [3, 1]` in the list gives one to each of two heads",
    ),
}
"""Keys that are switched on for what kdcli has not: why, and what to do."""

IDLE_IN_MODULES = {"FPN": ("skip", "tocaffe_friendly")}
"""Arguments of modules that change nothing in the training, there as here, by the module's type."""

REMARKS = {"hooks: gradient_collector": "`softmax_eql` and `softmax_eqlv2` collect by themselves"}
"""What is said beside a key that has no effect."""

HOOKS = (
    *(
        "gradient_collector",
        "grad_cam",
        "feature_vis",
        "visualize",
        "auto_save_metric",
        "auto_save_best_multitask",
    ),
    *("reload", "memory_analysis", "memory_empty", "memory_checkpoint"),
)
"""Hooks of United-Perception that are not run here."""

CLIPPER = "grad_clipper"


def of_other_runner(root: Node) -> Diagnostic | None:
    """KD229 for a spec of one of United-Perception's runners that kdcli has no counterpart of; None for all others."""
    if not isinstance(root, Mapping):
        return None
    for what, where, span in _signs(root):
        message = (
            f"this spec is for United-Perception's {what} ({where}): kdcli trains and distils classifiers and"
            " detectors only"
        )
        return Diagnostic(code="KD229", message=message, span=span)
    return None


def _signs(root: Mapping) -> Iterator[tuple[str, str, Span]]:
    """What a spec is for that isn't training or distilling: the purpose, the key that says so, its place."""
    runner = _scalar(root, "runtime", "runner", "type")
    if runner is not None and str(runner.value) in RUNNERS:
        yield f"{RUNNERS[str(runner.value)]} runner", f"`runner.type: {runner.value}`", runner.span
    for key, what in BLOCKS.items():
        entry = root.find(key)
        if entry is not None and entry.value.anchor is None and isinstance(entry.value, Mapping):
            yield what, f"`{key}`", entry.key_span
    task = _scalar(root, "runtime", "task_names")
    if task is not None:
        name = str(task.value)
        for start, what in (("quant_", "quantisation"), ("sparse_", "sparsity")):
            if name.startswith(start):
                yield what, f"`task_names: {name}`", task.span
        if name in TASKS:
            yield TASKS[name], f"`task_names: {name}`", task.span
    for side in ((), ("train",)):
        for part in ("dataset", "dataloader"):
            type_of = _scalar(root, "dataset", *side, part, "type")
            name = str(type_of.value).partition("_")[0] if type_of is not None else ""
            if type_of is not None and name in TASKS:
                yield TASKS[name], f"`{part}: {{type: {type_of.value}}}`", type_of.span
    net = root.get("net")
    for module in net.items if isinstance(net, Sequence) else ():
        for key in ("wrappers", "multi_model"):
            entry = module.find(key) if isinstance(module, Mapping) else None
            if entry is not None:
                yield "self-supervised training", f"`{key}` of a module", entry.key_span


def _node(root: Node | None, *keys: str) -> Node | None:
    for key in keys:
        root = root.get(key) if isinstance(root, Mapping) else None
    return root


def _scalar(root: Node, *keys: str) -> Scalar | None:
    node = _node(root, *keys)
    return node if isinstance(node, Scalar) and node.value is not None else None


def without_foreign_keys(root: Mapping, findings: Findings) -> Mapping:
    """The spec with United-Perception's own keys mapped or taken out, and one notice (KD641) that names them all."""
    reader = _Reader(findings)
    root = reader.top(root)
    reader.notice()
    return root


class _Reader:
    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.mapped: dict[str, Span] = {}
        self.idle: dict[str, Span] = {}
        self.absent: set[str] = set()

    def top(self, root: Mapping) -> Mapping:
        for key, (block, inner) in MOVED.items():
            root = self._moved(root, key, block, inner)
        root = self._in(root, "runtime", self._runtime)
        root = self._in(root, "dataset", self._dataset)
        root = self._in(root, "saver", lambda saver: self._without(saver, IDLE["saver"]))
        root = self._in(root, "trainer", self._trainer)
        entries = tuple(
            replace(entry, value=self._network(entry.value))
            if entry.key == "net" or entry.key.startswith("teacher")
            else entry
            for entry in root.entries
        )
        return self._hooks(replace(root, entries=entries))

    def notice(self) -> None:
        """Say once what was mapped and what has no effect."""
        parts = []
        if self.mapped:
            parts.append(f"read {', '.join(self.mapped)}")
        if self.idle:
            remarks = {key: f" ({words})" for key, words in REMARKS.items()}
            idle = [f"`{key}`{remarks.get(key, '')}" for key in self.idle]
            parts.append(f"without effect here: {', '.join(idle)}")
        if parts:
            first = min(
                (*self.mapped.values(), *self.idle.values()), key=lambda span: (span.line, span.column)
            )
            self.findings.warn("KD641", f"keys of United-Perception: {'; '.join(parts)}", first)

    def _in(self, mapping: Mapping, key: str, change: Any) -> Mapping:
        entry = mapping.find(key)
        if entry is None or not isinstance(entry.value, Mapping):
            return mapping
        return mapping.with_entry(replace(entry, value=change(entry.value)))

    def _without(self, block: Mapping, keys: tuple[str, ...]) -> Mapping:
        for key in keys:
            entry = block.find(key)
            if entry is not None:
                self.idle.setdefault(key, entry.key_span)
        return block.without(*keys)

    def _moved(self, root: Mapping, key: str, block: str, inner: str) -> Mapping:
        """The spec with a top-level key moved into the block where it belongs."""
        entry = root.find(key)
        if entry is None or entry.value.anchor is not None:
            return root
        holder = root.find(block)
        if holder is None:
            holder = Entry(key=block, key_span=entry.key_span, value=Mapping(entries=(), span=entry.key_span))
        if not isinstance(holder.value, Mapping):
            return root
        own = holder.value.find(inner)
        if own is not None and to_data(own.value) != to_data(entry.value):
            message = f"`{key}` is given twice, at the top level and under `{block}`, with different values"
            help = f"keep the one under `{block}`, in line {own.key_span.line}"
            self.findings.error("KD233", message, entry.key_span, help)
            return root.without(key)
        self.mapped.setdefault(f"top-level `{key}` as `{block}.{inner}`", entry.key_span)
        value = holder.value if own is not None else holder.value.with_entry(replace(entry, key=inner))
        return root.without(key).with_entry(replace(holder, value=value))

    def _runtime(self, runtime: Mapping) -> Mapping:
        runtime = self._without(runtime, IDLE["runtime"])
        fp16 = runtime.find("fp16")
        if fp16 is not None and isinstance(fp16.value, Mapping):
            # The options are of a library that United-Perception may run on: the scale of losses adapts here.
            self.mapped.setdefault("the options of `fp16` as `true`", fp16.key_span)
            on = Scalar(value=True, span=fp16.value.span, text="true")
            runtime = runtime.with_entry(replace(fp16, value=on))
        return runtime

    def _dataset(self, dataset: Mapping) -> Mapping:
        dataset = self._in(dataset, "batch_sampler", self._component(self._sampler))
        dataset = self._in(dataset, "dataloader", self._component(self._loader))
        for side in ("train", "test"):
            dataset = self._in(dataset, side, self._part)
            dataset = self._in(dataset, "probe", lambda probe, side=side: self._in(probe, side, self._part))
        return dataset

    def _off(self, kwargs: Mapping) -> Mapping:
        """The arguments without those that are switched off; KD234 for one that is on and that kdcli has not."""
        off = [key for key in OFF if isinstance(node := kwargs.get(key), Scalar) and node.value is False]
        for key, (why, help) in ABSENT.items():
            entry = kwargs.find(key)
            if entry is None or not isinstance(entry.value, Scalar) or entry.value.value is not True:
                continue
            if key not in self.absent:
                self.findings.error(
                    "KD234", f"`{key}: true` of United-Perception: {why}", entry.key_span, help
                )
            self.absent.add(key)
            kwargs = kwargs.without(key)
        return self._without(kwargs, tuple(off))

    def _network(self, modules: Node) -> Node:
        if not isinstance(modules, Sequence):
            return modules
        return replace(
            modules,
            items=tuple(self._module(item) if isinstance(item, Mapping) else item for item in modules.items),
        )

    def _module(self, module: Mapping) -> Mapping:
        type_of = _scalar(module, "type")
        idle = IDLE_IN_MODULES.get(str(type_of.value), ()) if type_of is not None else ()
        return self._in(module, "kwargs", lambda kwargs: self._off(self._without(kwargs, idle)))

    def _sampler(self, kwargs: Mapping) -> Mapping:
        return self._in(kwargs, "sampler", self._component(self._off))

    def _part(self, part: Mapping) -> Mapping:
        part = self._in(part, "batch_sampler", self._component(self._sampler))
        part = self._in(part, "dataloader", self._component(self._loader))
        return self._in(part, "dataset", self._component(self._samples))

    def _component(self, change: Any) -> Any:
        return lambda component: self._in(component, "kwargs", change)

    def _samples(self, kwargs: Mapping) -> Mapping:
        kwargs = self._in(kwargs, "evaluator", self._component(self._off))
        return self._off(self._without(kwargs, IDLE["dataset"]))

    def _loader(self, kwargs: Mapping) -> Mapping:
        help = "batches are padded to their largest image, right and below (`batch_pad`)"
        return self._plain(self._without(kwargs, IDLE["dataloader"]), "pad_type", help)

    def _trainer(self, trainer: Mapping) -> Mapping:
        help = "say with `pconfig` which parameters have another lr or weight decay"
        trainer = self._in(trainer, "optimizer", lambda block: self._plain(block, "register_type", help))
        trainer = self._in(trainer, "optimizer", lambda block: self._in(block, "pconfig", self._groups))
        help = "take it out, and choose a `type` that kdcli has"
        return self._in(trainer, "lr_scheduler", lambda block: self._plain(block, "lr_register_type", help))

    def _groups(self, pconfig: Mapping) -> Mapping:
        """Parameter groups with the slips mended that United-Perception's own specs have."""
        linear = pconfig.find("linear")
        of = _scalar(linear.value, "type") if linear is not None else None
        meant = {"bias": "linear_b", "weight": "linear_w"}.get(str(of.value)) if of is not None else None
        if linear is not None and meant is not None and pconfig.find(meant) is None:
            self.mapped.setdefault(f"`linear` of `pconfig` as `{meant}`", linear.key_span)
            pconfig = pconfig.without("linear").with_entry(replace(linear, key=meant))
        for entry in pconfig.entries:
            slipped = entry.value.find("nodecay") if isinstance(entry.value, Mapping) else None
            if slipped is not None and isinstance(entry.value, Mapping):
                self.idle.setdefault(f"nodecay inside {entry.key}", slipped.key_span)
                pconfig = pconfig.with_entry(replace(entry, value=entry.value.without("nodecay")))
        return pconfig

    def _plain(self, block: Mapping, key: str, help: str) -> Mapping:
        """The block without a key whose plain value is what is done anyway; KD230 for another value."""
        entry = block.find(key)
        if entry is None:
            return block
        if isinstance(entry.value, Scalar) and entry.value.value in (PLAIN[key], None):
            self.idle.setdefault(key, entry.key_span)
        else:
            shown = f"`{entry.value.value}`" if isinstance(entry.value, Scalar) else kind(entry.value)
            message = f"kdcli has no `{key}` {shown} of United-Perception, only `{PLAIN[key]}`"
            self.findings.error("KD230", message, entry.value.span, help)
        return block.without(key)

    def _hooks(self, root: Mapping) -> Mapping:
        entry = root.find("hooks")
        if entry is None or not isinstance(entry.value, Sequence):
            return root
        kept = []
        for item in entry.value.items:
            type_of = _scalar(item, "type")
            if type_of is not None and type_of.value in HOOKS:
                self.idle.setdefault(f"hooks: {type_of.value}", type_of.span)
            elif type_of is not None and type_of.value == CLIPPER:
                root = self._clipped(root, item, type_of.span)
            else:
                kept.append(item)
        hooks = replace(entry, value=replace(entry.value, items=tuple(kept)))
        return root.with_entry(hooks) if kept else root.without("hooks")

    def _clipped(self, root: Mapping, hook: Node, span: Span) -> Mapping:
        """The spec with the hook that clips gradients as `trainer.clip_grad_norm`; KD643 where that can't be."""
        kwargs = to_data(_node(hook, "kwargs") or Mapping(entries=(), span=span))
        given: dict[str, Any] = kwargs if isinstance(kwargs, dict) else {}
        norm = given.get("max_norm")
        trainer = root.find("trainer")
        fits = (
            given.get("mode") == "pre_defined"
            and given.get("norm_type", 2) == 2
            and isinstance(norm, (int, float))
            and not isinstance(norm, bool)
            and norm > 0
        )
        if not fits:
            message = (
                f"the hook `{CLIPPER}` is run only with `mode: pre_defined`, a `max_norm` and `norm_type: 2`"
            )
            help = "`trainer.clip_grad_norm: <norm>` clips gradients whose 2-norm is larger"
            self.findings.warn("KD643", message, span, help)
            return root
        if trainer is None or not isinstance(trainer.value, Mapping):
            return root
        own = trainer.value.find("clip_grad_norm")
        if own is not None:
            if to_data(own.value) != norm:
                message = f"the hook `{CLIPPER}` and `trainer.clip_grad_norm` clip at different norms"
                help = f"keep one of them; the other is in line {own.key_span.line}"
                self.findings.error("KD233", message, span, help)
            return root
        value = _node(hook, "kwargs", "max_norm")
        assert value is not None
        self.mapped.setdefault(f"the hook `{CLIPPER}` as `trainer.clip_grad_norm: {norm:g}`", span)
        clip = Entry(key="clip_grad_norm", key_span=span, value=value)
        return root.with_entry(replace(trainer, value=trainer.value.with_entry(clip)))


def overrides_without_effect(dataset: Mapping, shared: list[Entry]) -> list[Diagnostic]:
    """KD232 for what the command line sets in a block for both sides, where both have the key themselves.

    shared: those blocks. A warning, KD644, where one side has it: only the other one takes what is set.
    """
    findings = []
    for entry in shared:
        for keys, span in _arguments(entry.value, (entry.key,)):
            own = [side for side in ("train", "test") if _node(dataset, side, *keys) is not None]
            if not own:
                continue
            key = ".".join(keys)
            has = " and ".join(f"`{side}`" for side in own)
            both = len(own) == 2
            effect = "has no effect" if both else f"has no effect on `{own[0]}`"
            findings.append(
                Diagnostic(
                    code="KD232" if both else "KD644",
                    severity="error" if both else "warning",
                    message=f"`dataset.{key}` {effect}: {has} {'have their' if both else 'has its'} own",
                    help=f"set {' and '.join(f'`dataset.{side}.{key}`' for side in own)}",
                    span=span,
                )
            )
    return findings


def _arguments(node: Node, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Span]]:
    """The values under a node that the command line sets, each with its keys and place."""
    if isinstance(node, Mapping):
        for entry in node.entries:
            yield from _arguments(entry.value, (*keys, entry.key))
    elif is_argument(node.span.source):
        yield keys, node.span


# Counts of `ema` of which 0 is read as 1.
COUNTS = ("inner_T", "warmup")


def canonical_ema(spec: Mapping, findings: Findings) -> Mapping:
    """The spec with a top-level `ema`, where United-Perception has it, moved under `trainer`."""
    top, trainer = spec.find("ema"), spec.find("trainer")
    spec = spec.without("ema")
    if trainer is None or not isinstance(trainer.value, Mapping):
        return spec
    own = trainer.value.find("ema")
    if top is not None and own is not None and to_data(top.value) != to_data(own.value):
        first, second = sorted((top, own), key=_order)
        span, other = second.key_span, first.key_span
        line = (
            f"in line {other.line}"
            if span.source == other.source
            else f"in {other.source}, line {other.line}"
        )
        message = "`ema` is given twice, at the top level and under `trainer`, with different values"
        findings.error("KD225", message, span, f"keep one of them; the other is {line}")
    entry = top or own
    if entry is None:
        return spec
    settled = replace(entry, value=_from_one(entry.value, findings))
    return spec.with_entry(replace(trainer, value=trainer.value.with_entry(settled)))


def _from_one(ema: Node, findings: Findings) -> Node:
    """The `ema` block with counts of 0 read as 1."""
    kwargs = ema.find("kwargs") if isinstance(ema, Mapping) else None
    if not isinstance(ema, Mapping) or kwargs is None or not isinstance(kwargs.value, Mapping):
        return ema
    made = kwargs.value
    for key in COUNTS:
        entry = made.find(key)
        if entry is not None and isinstance(entry.value, Scalar) and _is_zero(entry.value.value):
            findings.warn("KD619", f"`{key}: 0` is read as 1", entry.value.span, f"write `{key}: 1`")
            made = made.with_entry(replace(entry, value=replace(entry.value, value=1, text="1")))
    return ema.with_entry(replace(kwargs, value=made))


def _is_zero(value: Plain) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _order(entry: Entry) -> tuple[bool, str, int, int]:
    """The sort key of an entry's place: the text in its order, then command-line arguments."""
    span = entry.key_span
    argument = span.source.startswith("argument ")
    return (argument, span.source if argument else "", span.line, span.column)
