"""What the sides of the data share, written into each: `batch_sampler`, `dataloader`, with `hold_out` the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar

SHARED_DATA = ("batch_sampler", "dataloader")


def with_shared(part: Mapping, shared: Sequence[Entry]) -> Mapping:
    """A side of the data with what all sides share; its own keys win."""
    for entry in shared:
        own = part.find(entry.key)
        both = entry.value if own is None else _laid_over(entry.value, own.value)
        key_span = entry.key_span if own is None else own.key_span
        part = part.with_entry(Entry(key=entry.key, key_span=key_span, value=both))
    return part


def canonical_probe(probe: Mapping, shared: Sequence[Entry], test: Node | None) -> Mapping:
    """The probe with `batch_sampler` and `dataloader` in both of its sides.

    Its own come first, then what all data shares, then the test side's; the mixing of images, which is for training, is
    left out of these.
    """
    own = [entry for entry in probe.entries if entry.key in SHARED_DATA]
    given = [entry for entry in shared if entry.key in SHARED_DATA]
    of_test = [test.find(key) for key in SHARED_DATA] if isinstance(test, Mapping) else []
    known = {entry.key for entry in given}
    given += [entry for entry in of_test if entry is not None and entry.key not in known]
    plain = [
        replace(entry, value=_without(entry.value, "kwargs", "batch_fn"))
        if entry.key == "dataloader"
        else entry
        for entry in given
    ]
    made = probe.without(*SHARED_DATA)
    for side in ("train", "test"):
        part = made.find(side)
        if part is not None and isinstance(part.value, Mapping):
            made = made.with_entry(replace(part, value=with_shared(with_shared(part.value, own), plain)))
    return made


OF_TEST = ("transformer", "evaluator")
"""Arguments of the dataset that the test side keeps where its images are held out of training."""


def with_held_out_test(dataset: Mapping) -> Mapping:
    """With `hold_out`, the test side reads the training side's dataset; its own transforms and evaluator stay.

    The evaluator's `gt_file` goes: it has other images.
    """
    sides = [dataset.find(side) for side in ("train", "test")]
    if dataset.find("hold_out") is None or any(side is None for side in sides):
        return dataset
    train, test = (side.value if side is not None else None for side in sides)
    if not isinstance(train, Mapping) or not isinstance(test, Mapping) or sides[1] is None:
        return dataset
    learnt, tested = train.find("dataset"), test.find("dataset")
    if learnt is None or not isinstance(learnt.value, Mapping):
        return dataset
    kwargs = learnt.value.get("kwargs")
    own = tested.value.get("kwargs") if tested is not None and isinstance(tested.value, Mapping) else None
    made = learnt.value
    if isinstance(kwargs, Mapping):
        kept = [own.find(key) for key in OF_TEST] if isinstance(own, Mapping) else []
        kwargs = kwargs.without(*OF_TEST)
        for entry in kept:
            if entry is not None:
                kwargs = kwargs.with_entry(replace(entry, value=_without(entry.value, "kwargs", "gt_file")))
        found = learnt.value.find("kwargs")
        assert found is not None
        made = learnt.value.with_entry(replace(found, value=kwargs))
    return dataset.with_entry(replace(sides[1], value=test.with_entry(replace(learnt, value=made))))


def _without(node: Node, block: str, key: str) -> Node:
    """A mapping without `key` in its mapping `block`."""
    inner = node.find(block) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or inner is None or not isinstance(inner.value, Mapping):
        return node
    return node.with_entry(replace(inner, value=inner.value.without(key)))


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
