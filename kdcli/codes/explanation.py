"""What one code means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """One code in words.

    title: the rule in a few words. why: what goes wrong otherwise, and the way out. example: a
    wrong line and the right one, or a command.
    """

    title: str
    why: str
    example: str
