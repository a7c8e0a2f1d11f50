"""Classification data listed in meta files, United-Perception's `cls`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdcli.data.draws import SPLIT, permutation
from kdcli.data.files import FileImages
from kdcli.data.image_readers import PillowReader
from kdcli.errors import Diagnostic, KdError, RunError, SpecError, SpecPath
from kdcli.spec.places import Places

MetaType = Literal["imagenet", "custom_cls"]
LABEL_LIMIT = 10_000_000


def cls(
    image_reader: PillowReader,
    path: SpecPath,
    places: Places,
    *,
    meta_file: str | list[str],
    meta_type: str | list[str] = "imagenet",
    label_mapping: list[int] | None = None,
    fraction: float = 1.0,
    num_classes: int | None = None,
    source: str | None = None,
) -> FileImages:
    """Images listed as `relative/path label` lines (imagenet) or JSON lines (custom_cls).

    Several meta files may each have their `image_dir`, meta_type and label offset (label_mapping).
    fraction: keep a fixed pseudo-random share. num_classes: labels lie below it; else the greatest label
    tells. Raises SpecError KD506 (no such file), KD518 (no such image_dir), RunError KD510 (malformed line),
    KD513 (a name that leads out of image_dir), KD515 (label out of range);
    of every meta file at once.
    """
    metas = [meta_file] if isinstance(meta_file, str) else list(meta_file)
    kinds = [meta_type] * len(metas) if isinstance(meta_type, str) else list(meta_type)
    offsets = label_mapping or [0] * len(metas)
    for name, values in (("meta_type", kinds), ("label_mapping", offsets)):
        if len(values) != len(metas):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(metas)} meta files")
    if len(image_reader.roots) not in (1, len(metas)):
        raise ValueError(f"`image_dir` has {len(image_reader.roots)} folders for {len(metas)} meta files")
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must lie in (0, 1], got {fraction}")
    where: SpecPath = (*path, "kwargs", "meta_file")
    wheres = [where if isinstance(meta_file, str) else (*where, number) for number in range(len(metas))]
    lists = [places.find(meta, place) for meta, place in zip(metas, wheres, strict=True)]
    missing = [
        Diagnostic(
            code="KD506",
            message=f"there is no file `{meta}`",
            help=f"`meta_file` lists the images; {places.missing(meta, place)}",
            path=place,
        )
        for meta, place, file in zip(metas, wheres, lists, strict=True)
        if not file.is_file()
    ]
    if missing or image_reader.missing:
        raise SpecError([*missing, *image_reader.missing])
    files: list[str] = []
    labels: list[int] = []
    wrong: list[KdError] = []
    for number, (file, kind, offset) in enumerate(zip(lists, kinds, offsets, strict=True)):
        try:
            for name, label in _placed(file, kind, image_reader, number, offset, num_classes):
                files.append(name)
                labels.append(label)
        except KdError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else SpecError([d for error in wrong for d in error.diagnostics])
    numbers = np.array(labels, dtype=np.int64)
    if fraction < 1:
        kept = np.sort(permutation(0, 0, len(files), stream=SPLIT)[: max(1, int(len(files) * fraction))])
        files, numbers = [files[i] for i in kept], numbers[kept]
    return FileImages(image_reader, files, numbers, num_classes or int(numbers.max(initial=-1)) + 1)


def _placed(
    file: Path, kind: str, reader: PillowReader, number: int, offset: int, num_classes: int | None
) -> Iterator[tuple[str, int]]:
    """(file, label) of every line; raises RunError KD510, KD513, KD515."""
    for line, name, label in entries(file, kind):
        place = reader.locate(name, number)
        if place is None:
            raise RunError.of(
                "KD513",
                f"`{file}` line {line}: `{name}` leads out of `image_dir`",
                "names are relative to `image_dir` and stay in it",
            )
        label += offset
        if label < 0 or label >= (num_classes or LABEL_LIMIT):
            bound = f"0..{num_classes - 1}" if num_classes else "what a label can be"
            raise RunError.of("KD515", f"`{file}` line {line}: label {label} is outside {bound}")
        yield place, label


def entries(file: Path, kind: str) -> Iterator[tuple[int, str, int]]:
    """(line number from 1, name, label) of every line that is not empty; raises RunError KD510."""
    parse = {"imagenet": _text_line, "custom_cls": _json_line}.get(kind)
    if parse is None:
        raise ValueError(f"`meta_type` must be imagenet or custom_cls, got {kind}")
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, label = parse(line.strip())
            except (ValueError, KeyError, TypeError, RecursionError) as reason:
                wanted = "relative/path label" if kind == "imagenet" else '{"filename": ..., "label": ...}'
                raise RunError.of(
                    "KD510", f"`{file}` line {number} is not `{wanted}`: {line.strip()[:80]!r}"
                ) from reason
            yield number, name, label


def _text_line(line: str) -> tuple[str, int]:
    name, label = line.rsplit(maxsplit=1)
    return name, int(label)


def _json_line(line: str) -> tuple[str, int]:
    entry: dict[str, Any] = json.loads(line)
    name, label = entry["filename"], entry["label"]
    if not isinstance(name, str) or not isinstance(label, int) or isinstance(label, bool):
        raise TypeError("filename is text and label a whole number")
    return name, label
