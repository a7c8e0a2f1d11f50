"""Files written whole or not at all; a disk that refuses is RunError KD740, which names the file.

What is written lies beside its place under a temporary name, `<name>.<process id>-<computer>.tmp`, until it is
whole. A process that is killed leaves it there: `sweep_temporary` deletes what no living process can own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from kdcli.errors import RunError

TEMPORARY = ".tmp"

LEFTOVERS = (
    re.compile(r"(?P<name>.+)\.(?P<pid>\d+)-(?P<computer>[0-9a-f]{8})\.tmp"),
    # Names that kdcli gave before 0.3, and these alone: a file of the user's may look like much else.
    re.compile(r"(?P<name>.+\.\w+)\.(?P<pid>\d+)\.tmp"),
    re.compile(r"\.(?P<name>.+\.safetensors)\.(?P<pid>\d+)\.part"),
    re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d+)(?P<suffix>\.(?:onnx|pt2|safetensors))"),
    re.compile(r"\.(?P<name>.+-[0-9a-f]{16})\.(?P<pid>\d+)"),
)
"""Temporary names: the place that was to be taken, by which process, on which computer."""

OLD_SECONDS = 86400.0
"""A temporary file of another computer that nobody has written to for so long is a leftover."""


CLOCK_SECONDS = 5.0
"""By how much the clocks of a file system and of this computer may differ."""


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
    try:
        with written_beside(path) as temporary, open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(path, error) from error
    return path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """The temporary path for a file to be written in the `with` block, which takes the name `path` at its end.

    Where the block raises, `path` stays as it was. What a killed process left of the same file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporary(path.parent, path.name)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """The path under which this process makes a file or a folder before it takes the name `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}-{_computer()}{TEMPORARY}")


def sweep_temporary(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files and folders that killed processes left.

    name: of the one file or folder that they were to become; else all in the folder. Left alone is what a living
    process of this computer may be writing, what another computer has written to within a day, and what may not be
    deleted.
    """
    try:
        paths = list(folder.iterdir())
    except OSError:
        return
    for path in paths:
        match = next((match for one in LEFTOVERS if (match := one.fullmatch(path.name))), None)
        if match is None or path.is_symlink():
            continue
        named = match.groupdict()
        meant = named.get("name") or f"{named['stem']}{named['suffix']}"
        while (inner := LEFTOVERS[0].fullmatch(meant)) is not None:  # the temporary file of a temporary file
            meant = inner["name"]
        if (name is None or meant == name) and _is_left(path, int(named["pid"]), named.get("computer")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def _is_left(path: Path, pid: int, computer: str | None) -> bool:
    """Whether no living process can be writing a temporary file; computer: None in names of before 0.3."""
    try:
        written = path.stat().st_mtime
    except OSError:
        return False
    if computer not in (None, _computer()):
        return time.time() - written > OLD_SECONDS
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass  # another user's process
    # In a container the next process often has the same number: the file is then older than the process.
    started = _start_of(pid)
    return started is not None and written < started - CLOCK_SECONDS


def _start_of(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; None where the system does not say."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        booted = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
        return float(booted[1]) + float(facts[19]) / os.sysconf("SC_CLK_TCK") if booted else None
    except (OSError, ValueError, IndexError):
        return None


@cache
def _computer() -> str:
    """Eight hex digits that stand for this computer: names of computers may hold what a file name can't."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


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
