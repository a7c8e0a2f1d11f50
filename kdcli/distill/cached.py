"""A cached teacher: views read from a store, and stored where they are not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcli.distill.store import Column, Store
from kdcli.distill.taps import Feature, View
from kdcli.distill.teacher import Teacher
from kdcli.errors import SpecError

Place = int | list[int]
"""The column of a feature; of a layer that runs several times, one column a call."""


@dataclass(frozen=True)
class CacheLayout:
    """Which columns a teacher's views have, and where each feature and output lies."""

    columns: tuple[Column, ...]
    features: Mapping[str, Place]
    outputs: Mapping[str, int]


class CachedTeacher:
    """A source of views that runs its teacher once for each sample and augmentation.

    A batch tells what it holds: `view`, the number of its augmentations, and `ids`, its samples as an
    array on the host. What a view shows has always been through the store, so it is the same whether it
    was just computed or read.
    """

    def __init__(self, teacher: Teacher, layout: CacheLayout, store: Store, num_samples: int) -> None:
        self.teacher, self.layout, self.store = teacher, layout, store
        self.num_samples = num_samples
        self.names = frozenset(layout.features)
        self.outputs = frozenset(layout.outputs)

    def view(self, batch: Mapping[str, Any]) -> View:
        """Features and outputs that are needed now (the teacher's taps know which), without gradient."""
        rows = torch.from_numpy(batch["ids"]) + int(batch["view"]) * self.num_samples
        there = self.store.has(rows)
        if not bool(there.all()):
            self.fill(batch, rows, ~there)
        device = batch["image"].device
        read: dict[int, Tensor] = {}

        def column(number: int) -> Tensor:
            if number not in read:
                read[number] = _on(self.store.read(rows, number), device)
            return read[number]

        taps = self.teacher.taps
        features: dict[str, Feature] = {}
        for name, place in self.layout.features.items():
            if name in taps.names:
                features[name] = column(place) if isinstance(place, int) else [column(p) for p in place]
        wanted = self.outputs if taps.outputs is None else self.outputs & taps.outputs
        return View(features, {name: column(self.layout.outputs[name]) for name in wanted})

    def fill(self, batch: Mapping[str, Any], rows: Tensor, missing: Tensor) -> None:
        """Run the teacher on the samples that are missing, and store all that any job needs of them."""
        taps = self.teacher.taps
        needed = taps.names, taps.outputs
        taps.require(self.names, self.outputs)
        try:
            view = self.teacher.view(batch if bool(missing.all()) else _only(batch, missing))
        finally:
            taps.require(*needed)
        values: dict[int, Tensor] = {}
        for name, place in self.layout.features.items():
            feature = view.features[name]
            if isinstance(place, int):
                assert isinstance(feature, Tensor)
                values[place] = feature
            else:
                values.update(zip(place, feature, strict=True))
        values.update((place, view.outputs[name]) for name, place in self.layout.outputs.items())
        self.store.write(rows[missing], [values[n] for n in range(len(self.layout.columns))])

    def flush(self) -> None:
        """Write what was stored to disk. Raises OSError."""
        self.store.flush()


def cache_layout_of(
    teacher: Teacher, shown: View, batch_size: int, *, half: bool, topk: int | None
) -> CacheLayout:
    """The columns for what a teacher shows, from one view of `batch_size` samples.

    half: store in float16. topk: keep so many of the largest logits. Raises SpecError KD553 where a
    feature has no row for each sample.
    """
    taps = teacher.taps
    columns: list[Column] = []
    known: dict[tuple[int, torch.Size, torch.dtype], int] = {}
    logits = shown.outputs.get("logits")

    def place(name: str, value: Any) -> int:
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != batch_size:
            found = (
                f"is [{', '.join(map(str, value.shape))}]" if isinstance(value, Tensor) else "is no tensor"
            )
            raise SpecError.at(
                taps.where.get(name, ()),
                "KD553",
                f"`{name}` of {teacher.name} can't be cached: it {found} for {batch_size} samples",
                "name a layer whose first dimension is the batch, or leave `cache` out",
            )
        same = (value.data_ptr(), value.shape, value.dtype)
        if name in taps.changed_in_place or same not in known:
            number = len(columns)
            columns.append(
                Column(
                    name,
                    tuple(value.shape[1:]),
                    value.dtype,
                    _stored(value.dtype, half),
                    _kept(value, logits, topk),
                )
            )
            if name in taps.changed_in_place:
                return number
            known[same] = number
        return known[same]

    features: dict[str, Place] = {}
    for name in sorted(taps.names):
        feature = shown.features[name]
        features[name] = (
            place(name, feature) if isinstance(feature, Tensor) else [place(name, one) for one in feature]
        )
    outputs = {name: place(name, shown.outputs.get(name)) for name in sorted(taps.outputs or ())}
    return CacheLayout(tuple(columns), features, outputs)


def _stored(dtype: torch.dtype, half: bool) -> torch.dtype:
    if not dtype.is_floating_point or dtype.itemsize < 4:
        return dtype
    return torch.float16 if half else dtype


def _kept(value: Tensor, logits: Any, topk: int | None) -> int | None:
    """How many values to keep of each row; None for all of them."""
    if topk is None or not isinstance(logits, Tensor) or value.dim() != 2:
        return None
    same = value.shape == logits.shape and value.data_ptr() == logits.data_ptr()
    return topk if same and topk < value.shape[-1] else None


def _only(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The samples of a batch at these rows: its image, and nothing that a teacher does not read."""
    image = batch["image"]
    return {"image": image[rows.to(image.device)]}


def _on(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
