"""Findings about lists of image files: missing, damaged, all alike, or in need of `value_range` or `background`.

A file is damaged where its header or its end is wrong, which takes a few microseconds to see. Only files whose end is
not where their format puts it are decoded, so that a harmless trailer (a phone's film behind the photo) is no finding.
Damage in the middle is not seen.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcli.data.image_readers import PillowReader, load, numbers_in, opened
from kdcli.data.pixel_values import depth_of, has_alpha, what_to_write
from kdcli.data.sources import BadSample
from kdcli.disk import exists
from kdcli.errors import Diagnostic, RunError, SpecPath

NAMED = 5
"""How many bad images a message names."""

WITH_ALPHA = 2000
"""How many images with an alpha channel, evenly spread, are decoded to see whether they are transparent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedAt:
    """Paths in the spec for findings about one side's images. reader: of its image reader. skip: leave bad ones out."""

    dataset: SpecPath
    reader: SpecPath
    skip: bool = False

    @property
    def severity(self) -> Literal["error", "warning"]:
        """Severity of a finding about an image that can't be read."""
        return "warning" if self.skip else "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFindings:
    """Findings about image files. known: the files that have one. sizes: an example file for each image size."""

    findings: tuple[Diagnostic, ...]
    known: frozenset[str]
    sizes: tuple[str, ...] = ()


def missing_images(files: Sequence[str], reader: PillowReader, reported_at: ReportedAt) -> ImageFindings:
    """KD511 for all images whose file is not there."""
    gone = _missing(files)
    if not gone:
        return ImageFindings(findings=(), known=frozenset())
    names = ", ".join(f"`{_short(file, reader)}`" for file in gone[:NAMED])
    names += ", ..." if len(gone) > NAMED else ""
    folders = " and ".join(f"`{root}`" for root in reader.roots)
    counted = "1 image is" if len(gone) == 1 else f"{len(gone)} images are"
    message = f"{counted} missing of {len(files)} in {folders}: {names}"
    return ImageFindings(findings=(_bad(message, reported_at),), known=frozenset(gone))


def scanned_images(
    files: Sequence[str],
    reader: PillowReader,
    reported_at: ReportedAt,
    *,
    also: Callable[[int, Image.Image], None] | None = None,
    progress: Progress | None = None,
) -> ImageFindings:
    """KD511 for files whose header or end is wrong, and for numbers and alpha that the reader has no rule for.

    also, progress: as in `scan`.
    """
    seen = scan(files, also=also, progress=progress)
    found = unreadable(seen.bad, len(files), reported_at)
    known = {bad.name for bad in seen.bad}
    rule = reader.rule
    if rule.value_range is None:
        for depth, deep in seen.deep.items():
            message = _without_range(depth, deep, len(files), rule.where)
            found.append(_bad(message, reported_at, reported_at.reader))
            known.update(deep)
    if rule.background is None and seen.alpha:
        refused = refused_alpha(seen.alpha, reader, progress)
        if refused:
            looked_at = min(WITH_ALPHA, len(seen.alpha))
            more = (
                f" ({len(refused)} of {looked_at} with an alpha channel are so)" if len(refused) > 1 else ""
            )
            message = f"`{refused[0].name}` can't be read: {refused[0].reason}{more}"
            found.append(_bad(message, reported_at, reported_at.reader))
            known.update(seen.alpha)
    return ImageFindings(findings=tuple(found), known=frozenset(known), sizes=tuple(seen.sizes.values()))


def unreadable(bad: Sequence[BadSample], looked_at: int, reported_at: ReportedAt) -> list[Diagnostic]:
    """KD511 for the first few images that can't be read, and for how many there are."""
    messages = [f"`{error.name}` can't be read: {error.reason}" for error in bad[:NAMED]]
    if len(bad) > NAMED:
        messages.append(f"{len(bad)} of {looked_at} images looked at can't be read")
    return [_bad(message, reported_at) for message in messages]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, most).astype(int)).tolist() if count else []


def refused_alpha(
    files: Sequence[str], reader: PillowReader, progress: Progress | None = None
) -> list[BadSample]:
    """The errors that reading raises for transparent images among the files; of many, WITH_ALPHA are tried."""
    refused = []
    indices = spread(len(files), WITH_ALPHA)
    for number, index in enumerate(indices):
        try:
            reader.read(files[index])
        except BadSample as reason:
            refused.append(reason)
        if progress is not None and (number + 1) % EVERY == 0:
            progress(number + 1, len(indices))
    return refused


def _without_range(depth: str, files: Sequence[str], total: int, where: str) -> str:
    """The message for files of one depth without a `value_range`; the range is proposed from several of them."""
    ranges = []
    for index in spread(len(files), LOOKED_AT):
        try:
            found = numbers_in(files[index])
        except BadSample:
            continue
        ranges += [found] if found is not None else []
    both = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
    counted = "" if len(files) == 1 else f", and {len(files) - 1} more of {total} images,"
    return f"`{files[0]}`{counted} can't be read: {what_to_write(depth, both, where)}"


def _bad(message: str, reported_at: ReportedAt, path: SpecPath | None = None) -> Diagnostic:
    return Diagnostic(
        code="KD511", message=message, severity=reported_at.severity, path=path or reported_at.dataset
    )


def _missing(files: Sequence[str]) -> list[str]:
    """The files that do not exist."""
    listed: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        # The listing is quick and knows names by their bytes only: what it lacks is asked for.
        if name not in listed[folder] and _is_gone(file):
            missing.append(file)
    return missing


def _is_gone(file: str) -> bool:
    try:
        return not exists(file)
    except RunError:
        return False  # what the system refuses is told where the file is opened


def _files_in(folder: str) -> set[str]:
    """Names in a folder without links, whose targets may be gone; empty where it can't be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except OSError:
        return set()


def _short(file: str, reader: PillowReader) -> str:
    """The file's name as a list has it."""
    starts = (os.path.join(root, "") for root in reader.roots)
    return next((file[len(start) :] for start in starts if file.startswith(start)), file)


Progress = Callable[[int, int], None]
"""Called with how many files are done, and of how many."""

TAIL = 2048
"""How many last bytes of a file are searched for its end marker."""
EVERY = 256
"""Progress is reported each time so many files are done."""
SIZES = 64
"""For how many image sizes an example file is kept."""
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
    progress: Progress | None = None,
) -> Scan:
    """What the header and the end of each image file say, in the order of the files.

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
        if progress is not None and ((number + 1) % EVERY == 0 or number + 1 == len(files)):
            progress(number + 1, len(files))
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
    declared = int(struct.unpack_from("<I", handle.read(6), 2)[0])
    return 0 < declared <= size


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


LOOKED_AT = 64
"""How many images, evenly spread, stand for the whole set."""


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
        images_are = "the image looked at is" if count == 1 else f"{all_of_them} images looked at are"
        return f"{images_are} {which}: there is nothing to learn from"
    if count > 1 and same:
        return f"{all_of_them} images looked at have the same pixels: there is nothing to learn from"
    return None


def _colour(levels: tuple[float, ...]) -> str:
    if len(set(levels)) == 1:
        named = {0: "black", 255: "white"}.get(int(levels[0]))
        return named or f"gray of the one value {levels[0]:g}"
    return f"of the one colour [{', '.join(f'{level:g}' for level in levels)}]"
