"""torch.export: a graph for PyTorch's own runtimes, without the Python code that made it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast
from zipfile import ZipFile

import torch
from torch import Tensor

from kdcli.disk import asking, writing
from kdcli.exports.format import Answer
from kdcli.tasks.task import Portable, Tensors

METADATA = "kdcli.json"


class TorchExport:
    """A .pt2 file, metadata in its extra file kdcli.json; a detector's needs torchvision's operations."""

    suffix: ClassVar[str] = ".pt2"
    runner: ClassVar[str] = "torch.export"
    is_graph: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing is missing."""

    def write(self, student: Portable, example: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
        """Export with a free batch size."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(student, example, dynamic_shapes=free_batch(student))
            with writing(path), path.open("wb") as file:
                torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})

    def read(self, path: Path, student: Portable) -> Answer:
        """The program, loaded from the file."""
        with warnings.catch_warnings(), asking(path), path.open("rb") as file:
            import kdcli.models.detection.deploy.candidates  # noqa: F401  its operation is in detectors' files

            warnings.simplefilter("ignore")
            program: Any = torch.export.load(file).module()

        def answer(*inputs: Tensor) -> Tensors:
            with torch.no_grad():
                outputs = program(*inputs)
                return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

        return answer


def free_batch(student: Portable) -> dict[str, Any]:
    """The dynamic shapes of torch.export: the first size of every input is one free number."""
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in student.inputs}


def metadata_inside(path: Path) -> Mapping[str, str]:
    """What `write` was told, out of the archive alone: the program is not loaded. Empty where another made it."""
    with asking(path), ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/extra/{METADATA}"):
                with suppress(ValueError):
                    return cast("Mapping[str, str]", json.loads(archive.read(name)))
    return {}
