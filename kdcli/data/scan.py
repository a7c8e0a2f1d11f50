"""Whether every image file of a list is whole, by its header and its end: a few microseconds each.

Nothing is decoded but the files whose end is not where their format puts it; those are read, so that a
harmless trailer (a phone's film behind the photo) is no finding. Damage in the middle is not seen.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image

from kdcli.data.image_readers import load, opened
from kdcli.data.pixel_values import depth_of, has_alpha
from kdcli.data.sources import BadSample

Told = Callable[[int, int], None]
"""Is called with how many are done, and of how many."""

TAIL = 2048
"""An end marker is looked for in so many last bytes."""
EVERY = 256
"""So often progress is told."""
SIZES = 64
"""Of so many sizes a file is remembered."""
STRIPS = ((273, 279), (324, 325))
"""TIFF's tags of where pixels lie in the file and how many bytes they take: strips, tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What headers and ends say of a list of files.

    bad: what can't be read whole. deep: the files with more than 8 bits a channel, by their mode (F, I;16,
    RGB;16). alpha: the files with an alpha channel and no more than 8 bits. sizes: for each width and height that
    occurs the first file that has it, for the first 64 of them.
    """

    bad: tuple[BadSample, ...]
    deep: Mapping[str, tuple[str, ...]]
    alpha: tuple[str, ...]
    sizes: Mapping[tuple[int, int], str]


def scan(
    files: Sequence[str],
    *,
    also: Callable[[int, Image.Image], None] | None = None,
    told: Told | None = None,
) -> Scan:
    """The scan of image files, in their order.

    also: is called with a file's number and its opened image, and may raise BadSample.
    """
    bad: list[BadSample] = []
    deep: dict[str, list[str]] = {}
    alpha: list[str] = []
    sizes: dict[tuple[int, int], str] = {}
    for number, file in enumerate(files):
        # One thread: the work is Python's, and two take longer than one.
        try:
            with opened(file) as image:
                depth, clear = depth_of(image), has_alpha(image)
                whole = _ends_well(file, image)
                if len(sizes) < SIZES:
                    sizes.setdefault(image.size, file)
                if also is not None:
                    also(number, image)
            if not whole:
                _decode(file)
            if depth is not None:
                deep.setdefault(depth, []).append(file)
            elif clear:
                alpha.append(file)
        except BadSample as reason:
            bad.append(reason)
        if told is not None and ((number + 1) % EVERY == 0 or number + 1 == len(files)):
            told(number + 1, len(files))
    by_depth = {depth: tuple(found) for depth, found in deep.items()}
    return Scan(bad=tuple(bad), deep=by_depth, alpha=tuple(alpha), sizes=sizes)


def _decode(file: str) -> None:
    """Read a file whose end is not where it should be; raises BadSample where that shows."""
    try:
        load(file)
    except BadSample as reason:
        raise BadSample(file, f"its end is missing: {reason.reason}") from reason


def _ends_well(file: str, image: Image.Image) -> bool:
    """Whether the end of a file is where its format puts it."""
    ends = ENDS.get(image.format or "")
    if ends is None:
        return True
    try:
        with open(file, "rb", buffering=0) as handle:
            size = os.fstat(handle.fileno()).st_size
            return ends(handle, size, image)
    except (OSError, struct.error, TypeError, ValueError, IndexError):
        return False  # the decoder says what is wrong


def _tail(handle: IO[bytes], size: int) -> bytes:
    handle.seek(-min(TAIL, size), os.SEEK_END)
    return handle.read(TAIL)


def _jpeg(handle: IO[bytes], size: int, image: Image.Image) -> bool:
    return b"\xff\xd9" in _tail(handle, size)


def _png(handle: IO[bytes], size: int, image: Image.Image) -> bool:
    return b"\0\0\0\0IEND\xaeB`\x82" in _tail(handle, size)


def _gif(handle: IO[bytes], size: int, image: Image.Image) -> bool:
    return _tail(handle, size).rstrip(b"\0").endswith(b"\x3b")


def _bmp(handle: IO[bytes], size: int, image: Image.Image) -> bool:
    told = int(struct.unpack_from("<I", handle.read(6), 2)[0])
    return 0 < told <= size


def _webp(handle: IO[bytes], size: int, image: Image.Image) -> bool:
    return int(struct.unpack_from("<I", handle.read(8), 4)[0]) + 8 <= size


def _tiff(handle: IO[bytes], size: int, image: Image.Image) -> bool:
    tags: Any = getattr(image, "tag_v2", {})
    for starts, lengths in STRIPS:
        if starts in tags and lengths in tags:
            return all(
                start + length <= size for start, length in zip(tags[starts], tags[lengths], strict=True)
            )
    return False


ENDS: Mapping[str, Callable[[IO[bytes], int, Image.Image], bool]] = {
    "JPEG": _jpeg,
    "MPO": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "DIB": _bmp,
    "WEBP": _webp,
    "TIFF": _tiff,
    "PPM": lambda handle, size, image: _raw(size, image),
}
"""By Pillow's name of the format: whether the file goes on to where it should."""


def _raw(size: int, image: Image.Image) -> bool:
    """Of PPM, PGM and PBM: whether there are as many bytes as the header says; False for numbers as text."""
    tile: Any = next(iter(getattr(image, "tile", ())), ("none",))
    if tile[0] != "raw":
        return False
    bits = {"1": 1, "L": 8, "RGB": 24, "I": 16}.get(image.mode, 32)
    return bool(tile[2] + (image.width * bits + 7) // 8 * image.height <= size)
