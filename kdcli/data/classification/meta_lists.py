"""Classification data listed in meta files, United-Perception's `cls`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from kdcli.data.classes import one_form
from kdcli.data.classification.images import FileImages
from kdcli.data.draws import SPLIT, Ids, permutation
from kdcli.data.facts import Labelling
from kdcli.data.image_readers import SUFFIXES, PillowReader
from kdcli.disk import asking, is_file
from kdcli.errors import Diagnostic, KdError, RunError, SpecError, SpecPath, did_you_mean
from kdcli.spec.places import Places
from kdcli.spec.ranges import CountOrNone, Range, Width

LABEL_LIMIT = 10_000_000


def cls(
    image_reader: PillowReader,
    path: SpecPath,
    places: Places,
    *,
    meta_file: str | list[str],
    meta_type: str | list[str] = "imagenet",
    label_mapping: list[CountOrNone] | None = None,
    fraction: Annotated[float, Range(more_than=0, at_most=1)] = 1.0,
    num_classes: Width | None = None,
    classes: list[str] | None = None,
    source: str | None = None,
    labels: Labelling = "classes",
) -> FileImages:
    """Images listed as `relative/path label` lines (imagenet) or JSON lines (custom_cls).

    With `labels: none` a line is a path alone, or an object with `filename`; a label that stands there is not read.

    A label is a number, or in all lines a class name; JSON lines may give numbers and names (`label_name`), or a list
    of numbers, as many in every line: one for each head of the network (labels int64 [N, heads]). Names
    are numbered as `classes` lists them, else in alphabetical order; test data is numbered by the training data's
    names afterwards (kdcli.data.classes). Several meta files may each have their `image_dir`, meta_type and label
    offset (label_mapping). fraction: keep a fixed pseudo-random share. num_classes: labels lie below it; else
    `classes`, else the greatest label tells. Raises SpecError KD506 (no such file), KD518 (no such image_dir),
    RunError KD510 (malformed line), KD513 (a name that leads out of image_dir), KD515 (label out of range); of
    every meta file at once.
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
    if classes is not None and len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ValueError(f"`classes` lists `{twice}` twice")
    if classes is not None and num_classes not in (None, len(classes)):
        raise ValueError(f"`num_classes` is {num_classes}, and `classes` lists {len(classes)}")
    if labels == "none":
        given = {"classes": classes, "num_classes": num_classes, "label_mapping": label_mapping}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"`{name}` is about labels, and `labels: none` says that there are none")
    num_classes = num_classes if classes is None else len(classes)
    lists_path: SpecPath = (*path, "kwargs", "meta_file")
    file_paths = [
        lists_path if isinstance(meta_file, str) else (*lists_path, number) for number in range(len(metas))
    ]
    lists = [places.find(meta, place) for meta, place in zip(metas, file_paths, strict=True)]
    missing = [
        Diagnostic(
            code="KD506",
            message=f"there is no file `{meta}`",
            help=f"`meta_file` lists the images; {places.missing(meta, place)}",
            path=place,
        )
        for meta, place, file in zip(metas, file_paths, lists, strict=True)
        if not is_file(file)
    ]
    if missing or image_reader.missing:
        raise SpecError([*missing, *image_reader.missing])
    files: list[str] = []
    found: list[int | list[int]] = []
    names = ClassNames(classes)
    wrong: list[KdError] = []
    for number, (file, kind, offset) in enumerate(zip(lists, kinds, offsets, strict=True)):
        try:
            if labels == "none":
                files += _unlabelled(file, kind, image_reader, number)
                continue
            for name, label in _placed(file, kind, image_reader, number, offset, num_classes, names):
                files.append(name)
                found.append(label)
        except KdError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else SpecError([d for error in wrong for d in error.diagnostics])
    kept = np.arange(len(files))
    if fraction < 1:
        kept = np.sort(permutation(0, 0, len(files), stream=SPLIT)[: max(1, int(len(files) * fraction))])
        files = [files[i] for i in kept]
    if labels == "none":
        return FileImages(image_reader, files, None, 0)
    if len({len(label) if isinstance(label, list) else 0 for label in found}) > 1:
        raise RunError.of(
            "KD510",
            f"`{lists[0]}`: some samples have another number of labels than others",
            "give each line as many labels as the network has heads",
        )
    numbers = names.numbers(found)[kept]
    class_names = None
    if numbers.ndim == 1:
        class_names = names.in_order(num_classes or int(numbers.max(initial=-1)) + 1)
    count = num_classes or (len(class_names) if class_names is not None else int(numbers.max(initial=-1)) + 1)
    invented = bool(names.seen) and classes is None
    return FileImages(image_reader, files, numbers, count, class_names, invented=invented)


