"""Categories of two annotation files, matched by their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matched:
    """by_name: whether names decided, or else ids with their names, since a file has a name twice.

    ids: the learnt id of each own one. strange: own ids without one. lacking: learnt ids without an own one.
    """

    by_name: bool
    ids: Mapping[int, int]
    strange: tuple[int, ...]
    lacking: tuple[int, ...]

    @property
    def fits(self) -> bool:
        """Whether every own category is a learnt one; where names can't tell them apart, all are alike."""
        return not self.strange and (self.by_name or not self.lacking)


def match(learnt: Mapping[int, str], own: Mapping[int, str]) -> Matched:
    """What each category of a file is among those that were trained on; both: names by id.

    Names are the same letter by letter, however Unicode composes these.
    """
    by_name = all(len({one_form(name) for name in names.values()}) == len(names) for names in (learnt, own))
    if by_name:
        places = {one_form(name): category for category, name in learnt.items()}
        found = {category: places.get(one_form(name)) for category, name in own.items()}
    else:
        alike = {c for c, name in own.items() if c in learnt and one_form(learnt[c]) == one_form(name)}
        found = {category: category if category in alike else None for category in own}
    ids = {category: other for category, other in found.items() if other is not None}
    strange = tuple(category for category in own if category not in ids)
    return Matched(by_name, ids, strange, tuple(c for c in learnt if c not in set(ids.values())))


def one_form(name: str) -> str:
    """A name as names are compared: letters with marks as one character (NFC)."""
    return unicodedata.normalize("NFC", name)
