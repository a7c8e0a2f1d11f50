"""The levels of a pyramid that a detector's mimic method tells apart, as its options say."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.errors import SpecError, SpecPath


def check_levels(levels: Sequence[int], count: int, maps: str, where: SpecPath) -> None:
    """Raises SpecError KD462 where levels are no indices into the maps, or leave a gap.

    count: how many maps there are to number; maps: what the user calls them. where: of the option.
    """
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
