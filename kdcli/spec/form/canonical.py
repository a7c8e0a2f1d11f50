"""Canonical form: a spec's nodes rearranged into the shape of schema.Spec, spans kept.

What United-Perception writes in several ways is written in one afterwards: teachers are collected,
a network is a list, jobs are a mapping, a job's `cfgs` are sorted, what train and test share stands
in both. Keys that are given nothing are not given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from kdcli.errors import Diagnostic, Span, did_you_mean, nearest
from kdcli.spec.form.canonical_jobs import DiagnosticList, canonical_mimic
from kdcli.spec.ranges import check_finite
from kdcli.spec.text.nodes import Entry, Mapping, Node, Plain, Scalar, Sequence, to_data
from kdcli.spec.text.source import repeated_key

TOP_KEYS = ("runtime", "net", "mimic", "dataset", "trainer", "ema", "saver", "hooks")
SHARED_DATA = ("batch_sampler", "dataloader")
# Arguments of a cosine that are called like a warm-up.
SHIFTS = ("warmup_iter",)
# Keys that United-Perception's own specs carry and that change nothing here.
LEFTOVERS = {"BboxFC_Pre": ("with_drp",)}


def canonical(root: Mapping) -> tuple[Mapping, list[Diagnostic]]:
    """The canonical tree, with errors and warnings found on the way."""
    maker = _Maker()
    return maker.spec(root), [*check_finite(root), *maker.findings]


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


@dataclass(slots=True)
class _Maker(DiagnosticList):
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
            number = isinstance(entry.value, Scalar) and entry.value.anchor is not None
            if number and entry.key not in TOP_KEYS:
                self._block(entry, root.keys())
            elif entry.key.startswith("teacher"):
                if not (isinstance(value, Scalar) and value.value is None):
                    teachers.append(replace(entry, value=self._network(value)))
            elif entry.key in TOP_KEYS:
                has_mimic = has_mimic or entry.key == "mimic"
                entries.append(replace(entry, value=self._top(entry, value)))
            else:
                self._block(entry, root.keys())
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
            return canonical_mimic(value, entry, self)
        if entry.key == "dataset" and isinstance(value, Mapping):
            return self._dataset(value)
        if entry.key == "trainer" and isinstance(value, Mapping):
            return self._trainer(value)
        if entry.key == "hooks" and isinstance(value, Mapping):
            return Sequence(items=(value,), span=value.span)
        return value

    def _block(self, entry: Entry, keys: list[str]) -> None:
        """Handle a top-level key outside the language: a building block, or a misspelt key."""
        if entry.key.startswith("x-"):
            return
        meant = nearest(entry.key, (*TOP_KEYS, "teacher", "teacher0"), most=1)
        if entry.value.anchor is not None:
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
        if entry is None or not isinstance(entry.value, Mapping) or name not in LEFTOVERS:
            return component
        for key in LEFTOVERS[name]:
            found = entry.value.find(key)
            if found is not None:
                self.warn("KD614", f"`{key}` has no effect in kdcli", found.key_span, "delete the line")
        left = entry.value.without(*LEFTOVERS[name])
        return component.with_entry(replace(entry, value=left))

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


def _laid_over(shared: Node, own: Node) -> Node:
    """Merge the shared block into this side's; this side wins. If `type` differs, shared kwargs are dropped."""
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


COUNTS = ("inner_T", "warmup")


def canonical_ema(spec: Mapping, found: DiagnosticList) -> Mapping:
    """The spec with a top-level `ema`, where United-Perception has it, moved under `trainer`."""
    top, trainer = spec.find("ema"), spec.find("trainer")
    spec = spec.without("ema")
    if trainer is None or not isinstance(trainer.value, Mapping):
        return spec
    own = trainer.value.find("ema")
    if top is not None and own is not None and to_data(top.value) != to_data(own.value):
        first, second = sorted((top, own), key=_order)
        here, there = second.key_span, first.key_span
        where = (
            f"in line {there.line}"
            if here.source == there.source
            else f"in {there.source}, line {there.line}"
        )
        message = "`ema` is given twice, at the top level and under `trainer`, with different values"
        found.error("KD225", message, here, f"keep one of them; the other is {where}")
    entry = top or own
    if entry is None:
        return spec
    settled = replace(entry, value=_from_one(entry.value, found))
    return spec.with_entry(replace(trainer, value=trainer.value.with_entry(settled)))


def _from_one(ema: Node, found: DiagnosticList) -> Node:
    """The `ema` block with counts of 0 read as 1."""
    kwargs = ema.find("kwargs") if isinstance(ema, Mapping) else None
    if not isinstance(ema, Mapping) or kwargs is None or not isinstance(kwargs.value, Mapping):
        return ema
    made = kwargs.value
    for key in COUNTS:
        entry = made.find(key)
        if entry is not None and isinstance(entry.value, Scalar) and _is_zero(entry.value.value):
            found.warn("KD619", f"`{key}: 0` is read as 1", entry.value.span, f"write `{key}: 1`")
            made = made.with_entry(replace(entry, value=replace(entry.value, value=1, text="1")))
    return ema.with_entry(replace(kwargs, value=made))


def _is_zero(value: Plain) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _order(entry: Entry) -> tuple[bool, str, int, int]:
    """The sort key of an entry's place: the text in its order, then command-line arguments."""
    span = entry.key_span
    argument = span.source.startswith("argument ")
    return (argument, span.source if argument else "", span.line, span.column)
