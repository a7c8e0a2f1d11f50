"""Findings about the files of a spec's data: whether they exist, are whole, and fit the transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from kdcli.data.batches import size_text
from kdcli.data.build import build_loader
from kdcli.data.check_images import (
    LOOKED_AT,
    ImageFindings,
    Progress,
    ReportedAt,
    constant_images,
    missing_images,
    scanned_images,
    spread,
    unreadable,
)
from kdcli.data.detection.coco import CocoDataset
from kdcli.data.draws import Draws
from kdcli.data.sources import ArrayImages, BadSample, BatchSource, OpenedData, SampleSource, Source
from kdcli.data.transforms.pipeline import Pipeline, build_pipeline
from kdcli.errors import Diagnostic, KdError, SpecPath
from kdcli.spec.schema import DataPart

Look = Literal["nothing", "start", "quick", "whole"]
"""How far files are looked at: not at all; as `train` does, lists, labels and some images; of the data at names
and labels alone; every image file's header and end."""


def check_files(
    part: DataPart,
    path: SpecPath,
    source_of: Callable[[], Source | BatchSource],
    side_of: Callable[[], OpenedData],
    *,
    look: Look = "whole",
    progress: Progress | None = None,
) -> list[Diagnostic]:
    """Every finding about one side's files, each with a path into the spec.

    source_of, side_of: give its source, and with it what is true of it; raise KdError where it can't be opened.
    Whatever `look`, one sample goes through the transforms. progress: called while files are read.
    """
    place = (*path, "dataset")
    try:
        source = source_of()
    except KdError as error:
        return _placed(error, part, place)
    reader = place if part.dataset.kwargs.image_reader is None else (*place, "kwargs", "image_reader")
    reported_at = ReportedAt(
        dataset=place, reader=reader, skip=part.dataloader.kwargs.on_bad_sample == "skip"
    )
    found = left_out(source, place)
    files = ImageFindings(findings=(), known=frozenset())
    if (isinstance(source, CocoDataset) and source.in_files) or getattr(source, "files", None):
        files = _files_of(source, reported_at, look != "whole", progress)
        found += files.findings
    opened, failed = None, None
    try:
        opened = side_of()
    except KdError as error:
        failed = error
    shapes = None
    if opened is not None and look != "quick" and part.batch_sampler.kwargs.batch_size > 1:
        shapes = shapes_of(source, part, place)
    if look != "quick":
        found += pixel_findings(source, reported_at, files.known, shapes)
    if opened is not None:
        try:
            build_loader(replace(opened, part=_alone(part)), seed=0).close()
            found += [] if shapes is None else shapes.findings(files)
        except KdError as error:
            failed = error
    return found if failed is None else [*found, *_placed(failed, part, place)]


def left_out(source: Source | BatchSource, place: SpecPath) -> list[Diagnostic]:
    """KD623 where the folders of the images hold other files, which are left out."""
    note = getattr(source, "left_out", None)
    return [] if note is None else [Diagnostic(code="KD623", message=note, severity="warning", path=place)]


def pixel_findings(
    source: Source | BatchSource,
    reported_at: ReportedAt,
    known: frozenset[str] = frozenset(),
    shapes: SampleShapes | None = None,
) -> list[Diagnostic]:
    """KD511 for those of some images that can't be decoded, KD520 where all of them are constant.

    known: files with a finding already. shapes: is given each decoded image.
    """
    if isinstance(source, BatchSource) or (
        isinstance(source, SampleSource) and not (isinstance(source, CocoDataset) and source.in_files)
    ):
        return []
    bad: list[BadSample] = []
    indices = spread(len(source), LOOKED_AT)
    warning = constant_images(_read(source, indices, bad, shapes))
    found = unreadable([error for error in bad if error.name not in known], len(indices), reported_at)
    if warning is not None:
        help = "`background` tells what lies behind alpha, `value_range` which numbers are black and white"
        found.append(
            Diagnostic(code="KD520", message=warning, severity="warning", help=help, path=reported_at.dataset)
        )
    return found


