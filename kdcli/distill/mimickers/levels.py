"""The levels of a pyramid that a detector's mimic method tells apart, as its options say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcli.distill.mimickers.mimicker import Setting
from kdcli.errors import Findings, SpecError, SpecPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """levels: numbers of maps, successive. strides: of each, in pixels. base_scale: side of the smallest
    box of level 0, in pixels; one twice as large is of level 1."""

    levels: list[int]
    strides: list[int]
    base_scale: float


def read_levels(setting: Setting, options: Mapping[str, Any], prefix: str, count: int, maps: str) -> Levels:
    """`<prefix>_levels`, `<prefix>_strides` and `<prefix>_base_scale` of the options, checked.

    count: how many maps there are to number; maps: what the user calls them. Raises SpecError KD462 with
    all that is wrong, each at its own option.
    """
    found = Levels(
        levels=list(options[f"{prefix}_levels"]),
        strides=list(options[f"{prefix}_strides"]),
        base_scale=float(options[f"{prefix}_base_scale"]),
    )
    where: SpecPath = (*setting.path, "options")
    wrong = Findings()
    with wrong.part():
        _check_numbers(found.levels, count, maps, (*where, f"{prefix}_levels"))
    for index, stride in enumerate(found.strides):
        with wrong.part():
            if stride <= 0:
                raise SpecError.at(
                    (*where, f"{prefix}_strides", index),
                    "KD462",
                    f"a stride is more than 0, not {stride}",
                    "it is how many pixels of the image one cell of the map stands for",
                )
    with wrong.part():
        if not 0 < found.base_scale < math.inf:
            raise SpecError.at(
                (*where, f"{prefix}_base_scale"),
                "KD462",
                f"`{prefix}_base_scale` is more than 0 and finite, not {found.base_scale:g}",
                "it is the side in pixels of the smallest box of level 0: a box twice as large is of level 1",
            )
    wrong.raise_errors()
    return found


def _check_numbers(levels: list[int], count: int, maps: str, where: SpecPath) -> None:
    name = where[-1]
    if not levels or max(levels) >= count or min(levels) < 0:
        raise SpecError.at(
            where, "KD462", f"levels {levels} of {count} {maps}", f"`{name}` are indices into them, from 0 on"
        )
    if levels != list(range(levels[0], levels[0] + len(levels))):
        # A box of a level that is not there would be left out without a word.
        first = min(levels)
        last = min(count, max(max(levels) + 1, first + len(levels)))
        raise SpecError.at(
            where,
            "KD462",
            f"levels {levels} are not successive",
            f"every size of box needs its map: write `{list(range(first, last))}`",
        )
