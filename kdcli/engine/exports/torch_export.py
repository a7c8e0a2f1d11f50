"""torch.export: a graph for PyTorch's own runtimes, without the Python code that made it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdcli.engine.exports.format import Answer
from kdcli.engine.exports.portable import Portable

METADATA = "kdcli.json"


class TorchExport:
    """A .pt2 file, metadata in its extra file kdcli.json."""

    suffix: ClassVar[str] = ".pt2"
    runner: ClassVar[str] = "torch.export"

    def check(self) -> None:
        """Nothing is missing."""

    def write(self, student: Portable, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
        """Export with a free batch size."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                student, (example,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}}
            )
            with path.open("wb") as file:
                torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})

    def read(self, path: Path, student: Portable) -> Answer:
        """The program, loaded from the file."""
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            program: Any = torch.export.load(file).module()

        def answer(image: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = program(image)
                return logits

        return answer
