"""A cached teacher: views read from a store on disk, and stored where they are not there yet."""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.disk import temporary_name
from kdcli.distill.taps import Feature, View
from kdcli.distill.teacher import Teacher
from kdcli.errors import RunError, SpecError

Place = int | list[int]
"""The column of a feature; of a layer that runs several times, one column a call."""


@dataclass(frozen=True)
class CacheLayout:
    """Which columns a teacher's views have, and where each feature and output lies."""

    columns: tuple[Column, ...]
    features: Mapping[str, Place]
    outputs: Mapping[str, int]
    changed: Mapping[str, str] = field(default_factory=dict)
    """Of each feature that isn't stored as its layer gives it (a map turned, a part of tokens): how that is read."""


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
        taps = self.teacher.taps
        wanted = self.outputs if taps.outputs is None else self.outputs & taps.outputs
        there = self.store.has(rows, self.columns(taps.names, wanted))
        if not bool(there.all()):
            self.fill(batch, rows, ~there)
        device = batch["image"].device
        read: dict[int, Tensor] = {}

        def column(number: int) -> Tensor:
            if number not in read:
                read[number] = _on(self.store.read(rows, number), device)
            return read[number]

        features: dict[str, Feature] = {}
        for name, place in self.layout.features.items():
            if name in taps.names:
                features[name] = column(place) if isinstance(place, int) else [column(p) for p in place]
        return View(features, {name: column(self.layout.outputs[name]) for name in wanted})

    def columns(self, features: Collection[str], outputs: Collection[str]) -> set[int]:
        """The numbers of the columns that these features and outputs are read from."""
        places = [place for name, place in self.layout.features.items() if name in features]
        numbers = {n for place in places for n in ([place] if isinstance(place, int) else place)}
        return numbers | {number for name, number in self.layout.outputs.items() if name in outputs}

    def fill(self, batch: Mapping[str, Any], rows: Tensor, missing: Tensor) -> None:
        """Run the teacher on the samples that are missing, and store all that any job needs of them.

        Raises RunError KD545 where it shows a value that is not finite.
        """
        shown = self.shown(batch if bool(missing.all()) else _only(batch, missing))
        self.check_finite(shown, rows[missing] % self.num_samples)
        self.store.write(rows[missing], shown)

    def shown(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """What the teacher itself shows of a batch, by column."""
        taps = self.teacher.taps
        needed = taps.names, taps.outputs
        taps.require(self.names, self.outputs)
        try:
            view = self.teacher.view(batch)
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
        return [values[n] for n in range(len(self.layout.columns))]

    def check_finite(self, shown: Sequence[Tensor], ids: Tensor) -> None:
        """Raise RunError KD545 where a column has values that are not finite; ids: of the samples shown."""
        for column, value in zip(self.layout.columns, shown, strict=True):
            bad = ~value.reshape(len(value), -1).isfinite().all(1)
            if bool(bad.any()):
                samples = ids[bad.cpu()].tolist()
                raise RunError.of(
                    "KD545",
                    f"`{column.name}` of {self.teacher.name} is NaN or infinite for {len(samples)} of {len(ids)} "
                    f"samples (the first is number {samples[0]} of the training data): it is not stored",
                    "look at that sample and at the teacher's weights; in half precision numbers above 65,504 are "
                    "infinite: say `runtime: {teacher_precision: fp32}`",
                )

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
    known: dict[tuple[Any, ...], int] = {}
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
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
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
    changed = {
        name: ", ".join(layout.text for layout in layouts)
        for name, layouts in taps.layouts.items()
        if name in taps.handed_changed
    }
    return CacheLayout(tuple(columns), features, outputs, changed)


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


META, FILLED, CHECKS = "meta.json", "filled.u8", "checks.i32"
CHECKED = "checked"
"""The key in meta.json by which a store says that its rows have checksums."""

LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class Column:
    """One tensor of a row. shape: of one sample. dtype: as the network gives it; stored: as on the disk."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: torch.dtype
    topk: int | None = None

    def parts(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """The files of the column: the values; of top-k logits the values, their classes and the rest."""
        if self.topk is None:
            return [(self.shape, self.stored)]
        kept = (*self.shape[:-1], self.topk)
        classes = torch.int16 if self.shape[-1] <= torch.iinfo(torch.int16).max else torch.int32
        return [(kept, self.stored), (kept, classes), ((*self.shape[:-1], 1), torch.float32)]

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row on disk."""
        return sum(_count(shape) * dtype.itemsize for shape, dtype in self.parts())

    def pack(self, value: Tensor) -> list[Tensor]:
        """Convert values [n, *shape] into what is stored."""
        if self.topk is None:
            return [_as(value, self.stored)]
        value = value.float()
        top, classes = value.topk(self.topk, dim=-1)
        # Every other class gets an equal share of the probability that the largest leave.
        rest = value.scatter(-1, classes, float("-inf")).logsumexp(-1, keepdim=True)
        rest = rest - math.log(self.shape[-1] - self.topk)
        return [_as(top, self.stored), classes.to(self.parts()[1][1]), rest]

    def unpack(self, parts: Sequence[Tensor]) -> Tensor:
        """Convert what is stored back into values."""
        if self.topk is None:
            return parts[0].to(self.dtype)
        top, classes, rest = parts
        full = rest.expand(*rest.shape[:-1], self.shape[-1]).clone()
        return full.scatter_(-1, classes.long(), top.float()).to(self.dtype)

    def facts(self) -> dict[str, Any]:
        """The column as plain data, for meta.json and the key."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "stored": str(self.stored),
            "topk": self.topk,
        }


class Store:
    """Tensors on disk, one row per sample and view, mapped into memory; `create` makes one.

    A folder holds a file for each column, `filled.u8` with one byte a row, `checks.i32` with a CRC-32 for each
    row of each file, and `meta.json`. It is made under another name and then renamed, so a folder that is there
    is whole. A row counts as filled once its bytes are on the disk: values are synced before their flags, and
    whatever a killed process had not synced is simply computed again. So is a row whose bytes have changed since:
    each process compares it with its CRC at the first read; `damaged` counts these. Processes of one machine share
    the mapped pages. Rows are int64 tensors on the CPU. A store of before 0.3 has no CRCs, and is read unchecked.
    """

    def __init__(self, folder: Path, columns: Sequence[Column], rows: int) -> None:
        self.folder, self.columns, self.rows = folder, tuple(columns), rows
        self.files: list[list[Tensor]] = []
        self.paths: list[Path] = []
        for number, column in enumerate(self.columns):
            mapped = []
            for path, (shape, dtype) in zip(_files(folder, number, column), column.parts(), strict=True):
                mapped.append(_mapped(path, (rows, *shape), dtype))
                self.paths.append(path)
            self.files.append(mapped)
        self.filled = _mapped(folder / FILLED, (rows,), torch.uint8)
        self.checks: Tensor | None = None
        if (read_meta(folder) or {}).get(CHECKED):
            self.checks = _mapped(folder / CHECKS, (rows, len(self.paths)), torch.int32)
            self.paths.append(folder / CHECKS)
        self.proved = torch.zeros(len(self.columns), rows, dtype=torch.bool)
        self.damaged = 0
        self.written = torch.zeros(rows, dtype=torch.uint8)
        self.waiting: list[Tensor] = []

    @staticmethod
    def create(folder: Path, columns: Sequence[Column], rows: int, meta: Mapping[str, Any]) -> None:
        """Reserve the disk space and create the folder at once; one that another process made first stays.

        Raises OSError where the disk says no.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = temporary_name(folder)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            for number, column in enumerate(columns):
                for path, (shape, dtype) in zip(_files(beside, number, column), column.parts(), strict=True):
                    _reserve(path, rows * _count(shape) * dtype.itemsize)
            _reserve(beside / FILLED, rows)
            _reserve(beside / CHECKS, rows * 4 * sum(len(column.parts()) for column in columns))
            with (beside / META).open("w", encoding="utf-8") as file:
                json.dump({**meta, CHECKED: True}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.rename(beside, folder)
            except OSError:
                if not (folder / META).is_file():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def has(self, rows: Tensor, columns: Collection[int]) -> Tensor:
        """bool [n]: which rows are stored, by any process, and in these columns are what was stored."""
        there = (self.filled[rows] | self.written[rows]).bool()
        if self.checks is None:
            return there
        for number in columns:
            new = rows[there & ~self.proved[number, rows]]
            if len(new):
                first = self._place(number)
                sums = _checksums(self._stored(new, number))
                good = (self.checks[new, first : first + sums.shape[1]] == sums).all(1)
                self.proved[number, new] = good
                there &= ~torch.isin(rows, new[~good])
                self.damaged += int((~good).sum())
        return there

    def write(self, rows: Tensor, values: Sequence[Tensor]) -> None:
        """Store rows, one tensor [n, ...] a column; they are safe after `flush`."""
        for number, (column, files, value) in enumerate(zip(self.columns, self.files, values, strict=True)):
            parts = [part.cpu() for part in column.pack(value)]
            for file, part in zip(files, parts, strict=True):
                file[rows] = part
            if self.checks is not None:
                first = self._place(number)
                self.checks[rows, first : first + len(parts)] = _checksums(parts)
        self.proved[:, rows] = True
        self.written[rows] = 1
        self.waiting.append(rows)

    def _place(self, column: int) -> int:
        """The number of a column's first file."""
        return sum(len(files) for files in self.files[:column])

    def _stored(self, rows: Tensor, column: int) -> list[Tensor]:
        return [file.index_select(0, rows) for file in self.files[column]]

    def read(self, rows: Tensor, column: int) -> Tensor:
        """One column's rows, [n, *shape]."""
        return self.columns[column].unpack(self._stored(rows, column))

    def flush(self) -> None:
        """Write rows to disk, then mark them as stored. Raises OSError."""
        if not self.waiting:
            return
        for path in self.paths:
            _sync(path)
        rows, self.waiting = torch.cat(self.waiting), []
        self.filled[rows] = 1
        _sync(self.folder / FILLED)

    def count(self) -> int:
        """The number of stored rows."""
        return int((self.filled | self.written).sum())


def bytes_of(columns: Sequence[Column], rows: int) -> int:
    """Bytes of a store on disk."""
    return rows * (1 + sum(column.bytes_per_row + 4 * len(column.parts()) for column in columns))


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What `create` was given; None where there is no whole store."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def _files(folder: Path, number: int, column: Column) -> list[Path]:
    kinds = ("values",) if column.topk is None else ("values", "classes", "rest")
    return [folder / f"{number}.{kind}" for kind in kinds]


def _checksums(parts: Sequence[Tensor]) -> Tensor:
    """int32 [n, parts]: the CRC-32 of each row of each part [n, ...]."""
    sums = np.empty((len(parts[0]), len(parts)), dtype=np.uint32)
    for number, part in enumerate(parts):
        for index, row in enumerate(part.contiguous().reshape(len(part), -1).view(torch.uint8).numpy()):
            sums[index, number] = zlib.crc32(row)
    return torch.from_numpy(sums.view(np.int32))


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_file(str(path), shared=True, size=_count(shape), dtype=dtype).view(shape)


def _reserve(path: Path, size: int) -> None:
    """Create a file of zeros with its blocks allocated: a full disk kills whoever writes to mapped pages."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float16 and value.dtype != torch.float16:
        value = value.float().clamp(-LARGEST_HALF, LARGEST_HALF)
    return value.to(dtype)


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
