"""JPEG files decoded by torchvision, in half of Pillow's time, where that gives the same bits; and at a smaller size.

Both use libjpeg-turbo, each its own copy, so that the bits are the same unless one of them was built otherwise. That
is looked at once in each process, on images of every kind that torchvision is given (`same_bits`); where a bit
differs, Pillow decodes everything. So it does where no transform has imported torchvision: that takes a second, more
than a few files are worth.
"""

from __future__ import annotations

import io
import sys
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile

REDUCTIONS = (8, 4, 2)
"""By so much libjpeg can make an image smaller while it decodes it."""

# Pillow's arguments for each kind of file that is met: ways of sampling colour, of coding, of storing RGB.
KINDS: tuple[dict[str, Any], ...] = (
    {"quality": 90},
    {"quality": 75, "progressive": True},
    {"quality": 90, "subsampling": "4:2:2"},
    {"quality": 95, "subsampling": "4:4:4"},
    {"quality": 90, "restart_marker_blocks": 4},
    {"quality": 90, "keep_rgb": True},
)


def is_plain(image: ImageFile.ImageFile) -> bool:
    """Whether an opened image is a JPEG in colour or gray."""
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def torchvision_pixels(file: str) -> NDArray[np.uint8] | None:
    """uint8 [H, W, 3] of a plain JPEG, the bits of Pillow's `convert("RGB")`; None where Pillow is to decode it.

    That is where torchvision is not imported, has other bits, or refuses the file: Pillow says then what is wrong with
    it. torchvision takes no file that Pillow refuses (tests/data/test_jpeg.py).
    """
    if "torchvision.io" not in sys.modules or not same_bits():
        return None
    try:
        return _decoded(torch.from_numpy(np.fromfile(file, dtype=np.uint8)))
    except (OSError, RuntimeError, ValueError):
        return None


@cache
def same_bits() -> bool:
    """Whether torchvision decodes a small image of each kind to the bits that Pillow gives; asked once, in 5 ms."""
    colours = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    # Odd sides and soft edges, where ways to enlarge the colours differ; few of its blocks are alike.
    colour = Image.fromarray(colours).resize((91, 67), Image.Resampling.BICUBIC)
    made = [(colour, kind) for kind in KINDS] + [(colour.convert("L"), {"quality": 90})]
    try:
        return all(_same(image, kind) for image, kind in made)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return False  # a torchvision without a decoder


def _same(image: Image.Image, kind: dict[str, Any]) -> bool:
    file = io.BytesIO()
    image.save(file, "JPEG", **kind)
    with Image.open(file) as written:
        pillow = np.asarray(written.convert("RGB"))
    found = _decoded(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    return found.shape == pillow.shape and bool((found == pillow).all())


def _decoded(data: torch.Tensor) -> NDArray[np.uint8]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        # torchvision will give its decoders up, and Pillow is here for the day after.
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = decode_jpeg(data, mode=ImageReadMode.RGB)
    found: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return found


def reduction_for(have: tuple[int, int], want: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 by which a side may be divided and still be at least what is wanted of it.

    have, want: (height, width) of the pixels that are seen, and of what they are resampled to.
    """
    return next(
        (n for n in REDUCTIONS if all(one // n >= least for one, least in zip(have, want, strict=True))), 1
    )


def reduce(image: ImageFile.ImageFile, reduction: int) -> None:
    """Let a plain JPEG that is opened be decoded at 1/`reduction` of its size, sides rounded up."""
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
