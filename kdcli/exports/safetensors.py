"""safetensors: weights and metadata, for users who have the architecture in code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kdcli.exports.format import Answer
from kdcli.models.weights import save_safetensors
from kdcli.tasks.task import Portable, Tensors


class Safetensors:
    """One file under the names that the network's parameters have."""

    suffix: ClassVar[str] = ".safetensors"
    runner: ClassVar[str] = "torch"
    is_graph: ClassVar[bool] = False

    def check(self) -> None:
        """Nothing is missing."""

    def write(self, student: Portable, example: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the student's own weights."""
        save_safetensors(student.state(), path, {"format": "kdcli-student", **metadata})

    def read(self, path: Path, student: Portable) -> Answer:
        """A freshly built student with the weights of the file."""
        student.load(path)

        def answer(*inputs: Tensor) -> Tensors:
            with torch.inference_mode():
                return student.eager(*inputs)

        return answer
