"""What an export format does: write a student, then read it back as somebody else would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from kdcli.tasks.portable import Portable, Tensors

Answer = Callable[..., Tensors]
"""The student's outputs from its inputs, for any batch size."""


class Format(Protocol):
    """One format. suffix: of its files. runner: what runs the file again, for people.

    is_graph: whether the file holds what is computed, not only the weights.
    """

    suffix: ClassVar[str]
    runner: ClassVar[str]
    is_graph: ClassVar[bool]

    def check(self) -> None:
        """RunError KD760 where a library is missing."""
        ...

    def write(self, student: Portable, example: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; example: inputs of at least 2 images. Whatever it raises is the student's fault."""
        ...

    def read(self, path: Path, student: Portable) -> Answer:
        """What answers from the file alone; student: fresh, with random weights, where a format needs one."""
        ...
