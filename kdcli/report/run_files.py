"""Writing files of a run: a full or closed disk is one clear line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcli.errors import RunError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says no to into a RunError (KD740) that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError.of(
            "KD740",
            f"cannot write {path}: {error.strerror or error}",
            "free some space or choose another folder; what was saved before is whole",
        ) from error


def replace_file(path: Path, content: str | bytes) -> Path:
    """Write a whole file at once: whoever reads it sees the old content or the new, never half of it."""
    beside = path.with_name(path.name + ".new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    return path
