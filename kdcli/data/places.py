"""Where a file named in a spec lies."""

from __future__ import annotations

from pathlib import Path


def find(name: str, base_dir: Path | None) -> Path:
    """A path of the spec: from the working directory, then from the spec's folder.

    What exists in neither comes back as it was written.
    """
    given = Path(name).expanduser()
    if not given.is_absolute() and not given.exists() and base_dir is not None:
        beside = base_dir / given
        if beside.exists():
            return beside
    return given
