"""Mixing that stands among the transforms, moved to where it belongs: the dataloader's `batch_fn`."""

from __future__ import annotations

from dataclasses import replace

from kdcli.errors import Findings
from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar, Sequence, to_data

MIXING = "torch_cutmix_mixup"
NO_EFFECT = ("extra_input", "transform")
"""Kwargs that said how a transform gets at a second sample."""


def canonical_mixing(part: Mapping, findings: Findings) -> Mapping:
    """One side of the data with `torch_cutmix_mixup` of its transformer list as `batch_fn: batch_cutmixup`.

    Images are mixed within a batch, so that no transform of single images can do it. KD354: a warning of that, an
    error where `batch_fn` mixes too.
    """
    dataset = part.get("dataset")
    kwargs = dataset.get("kwargs") if isinstance(dataset, Mapping) else None
    listed = kwargs.find("transformer") if isinstance(kwargs, Mapping) else None
    if listed is None or not isinstance(listed.value, Sequence):
        return part
    assert isinstance(dataset, Mapping) and isinstance(kwargs, Mapping)
    found = [item for item in listed.value.items if _is_mixing(item)]
    if not found:
        return part
    mixing = found[0]
    assert isinstance(mixing, Mapping)
    kept = tuple(item for item in listed.value.items if not _is_mixing(item))
    kwargs = kwargs.with_entry(replace(listed, value=replace(listed.value, items=kept)))
    dataset = dataset.with_entry(replace(_entry(dataset, "kwargs"), value=kwargs))
    part = part.with_entry(replace(_entry(part, "dataset"), value=dataset))
    type_entry = _entry(mixing, "type")
    loader = part.get("dataloader")
    loader = loader if isinstance(loader, Mapping) else Mapping(entries=(), span=mixing.span)
    options = loader.get("kwargs")
    options = options if isinstance(options, Mapping) else Mapping(entries=(), span=mixing.span)
    if len(found) > 1 or to_data(options.get("batch_fn") or Scalar(value=None, span=mixing.span)) is not None:
        message = (
            f"`{MIXING}` mixes the batch, and {'another one' if len(found) > 1 else '`batch_fn`'} does too"
        )
        findings.error("KD354", message, type_entry.value.span, "keep one of them")
        return part
    message = f"`{MIXING}` mixes the samples of a batch, which no transform of one image can do"
    findings.warn(
        "KD354",
        message,
        type_entry.value.span,
        "it is read as `batch_fn: {type: batch_cutmixup}` of the dataloader",
    )
    given = mixing.get("kwargs")
    if isinstance(given, Mapping):
        mixing = mixing.with_entry(replace(_entry(mixing, "kwargs"), value=given.without(*NO_EFFECT)))
    named = Scalar(value="batch_cutmixup", span=type_entry.value.span, text="batch_cutmixup")
    mixing = mixing.with_entry(replace(type_entry, value=named))
    options = options.with_entry(_under(options, "batch_fn", mixing))
    loader = loader.with_entry(_under(loader, "kwargs", options))
    return part.with_entry(_under(part, "dataloader", loader))


def _is_mixing(item: Node) -> bool:
    kind = item.get("type") if isinstance(item, Mapping) else None
    return isinstance(kind, Scalar) and kind.value == MIXING


def _entry(mapping: Mapping, key: str) -> Entry:
    entry = mapping.find(key)
    assert entry is not None
    return entry


def _under(mapping: Mapping, key: str, value: Mapping) -> Entry:
    """The entry `key` of a mapping with another value; a new one is written where the value is."""
    entry = mapping.find(key)
    return Entry(key=key, key_span=value.span if entry is None else entry.key_span, value=value)
