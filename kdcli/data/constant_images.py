"""Image sets that hold no pictures: every image of one colour, or all of them the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LOOKED_AT = 64
"""So many images, evenly spread, tell for the whole set."""


def constant_images(images: Iterable[Tensor]) -> str | None:
    """What is wrong with images [C, H, W] that differ in nothing; None where one of them holds a picture.

    Two of them are held at a time.
    """
    first: Tensor | None = None
    count, plain, same = 0, True, True
    colours: set[tuple[float, ...]] = set()
    for image in images:
        count += 1
        first = image if first is None else first
        same = same and torch.equal(first, image)
        plain = plain and bool((image == image[:, :1, :1]).all())
        if plain:
            colours.add(tuple(image[:, 0, 0].tolist()))
    all_of_them = "both" if count == 2 else f"all {count}"
    if count and plain:
        which = _colour(*colours) if len(colours) == 1 else "of one colour each"
        told = "the image looked at is" if count == 1 else f"{all_of_them} images looked at are"
        return f"{told} {which}: there is nothing to learn from"
    if count > 1 and same:
        return f"{all_of_them} images looked at have the same pixels: there is nothing to learn from"
    return None


def _colour(levels: tuple[float, ...]) -> str:
    if len(set(levels)) == 1:
        named = {0: "black", 255: "white"}.get(int(levels[0]))
        return named or f"gray of the one value {levels[0]:g}"
    return f"of the one colour [{', '.join(f'{level:g}' for level in levels)}]"
