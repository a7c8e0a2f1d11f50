"""What an export format must do: write a student, then read it back as another program would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from kdcli.tasks.task import Portable, Tensors

Answer = Callable[..., Tensors]
"""The student's outputs from its inputs, for any batch size."""


class Format(Protocol):
    """One export format. suffix: of its files; runner: the program that runs the file, in words.

    is_graph: whether the file holds what is computed, not only the weights.
    """

    suffix: ClassVar[str]
    runner: ClassVar[str]
    is_graph: ClassVar[bool]

    def check(self) -> None:
        """Raise RunError KD760 where a library is missing."""
        ...

    def write(self, student: Portable, example: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; example: inputs of at least 2 images. Any exception counts as the student's fault."""
        ...

    def read(self, path: Path, student: Portable) -> Answer:
        """A function that computes outputs from the file alone; student: one with random weights, where needed."""
        ...
