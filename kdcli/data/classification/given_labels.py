"""The labels of a Dataset in memory: its list where its items bear that out, else what each item says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdcli.data.check_images import spread
from kdcli.data.draws import Ids
from kdcli.errors import cut_off

PROVED = 32
"""So many items, evenly spaced, have to say the label that the list has for them."""


def labels_of(dataset: Any) -> tuple[Ids, str | None]:
    """The label of each item, int64 [N] or [N, heads], and a notice where the Dataset's own list says others.

    A list spares reading every item. What an item gives is what a user's loop would train on: a list that differs from
    it (a `target_transform`, a subset, another order) counts for nothing. Raises ValueError for items that are no
    (image, label), and for labels that are no whole numbers.
    """
    notice, found = None, _listed(dataset)
    if found is not None:
        name, listed = found
        wrong = _disproved(listed, dataset)
        if wrong is None:
            return whole_numbers(listed), None
        notice = f"the Dataset's `{name}` has {wrong}: each item was read for its own"
    return whole_numbers([label_of(dataset, index) for index in range(len(dataset))]), notice


def _disproved(listed: Sequence[Any], dataset: Any) -> str | None:
    """Why a list is not that of the items' labels; None where some of the items say the same."""
    if len(listed) != len(dataset):
        return f"{len(listed):,} labels for {len(dataset):,} items"
    try:
        numbers = whole_numbers(listed)
    except ValueError:
        return "no whole numbers"
    for index in spread(len(numbers), PROVED):
        try:
            said = label_of(dataset, index)
        except Exception:  # an item that can't be read is told when its turn comes
            continue
        if not np.array_equal(numbers[index], np.asarray(said)):
            return "other labels than its items give"
    return None


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
    """int64 [N], or [N, heads] of several labels an item; raises ValueError where one is no whole number."""
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    try:
        numbers = np.asarray(labels)
    except (TypeError, ValueError):  # of different lengths
        numbers = np.asarray([None])
    if numbers.dtype.kind in "iub" and (numbers.ndim == 1 or (numbers.ndim == 2 and numbers.shape[1] > 1)):
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
