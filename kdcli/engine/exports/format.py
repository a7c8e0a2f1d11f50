"""What an export format does: write a student, then read it back as somebody else would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor

from kdcli.engine.exports.portable import Portable

Answer = Callable[[Tensor], Tensor]
"""Logits [B, K] of images [B, C, H, W], for any B."""


class Format(Protocol):
    """One format. suffix: of its files. runner: what runs the file again, for people."""

    suffix: ClassVar[str]
    runner: ClassVar[str]

    def check(self) -> None:
        """RunError KD760 where a library is missing."""
        ...

    def write(self, student: Portable, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; example: at least 2 images. Whatever it raises is the student's fault."""
        ...

    def read(self, path: Path, student: Portable) -> Answer:
        """What answers from the file alone; student: fresh, with random weights, where a format needs one."""
        ...