def _placed(
    file: Path,
    kind: str,
    reader: PillowReader,
    number: int,
    offset: int,
    num_classes: int | None,
    names: ClassNames,
) -> Iterator[tuple[str, int | list[int]]]:
    """(file, label or labels) of every line; raises RunError KD510, KD513, KD515."""
    for line, name, said, called in entries(file, kind):
        place = _located(file, line, name, reader, number)
        try:
            each = said if isinstance(said, list) else [said]
            taken = [names.take(one, called, offset) for one in each]
        except ValueError as reason:
            raise RunError.of("KD510", f"`{file}` line {line}: {reason}") from reason
        for label in taken:
            if label < 0 or label >= (num_classes or LABEL_LIMIT):
                bound = f"0..{num_classes - 1}" if num_classes else "what a label can be"
                raise RunError.of("KD515", f"`{file}` line {line}: label {label} is outside {bound}")
        yield place, taken if isinstance(said, list) else taken[0]


def _unlabelled(file: Path, kind: str, reader: PillowReader, number: int) -> Iterator[str]:
    """The file of every line of a list without labels; raises RunError KD510, KD513."""
    for line, name, _, _ in entries(file, kind, labelled=False):
        yield _located(file, line, name, reader, number)


def _located(file: Path, line: int, name: str, reader: PillowReader, number: int) -> str:
    place = reader.locate(name, number)
    if place is None:
        raise RunError.of(
            "KD513",
            f"`{file}` line {line}: `{name}` leads out of `image_dir`",
            "names are relative to `image_dir` and stay in it",
        )
    return place


class ClassNames:
    """The names of a list's classes: as they are listed, as its lines use them, or as they give them to numbers."""

    def __init__(self, listed: list[str] | None) -> None:
        self.listed = None if listed is None else {name: number for number, name in enumerate(listed)}
        self.seen: dict[str, int] = {}
        self.given: dict[int, str] = {}
        self.counts = 0

    def take(self, said: int | str, called: str | None, offset: int) -> int:
        """The label of a line, a name by the order in which it was met. Raises ValueError for one that can't be."""
        if isinstance(said, str):
            if self.counts or offset:
                raise ValueError(f"the label is `{said}`, and others are numbers: write one kind alone")
            if self.listed is not None and said not in self.listed:
                help = did_you_mean(said, list(self.listed))
                raise ValueError(f"`classes` does not list `{said}`" + (f": {help}" if help else ""))
            return self.seen.setdefault(said, len(self.seen))
        if self.seen:
            raise ValueError(f"the label is {said}, and others are names: write one kind alone")
        self.counts += 1
        label = said + offset
        if called is not None and self.given.setdefault(label, called) != called:
            raise ValueError(f"class {label} is called `{called}` here and `{self.given[label]}` before")
        return label

    def numbers(self, labels: list[int | list[int]]) -> Ids:
        """int64: the labels, names numbered as they are listed, else in alphabetical order."""
        numbers = np.array(labels, dtype=np.int64)
        if not self.seen:
            return numbers
        order = self.listed or {name: number for number, name in enumerate(sorted(self.seen))}
        return np.array([order[name] for name in self.seen], dtype=np.int64)[numbers]

    def in_order(self, count: int) -> tuple[str, ...] | None:
        """The name of each of so many numbers; None where one has none."""
        if self.listed is not None:
            return tuple(self.listed)
        if self.seen:
            return tuple(sorted(self.seen))
        return tuple(self.given[n] for n in range(count)) if self.given.keys() >= set(range(count)) else None


