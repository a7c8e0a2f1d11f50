"""What the files say of a spec's data, for `validate --files`: they exist, can be read, and fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from kdcli.data.build import build_loader, build_source, open_side
from kdcli.data.coco import CocoDataset
from kdcli.data.files import FileImages
from kdcli.data.image_readers import MISSING, opened
from kdcli.data.sources import BadSample
from kdcli.errors import Diagnostic, KdError, SpecPath
from kdcli.spec.places import HERE, Places
from kdcli.spec.schema import DataPart

LOOKED_AT = 200
"""So many image files, evenly spread over the list, have their headers read."""

FEW = 20
"""So many of a detector's images are compared with the size that the annotations say."""

TOLD = 5
"""So many bad ones are named."""


def check_files(
    part: DataPart, path: SpecPath, places: Places = HERE, *, train: bool = True
) -> list[Diagnostic]:
    """Every finding about one side's files, each with a path into the spec.

    Reads the lists whole, the headers of some images, and one sample through the transforms; a detector's
    image files have all to be there.
    """
    place = (*path, "dataset")
    try:
        source = build_source(part, train=train, path=path, places=places)
    except KdError as error:
        return _placed(error, place)
    if isinstance(source, FileImages):
        bad = _looked_at(len(source), LOOKED_AT, lambda index: opened(source.files[index]).close())
        if bad:
            return _told(bad, min(LOOKED_AT, len(source)), part, place)
    found: list[Diagnostic] = []
    if isinstance(source, CocoDataset):
        found = _detector_images(source, part, place)
        if any(finding.severity == "error" for finding in found):
            return found
    try:
        side = open_side(_alone(part), train=train, path=path, places=places)
        build_loader(side, seed=0).close()
    except KdError as error:
        return [*found, *_placed(error, place)]
    return found


def _alone(part: DataPart) -> DataPart:
    """The same side without workers, and with nothing decoded beforehand."""
    quick = part.dataloader.kwargs.model_copy(update={"num_workers": 0, "in_memory": False})
    return part.model_copy(update={"dataloader": part.dataloader.model_copy(update={"kwargs": quick})})


def _looked_at(count: int, most: int, look: Callable[[int], None]) -> list[BadSample]:
    """What `look` raises for at most so many samples, evenly spread over all."""
    bad: list[BadSample] = []
    for index in np.unique(np.linspace(0, count - 1, most).astype(int)).tolist() if count else ():
        try:
            look(index)
        except BadSample as error:
            bad.append(error)
    return bad


def _told(bad: Sequence[BadSample], looked_at: int, part: DataPart, place: SpecPath) -> list[Diagnostic]:
    """KD511 for the first bad ones, and for how many there are."""
    messages = [f"`{error.name}` can't be read: {error.reason}" for error in bad[:TOLD]]
    if len(bad) > TOLD:
        messages.append(f"{len(bad)} of {looked_at} images looked at can't be read")
    return [_bad_image(message, part, place) for message in messages]


def _detector_images(source: CocoDataset, part: DataPart, place: SpecPath) -> list[Diagnostic]:
    """KD511 for images that are missing, all in one, and for those looked at that are not as annotated."""
    missing = _missing(source)
    found = []
    if missing:
        names = ", ".join(f"`{name}`" for name in missing[:TOLD]) + (", ..." if len(missing) > TOLD else "")
        where = " and ".join(f"`{root}`" for root in source.reader.roots)
        counted = "1 image is" if len(missing) == 1 else f"{len(missing)} images are"
        message = f"{counted} missing of {len(source)} in {where}: {names}"
        found.append(_bad_image(message, part, place))
    bad = _looked_at(len(source), FEW, source.look_at)
    there = [error for error in bad if error.reason != MISSING]
    return [*found, *_told(there, min(FEW, len(source)), part, place)]


def _missing(source: CocoDataset) -> list[str]:
    """The names of all images that lie in their folder, and whose file is not there."""
    listed: dict[str, set[str]] = {}
    missing = []
    for index in range(len(source)):
        try:
            file = source.file(index)
        except BadSample:
            continue
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        # The listing is quick and knows names by their bytes only: what it lacks is asked for.
        if name not in listed[folder] and not os.path.exists(file):
            missing.append(source.name(index))
    return missing


def _files_in(folder: str) -> set[str]:
    """What lies in a folder but for links, whose targets may be gone; nothing where it can't be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except OSError:
        return set()


def _bad_image(message: str, part: DataPart, place: SpecPath) -> Diagnostic:
    skip = part.dataloader.kwargs.on_bad_sample == "skip"
    return Diagnostic(code="KD511", message=message, severity="warning" if skip else "error", path=place)


def _placed(error: KdError, place: SpecPath) -> list[Diagnostic]:
    return [d if d.path is not None else replace(d, path=place) for d in error.diagnostics]
