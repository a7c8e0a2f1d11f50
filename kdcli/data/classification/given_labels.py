"""The labels of a Dataset in memory: its list where its items bear that out, else what each item says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdcli.data.draws import Ids
from kdcli.errors import cut_off

PROVED = 32
"""So many items, evenly spaced, have to say the label that the list has for them."""


def labels_of(dataset: Any) -> tuple[Ids, str | None]:
    """The label of each item, int64 [N], and a notice where the Dataset's own list says others.

    A list spares reading every item. What an item gives is what a user's loop would train on: a list that differs from
    it (a `target_transform`, a subset, another order) counts for nothing. Raises ValueError for items that are no
    (image, label), and for labels that are no whole numbers.
    """
    found = _listed(dataset)
    if found is not None:
        name, numbers = found[0], whole_numbers(found[1])
        if len(numbers) == len(dataset):
            probed = (
                np.unique(np.linspace(0, len(numbers) - 1, PROVED).astype(np.int64)) if len(numbers) else ()
            )
            said = whole_numbers([label_of(dataset, int(index)) for index in probed])
            if np.array_equal(said, numbers[probed] if len(numbers) else numbers):
                return numbers, None
            other = "other labels than its items give"
        else:
            other = f"{len(numbers):,} labels for {len(dataset):,} items"
        notice = f"the Dataset's `{name}` has {other}: each item was read for its own"
        return whole_numbers([label_of(dataset, index) for index in range(len(dataset))]), notice
    return whole_numbers([label_of(dataset, index) for index in range(len(dataset))]), None


def label_of(dataset: Any, index: int) -> Any:
    """The label of an item; raises ValueError for one that is no (image, label)."""
    item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        what = f"a {type(item).__name__}" if item is not None else "nothing"
        raise ValueError(f"an item is (image, label), and item {index} is {what}")
    return item[1]


def _listed(dataset: Any) -> tuple[str, Sequence[Any]] | None:
    """The labels that a Dataset lists, also behind Subsets, with the list's name; None where it has none."""
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:
        found = _listed(inner)
        return None if found is None else (f"dataset.{found[0]}", [found[1][index] for index in indices])
    for attribute in ("targets", "labels"):
        listed = getattr(dataset, attribute, None)
        if listed is not None and hasattr(listed, "__len__"):
            listed = listed.tolist() if hasattr(listed, "tolist") else list(listed)
            # What torchvision's datasets do to a label before an item has it.
            change = getattr(dataset, "target_transform", None)
            return attribute, listed if change is None else [change(one) for one in listed]
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1:
        found = tensors[1]
        return ("tensors[1]", found.tolist()) if not found.is_floating_point() and found.dim() == 1 else None
    return None


def whole_numbers(labels: Sequence[Any]) -> Ids:
    """int64 [N]; raises ValueError for labels of which one is no whole number."""
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    try:
        numbers = np.asarray(labels)
    except (TypeError, ValueError):  # of different lengths
        numbers = np.asarray([None])
    if numbers.ndim == 1 and numbers.dtype.kind in "iub":
        return numbers.astype(np.int64)
    first = labels[0]
    one = np.asarray(first)
    hint = ""
    if one.ndim == 1 and one.size == 1:
        hint = ": give `label.item()`"
    elif one.ndim == 1 and one.dtype.kind in "iubf" and sorted(one)[-2:] == [0, 1] and not one.min():
        hint = ": of a one-hot row give `int(label.argmax())`"
    elif one.ndim == 0 and one.dtype.kind == "f":
        hint = ": give `int(label)`"
    raise ValueError(f"labels are whole numbers, got `{cut_off(repr(first))}`{hint}")