Said = int | str | list[int]
"""A label as a line says it: a number, a name, or a number for each head."""

Parser = Callable[[str], tuple[str, Said, str | None]]
"""From a line to file name, label and its name; raises what says that it is none such."""


def entries(file: Path, kind: str, *, labelled: bool = True) -> Iterator[tuple[int, str, Said, str | None]]:
    """(line number from 1, file name, label, its name) of every line that is not empty; raises RunError KD510.

    labelled: False takes a line for a name alone, and gives 0 for its label.
    """
    with_label: Parser = _text_line if kind == "imagenet" else _json_line
    parse = with_label if labelled else _text_name if kind == "imagenet" else _json_name
    if kind not in ("imagenet", "custom_cls"):
        raise ValueError(f"`meta_type` must be imagenet or custom_cls, got {kind}")
    form = "relative/path label" if kind == "imagenet" else '{"filename": ..., "label": ...}'
    if not labelled:
        form = "relative/path" if kind == "imagenet" else '{"filename": ...}'
    with asking(file), file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, label, called = parse(line.strip())
            except (ValueError, KeyError, TypeError, RecursionError) as reason:
                raise RunError.of(
                    "KD510",
                    f"`{file}` line {number} is not `{form}`: {line.strip()[:80]!r}",
                    _other_form(line.strip(), kind, labelled=labelled),
                ) from reason
            yield number, name, label, called


def _other_form(line: str, kind: str, *, labelled: bool) -> str | None:
    """The help for a line that can't be read: as what it could be."""
    if kind == "imagenet" and line[0] == "{":
        return "JSON lines are read with `meta_type: custom_cls`"
    alone = line.lower().endswith(SUFFIXES) if kind == "imagenet" else '"label"' not in line
    return "a list of images without labels is read with `labels: none`" if labelled and alone else None


def _text_name(line: str) -> tuple[str, int, None]:
    name, _, label = line.rpartition(" ") if " " in line else line.rpartition("\t")
    if line[0] == "{":
        raise ValueError("an object of JSON")
    ends_with_label = name.rstrip().lower().endswith(SUFFIXES) and not label.lower().endswith(SUFFIXES)
    return name.rstrip() if ends_with_label else line, 0, None


def _json_name(line: str) -> tuple[str, int, None]:
    name = json.loads(line)["filename"]
    if not isinstance(name, str):
        raise TypeError("filename is text")
    return name, 0, None


def _text_line(line: str) -> tuple[str, int | str, None]:
    name, label = line.rsplit(maxsplit=1)
    return name, int(label) if re.fullmatch(r"[+-]?\d+", label) else _name(label), None


def _json_line(line: str) -> tuple[str, Said, str | None]:
    entry: dict[str, Any] = json.loads(line)
    name, label, called = entry["filename"], entry["label"], entry.get("label_name")
    if isinstance(name, str) and isinstance(label, list) and label and called is None:
        if all(type(one) is int for one in label):
            return name, label, None
    if not isinstance(name, str) or not isinstance(label, (int, str)) or isinstance(label, bool):
        raise TypeError("filename is text and label a whole number, a list of them, or a name")
    if called is not None and not isinstance(called, str):
        raise TypeError("label_name is text")
    return name, _name(label) if isinstance(label, str) else label, called


def _name(text: str) -> str:
    """A class name; raises ValueError for what rather is a number, a file or JSON."""
    if (
        not text
        or re.search(r"[{}\"]", text)
        or re.fullmatch(r"[+-]?[\d.]+", text)
        or text.lower().endswith(SUFFIXES)
    ):
        raise ValueError(f"no class name: {text}")
    return one_form(text)