class SampleShapes:
    """The shapes of images after the transforms, as the first epoch sees them."""

    def __init__(self, source: Any, pipeline: Pipeline, where: SpecPath) -> None:
        self.source, self.pipeline, self.where = source, pipeline, where
        self._found: dict[int, tuple[bool, str]] = {}

    def take(self, index: int, image: Tensor) -> None:
        """Run the transforms on one image; note its shape, or why they can't take it."""
        try:
            made = self.pipeline(image[None], Draws(0, 0, np.array([index], dtype=np.int64)))[0]
            self._found[index] = (True, size_text(made))
        except (ValueError, TypeError, RuntimeError) as reason:
            self._found[index] = (False, str(reason))

    def findings(self, files: ImageFindings) -> list[Diagnostic]:
        """KD517 where two images come out in different shapes, or one does not fit the transforms.

        Of those that were taken, and of one of each size that is known to occur.
        """
        numbers = {file: index for index, file in enumerate(self.source.files)} if files.sizes else {}
        for index in {numbers[file] for file in files.sizes} - self._found.keys():
            for image in _read(self.source, [index], []):  # bad ones are reported elsewhere
                self.take(index, image)
        first: tuple[str, str] | None = None
        for index, (fits, shape) in sorted(self._found.items()):
            name = self.source.name(index)
            if not fits:
                message = f"`{name}` does not fit the transforms: {shape}"
                return [Diagnostic(code="KD517", message=message, path=self.where)]
            if first is not None and shape != first[1]:
                message = f"`{first[0]}` comes out of the transforms as {first[1]} and `{name}` as {shape}"
                help = "end with one size for all: a crop, or a resize to [height, width]"
                return [Diagnostic(code="KD517", message=message, help=help, path=self.where)]
            first = first or (name, shape)
        return []


def shapes_of(source: Source | BatchSource, part: DataPart, place: SpecPath) -> SampleShapes | None:
    """The collector of shapes for images that are read one by one; None for data whose images are known to be alike."""
    if isinstance(source, (SampleSource, ArrayImages, BatchSource)):
        return None
    where = (*place, "kwargs", "transformer")
    return SampleShapes(source, build_pipeline(part.dataset.kwargs.transformer, where), where)


def _read(
    source: Any, indices: list[int], bad: list[BadSample], shapes: SampleShapes | None = None
) -> Iterator[Tensor]:
    """Decode images one by one; errors of those that can't be decoded are appended to `bad`."""
    for index in indices:
        try:
            image = source.pixels(index) if isinstance(source, CocoDataset) else source.read(index)
        except BadSample as error:
            bad.append(error)
            continue
        if shapes is not None:
            shapes.take(index, image)
        yield image


def _files_of(source: Any, reported_at: ReportedAt, quick: bool, progress: Progress | None) -> ImageFindings:
    """The findings about the files of a CocoDataset, or of a source with `files` and `reader`."""
    files: list[str] = []
    numbers: list[int] = []
    outside: list[BadSample] = []
    for index in range(len(source)):
        try:
            files.append(source.file(index) if isinstance(source, CocoDataset) else source.files[index])
            numbers.append(index)
        except BadSample as error:
            outside.append(error)
    missing = missing_images(files, source.reader, reported_at)
    found = [*unreadable(outside, len(source), reported_at), *missing.findings]
    known = missing.known | {error.name for error in outside}
    if quick:
        return ImageFindings(findings=tuple(found), known=known)
    there = [place for place, file in enumerate(files) if file not in known]
    look = source.look_at if isinstance(source, CocoDataset) else None
    scanned = scanned_images(
        [files[place] for place in there],
        source.reader,
        reported_at,
        also=None if look is None else lambda number, image: look(numbers[there[number]], image),
        progress=progress,
    )
    return ImageFindings(
        findings=(*found, *scanned.findings), known=known | scanned.known, sizes=scanned.sizes
    )


def _alone(part: DataPart) -> DataPart:
    """The same side with `num_workers: 0` and `in_memory: false`."""
    change = {"num_workers": 0, "in_memory": False}
    quick = part.dataloader.kwargs.model_copy(update=change)
    return part.model_copy(update={"dataloader": part.dataloader.model_copy(update={"kwargs": quick})})


def _placed(error: KdError, part: DataPart, place: SpecPath) -> list[Diagnostic]:
    """The diagnostics of an error; one without a path gets that of `meta_file`, or else of the dataset."""
    listed = isinstance((part.dataset.kwargs.model_extra or {}).get("meta_file"), str)
    where = (*place, "kwargs", "meta_file") if listed else place
    return [d if d.path is not None else replace(d, path=where) for d in error.diagnostics]
