"""Files written whole or not at all; a disk that refuses is RunError KD740, which names the file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kdcli.errors import RunError

TEMPORARY = ".tmp"


def expanded(name: str | Path) -> Path:
    """A path as a shell reads it: `~/runs` lies in the home folder. A shell leaves `key=~/runs` as it is."""
    return Path(os.path.expanduser(name))


def beginning_of(path: Path, limit: int) -> bytes:
    """The first bytes of a regular file; OSError for any other, which might wait for a writer for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = b""
        while len(content) < limit and (part := os.read(handle, limit - len(content))):
            content += part
        return content
    finally:
        os.close(handle)


def write_whole(path: Path, content: str | bytes | memoryview | Callable[[BinaryIO], Any]) -> Path:
    """Write a file so that `path` appears with all its bytes on disk, or stays as it was; returns the path.

    content: text, bytes, or a function that writes to the open file. Raises RunError KD740.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    return path


def sweep_temporary(folder: Path) -> None:
    """Delete the temporary files that a killed process left."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Flush a file that was appended to down to the disk; a missing file is no error."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert OSError inside the block into RunError KD740."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> RunError:
    """RunError KD740 for a write that failed, in one line."""
    return RunError.of(
        "KD740",
        f"cannot write {path}: {error.strerror or error}",
        "free some space or choose another folder (`saver.save_dir` for a run); what was saved before is whole",
    )


def folder_gone(path: Path, reason: str | None = None) -> RunError:
    """RunError KD772 for a run folder, or a file in it, that went away. reason: what the system says of it."""
    what = (
        f"can't be reached any more: {reason}" if reason else "was deleted, moved or replaced during the run"
    )
    return RunError.of(
        "KD772",
        f"{path} {what}",
        "put it back and continue with `--resume`, or start over with the same command",
    )


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
