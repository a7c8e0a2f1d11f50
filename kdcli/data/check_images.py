"""Findings about lists of image files: missing, damaged, of numbers or alpha that no rule says how to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from kdcli.data.constant_images import LOOKED_AT
from kdcli.data.image_readers import PillowReader, numbers_in
from kdcli.data.pixel_values import what_to_write
from kdcli.data.scan import EVERY, Told, scan
from kdcli.data.sources import BadSample
from kdcli.errors import Diagnostic, SpecPath

TOLD = 5
"""So many bad ones are named."""

WITH_ALPHA = 2000
"""So many images with an alpha channel, evenly spread, are decoded to see whether they are transparent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where findings stand in the spec. reader: of what says how images are read. skip: bad ones are skipped."""

    dataset: SpecPath
    reader: SpecPath
    skip: bool = False

    @property
    def severity(self) -> Literal["error", "warning"]:
        """Of images that can't be read."""
        return "warning" if self.skip else "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFindings:
    """findings: what is wrong. known: the files that are told of. sizes: a file for each size that occurs."""

    findings: tuple[Diagnostic, ...]
    known: frozenset[str]
    sizes: tuple[str, ...] = ()


def missing_images(files: Sequence[str], reader: PillowReader, where: Where) -> ImageFindings:
    """KD511 for all images whose file is not there."""
    gone = _missing(files)
    if not gone:
        return ImageFindings(findings=(), known=frozenset())
    names = ", ".join(f"`{_short(file, reader)}`" for file in gone[:TOLD])
    names += ", ..." if len(gone) > TOLD else ""
    folders = " and ".join(f"`{root}`" for root in reader.roots)
    counted = "1 image is" if len(gone) == 1 else f"{len(gone)} images are"
    message = f"{counted} missing of {len(files)} in {folders}: {names}"
    return ImageFindings(findings=(_bad(message, where),), known=frozenset(gone))


def scanned_images(
    files: Sequence[str],
    reader: PillowReader,
    where: Where,
    *,
    also: Callable[[int, Image.Image], None] | None = None,
    told: Told | None = None,
) -> ImageFindings:
    """KD511 for files whose header or end is wrong, and for numbers and alpha that the reader has no rule for.

    also, told: as in kdcli.data.scan.
    """
    seen = scan(files, also=also, told=told)
    found = told_of(seen.bad, len(files), where)
    known = {bad.name for bad in seen.bad}
    rule = reader.rule
    if rule.value_range is None:
        for depth, deep in seen.deep.items():
            message = _without_range(depth, deep, len(files), rule.where)
            found.append(_bad(message, where, where.reader))
            known.update(deep)
    if rule.background is None and seen.alpha:
        refused = refused_alpha(seen.alpha, reader, told)
        if refused:
            looked_at = min(WITH_ALPHA, len(seen.alpha))
            more = (
                f" ({len(refused)} of {looked_at} with an alpha channel are so)" if len(refused) > 1 else ""
            )
            message = f"`{refused[0].name}` can't be read: {refused[0].reason}{more}"
            found.append(_bad(message, where, where.reader))
            known.update(seen.alpha)
    return ImageFindings(findings=tuple(found), known=frozenset(known), sizes=tuple(seen.sizes.values()))


def told_of(bad: Sequence[BadSample], looked_at: int, where: Where) -> list[Diagnostic]:
    """KD511 for the first bad ones, and for how many there are."""
    messages = [f"`{error.name}` can't be read: {error.reason}" for error in bad[:TOLD]]
    if len(bad) > TOLD:
        messages.append(f"{len(bad)} of {looked_at} images looked at can't be read")
    return [_bad(message, where) for message in messages]


def spread(count: int, most: int) -> list[int]:
    """At most so many indices, evenly spread over all."""
    return np.unique(np.linspace(0, count - 1, most).astype(int)).tolist() if count else []


def refused_alpha(files: Sequence[str], reader: PillowReader, told: Told | None = None) -> list[BadSample]:
    """What reading raises for those of them that are transparent; of many, some are looked at."""
    refused = []
    indices = spread(len(files), WITH_ALPHA)
    for number, index in enumerate(indices):
        try:
            reader.read(files[index])
        except BadSample as reason:
            refused.append(reason)
        if told is not None and (number + 1) % EVERY == 0:
            told(number + 1, len(indices))
    return refused


def _without_range(depth: str, files: Sequence[str], total: int, where: str) -> str:
    """Of all files of one depth; the numbers are those of some, so that one dark image does not set the range."""
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


def _bad(message: str, where: Where, path: SpecPath | None = None) -> Diagnostic:
    return Diagnostic(code="KD511", message=message, severity=where.severity, path=path or where.dataset)


def _missing(files: Sequence[str]) -> list[str]:
    """Those whose file is not there."""
    listed: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        # The listing is quick and knows names by their bytes only: what it lacks is asked for.
        if name not in listed[folder] and not os.path.exists(file):
            missing.append(file)
    return missing


def _files_in(folder: str) -> set[str]:
    """What lies in a folder but for links, whose targets may be gone; nothing where it can't be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except OSError:
        return set()


def _short(file: str, reader: PillowReader) -> str:
    """The file's name as a list has it."""
    starts = (os.path.join(root, "") for root in reader.roots)
    return next((file[len(start) :] for start in starts if file.startswith(start)), file)
