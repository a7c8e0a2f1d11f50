"""The samples of one side of the data as a list: the name, label and content of each, and the class names."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

FORMAT = 1
LEVEL = 3
"""Of gzip: of ImageNet's training list 10.7 MB in half a second; level 9 gives 9.3 MB in four."""

KINDS = ("images", "arrays", "boxes")
"""What a list is of: image files with classes, images in memory with classes, image files with boxes."""


class Other(NamedTuple):
    """One sample in two lists: what was said of it before, and what is said now."""

    name: str
    before: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Samples in their order, one entry of each list a sample.

    names: relative to the data's folder. labels: the class's number; of boxes a checksum. contents: the bytes of
    the file or a checksum of the pixels, "-" where neither is known. classes: the names in the order of their
    numbers. truth: a checksum of the annotations that boxes are measured by, None where there are none.
    """

    kind: str
    classes: tuple[str, ...] | None
    truth: str | None = None
    names: Sequence[str]
    labels: Sequence[str]
    contents: Sequence[str]

    def text(self) -> bytes:
        """The list as tab-separated lines, after one of JSON; equal lists give equal bytes."""
        said = {"format": FORMAT, "kind": self.kind, "classes": self.classes, "truth": self.truth}
        head = json.dumps(said)
        rows = map("\t".join, zip(self.labels, self.contents, map(_escaped, self.names), strict=True))
        # Names of files may hold bytes that are no UTF-8: Python keeps each as a lone surrogate.
        return "\n".join([head, *rows]).encode("utf-8", "surrogatepass")


def packed(text: bytes) -> bytes:
    """A list's text compressed; equal texts give equal bytes."""
    return gzip.compress(text, LEVEL, mtime=0)


def unpacked(data: bytes) -> bytes | None:
    """What `packed` was given; None where the bytes are damaged."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def listing_from(text: bytes) -> Listing:
    """What `Listing.text` gave; raises ValueError where it is none of this version."""
    head, *rows = text.decode("utf-8", "surrogatepass").split("\n")
    said = json.loads(head)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError("no list of samples")
    columns = list(zip(*(row.split("\t", 2) for row in rows), strict=True)) or [(), (), ()]
    labels, contents, names = columns
    return Listing(
        kind=str(said["kind"]),
        classes=None if said["classes"] is None else tuple(said["classes"]),
        truth=said["truth"],
        names=[_plain(name) for name in names],
        labels=labels,
        contents=contents,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How two lists differ. ordered: the same samples come in another order; classes: the names are others.

    truth: what is measured by is another.
    """

    came: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)
    labels: list[Other] = field(default_factory=list)
    contents: list[Other] = field(default_factory=list)
    reordered: bool = False
    classes: bool = False
    truth: bool = False


def changes(before: Listing, now: Listing) -> Changes:
    """What came, went, or is said otherwise; a name that is there several times counts each time."""
    old_names, new_names = _told_apart(before.names), _told_apart(now.names)
    old, new = ({name: at for at, name in enumerate(names)} for names in (old_names, new_names))
    both = [(before.names[place], place, new[name]) for name, place in old.items() if name in new]
    labels, contents = (
        [Other(name, was[i], is_[j]) for name, i, j in both if was[i] != is_[j]]
        for was, is_ in ((before.labels, now.labels), (before.contents, now.contents))
    )
    places = [place for _, _, place in both]
    return Changes(
        came=[now.names[place] for name, place in new.items() if name not in old],
        went=[before.names[place] for name, place in old.items() if name not in new],
        labels=labels,
        contents=contents,
        reordered=any(one > other for one, other in pairwise(places)),
        classes=before.classes != now.classes,
        truth=before.truth != now.truth,
    )


def _told_apart(names: Sequence[str]) -> Sequence[str]:
    """The names, each that was there before with how often; no file's name holds the zero between."""
    if len(set(names)) == len(names):
        return names
    seen: Counter[str] = Counter()
    apart = []
    for name in names:
        apart.append(f"{name}\0{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return apart


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n") if "\\" in name or "\n" in name else name


def _plain(name: str) -> str:
    if "\\" not in name:
        return name
    return "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\"))
