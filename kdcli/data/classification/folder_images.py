"""The image files below a folder, and what lies there beside them and is left out: nothing is skipped unsaid."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdcli.data.image_readers import SUFFIXES

NOT_DECODED = (
    *(".avif", ".bil", ".cr2", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jp2", ".jxl", ".nef"),
    *(".npy", ".psd", ".svg"),
)
"""Images of formats that are not read."""
LISTED = 10
"""So many kinds of what is left out are named."""

Left = Counter[tuple[str, str]]
"""How many of each kind: ("file", "`.txt`")."""


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden, or one that macOS or Windows put there for itself."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def images_below(folder: Path) -> tuple[list[str], Left]:
    """Every image file below the folder, sorted, and what is left out; linked folders are followed, each once.

    Raises OSError where a folder can't be listed.
    """
    found: list[str] = []
    left: Left = Counter()
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        left.update(("folder", f"`{name}`") for name in folders if is_left_out(name))
        folders[:] = [name for name in folders if not is_left_out(name)]
        for name in names:
            if not is_left_out(name) and name.lower().endswith(SUFFIXES):
                found.append(os.path.join(place, name))
            else:
                left[_kind_of(name)] += 1
    return sorted(found), left


def beside_classes(root: Path) -> Left:
    """What of a root is in no class folder and looks as if it should be: images, and hidden folders."""
    left: Left = Counter()
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                left.update([("folder", f"`{entry.name}`")] if is_left_out(entry.name) else [])
            elif not is_left_out(entry.name) and entry.name.lower().endswith(SUFFIXES):
                left["image", "beside the class folders"] += 1
    return left


def told(left: Mapping[tuple[str, str], int]) -> str:
    """`3 files `._*` (macOS's), 1 folder `.ipynb_checkpoints``: the most frequent first."""
    ranked = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join([*_phrases(ranked[:LISTED]), *_rest(ranked[LISTED:])])


def _raise(error: OSError) -> None:
    raise error


def _phrases(ranked: list[tuple[tuple[str, str], int]]) -> Iterator[str]:
    for (what, which), count in ranked:
        yield f"{count:,} {what}{'' if count == 1 else 's'} {which}"


def _rest(ranked: list[tuple[tuple[str, str], int]]) -> list[str]:
    return [f"{sum(count for _, count in ranked):,} of other kinds"] if ranked else []


def _kind_of(name: str) -> tuple[str, str]:
    if name.startswith("._"):
        return "file", "`._*` (macOS's)"
    if is_left_out(name):
        return "file", f"`{name}`" if name in ("Thumbs.db", "desktop.ini", ".DS_Store") else "`.*` (hidden)"
    suffix = os.path.splitext(name)[1].lower()
    if not suffix:
        return "file", "without a suffix"
    return "file", f"`{suffix}`" + (" (not read: save as PNG or JPEG)" if suffix in NOT_DECODED else "")
