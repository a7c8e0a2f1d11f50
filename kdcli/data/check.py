"""What the files say of a spec's data, for `validate --files`: they exist, can be read, and fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kdcli.data.build import build_loader, build_source
from kdcli.data.files import FileImages
from kdcli.data.image_readers import opened
from kdcli.data.sources import BadSample
from kdcli.errors import Diagnostic, KdError, SpecPath
from kdcli.spec.schema import DataPart

LOOKED_AT = 200
"""So many image files, evenly spread over the list, have their headers read."""

TOLD = 5
"""So many bad ones are named."""


def check_files(
    part: DataPart, path: SpecPath, base_dir: Path | None = None, *, train: bool = True
) -> list[Diagnostic]:
    """Every finding about one side's files, each with a path into the spec.

    Reads the lists whole, the headers of some images, and one sample through the transforms.
    """
    place = (*path, "dataset")
    try:
        source = build_source(part, train=train, path=path, base_dir=base_dir)
    except KdError as error:
        return _placed(error, place)
    if isinstance(source, FileImages):
        bad = _bad_files(source)
        if bad:
            severity = "warning" if part.dataloader.kwargs.on_bad_sample == "skip" else "error"
            looked_at = min(LOOKED_AT, len(source))
            found = [
                Diagnostic(
                    code="KD511",
                    message=f"`{error.name}` can't be read: {error.reason}",
                    severity="warning" if severity == "warning" else "error",
                    path=place,
                )
                for error in bad[:TOLD]
            ]
            if len(bad) > TOLD:
                message = f"{len(bad)} of {looked_at} images looked at can't be read"
                found.append(replace(found[0], message=message))
            return found
    try:
        build_loader(_alone(part), train=train, seed=0, path=path, base_dir=base_dir).close()
    except KdError as error:
        return _placed(error, place)
    return []


def _alone(part: DataPart) -> DataPart:
    """The same side without workers, and with nothing decoded beforehand."""
    quick = part.dataloader.kwargs.model_copy(update={"num_workers": 0, "in_memory": False})
    return part.model_copy(update={"dataloader": part.dataloader.model_copy(update={"kwargs": quick})})


def _bad_files(source: FileImages) -> list[BadSample]:
    bad: list[BadSample] = []
    for index in np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)) if len(source) else ():
        try:
            opened(source.files[index]).close()
        except BadSample as error:
            bad.append(error)
    return bad


def _placed(error: KdError, place: SpecPath) -> list[Diagnostic]:
    return [d if d.path is not None else replace(d, path=place) for d in error.diagnostics]
