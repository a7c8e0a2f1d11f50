"""The one place that asks the file system: a path that it refuses is one RunError with the path and what to do.

Files are written whole or not at all (KD740); what is asked or read and refused is KD521. `at_path` puts such an error
at a key of the spec. What is written lies beside its place under a temporary name, `<name>.<pid>-<computer>.tmp`,
until it is whole. A process that is killed leaves it there: `sweep_temporary` deletes what no living process can own.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from kdcli.errors import RunError, SpecError, SpecPath

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

LONG = 160
"""Of a longer path a message shows beginning and end."""

Name = str | os.PathLike[str]

REASONS: dict[int, tuple[str, str]] = {
    errno.EACCES: (
        "permission denied",
        "ask for the right to it and to every folder above (`ls -ld`, `chmod`)",
    ),
    errno.EPERM: ("operation not permitted", "ask for the right to it, or name another place"),
    errno.ENAMETOOLONG: (
        "the name is too long",
        "a name has at most 255 bytes, a path 4,096: is it a file's name?",
    ),
    errno.ELOOP: ("its symbolic links lead in a circle", "name the real file or folder"),
    errno.ENOTDIR: ("a part of it is a file, not a folder", "does a file stand where a folder is meant?"),
    errno.ENOENT: ("no such file or folder", "is it named rightly, and still there?"),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.EEXIST: ("a file of that name is in the way", "move it, or name another place"),
    errno.EIO: ("the disk fails (input/output error)", "look at the disk, or copy the data to another one"),
    errno.ESTALE: (
        "the network disk has lost it (stale file handle)",
        "mount the disk again, then run again",
    ),
    errno.EMFILE: ("too many open files", "raise the limit (`ulimit -n 65536`) or lower `num_workers`"),
    errno.ENFILE: ("too many open files on this machine", "end other programs, or lower `num_workers`"),
    errno.ENOSPC: ("no space left on device", "free some space, or name a place on another disk"),
    errno.EDQUOT: ("disk quota exceeded", "free some of your space, or name a place on another disk"),
    errno.EFBIG: ("file too large", "raise the limit (`ulimit -f`), or name a place on another disk"),
    errno.EROFS: ("read-only file system", "name a place on another disk"),
}
"""Why a system refuses a path, and what to do about it, by the number of the error."""


def shown_path(path: Name) -> str:
    """A path as messages show it: without control characters, a very long one shortened."""
    text = "".join(sign if sign.isprintable() else "?" for sign in os.fspath(path))
    return text if len(text) <= LONG else f"{text[:60]}...{text[-30:]} ({len(text):,} characters)"


def reason_of(error: OSError | ValueError) -> tuple[str, str | None]:
    """Why the system refused a path, and what to do about it."""
    if isinstance(error, UnicodeError):
        return "its name can't be written in the system's encoding", "set a UTF-8 locale (`LC_ALL=C.UTF-8`)"
    if isinstance(error, ValueError):
        return "a path has no NUL character", "is it quoted rightly?"
    return REASONS.get(error.errno or 0, ((error.strerror or str(error)).lower(), None))


def refused(path: Name, error: OSError | ValueError) -> RunError:
    """RunError KD521 for a path that could not be asked or read, KD724 for want of memory."""
    reason, help = reason_of(error)
    code = "KD724" if isinstance(error, OSError) and error.errno == errno.ENOMEM else "KD521"
    return RunError.of(code, f"cannot use `{shown_path(path)}`: {reason}", help)


@contextmanager
def asking(path: Name) -> Iterator[None]:
    """Convert what the system refuses inside the block into RunError KD521 about the path."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from error
    except ValueError as error:
        if not is_about_the_name(error):
            raise
        raise refused(path, error) from error


def is_about_the_name(error: ValueError) -> bool:
    """Whether a ValueError is of a path that no system takes: a NUL character, a surrogate."""
    return (
        isinstance(error, UnicodeEncodeError) or "null byte" in str(error) or "null character" in str(error)
    )


@contextmanager
def at_path(path: SpecPath | None) -> Iterator[None]:
    """Set the path in the spec on errors about files, where there is one."""
    try:
        yield
    except RunError as error:
        if path is None:
            raise
        raise SpecError([replace(found, path=path) for found in error.diagnostics]) from error


def seen(path: Name) -> bool:
    """Whether something can be seen there; False too where the system refuses to say."""
    return os.path.exists(path)


def seen_file(path: Name) -> bool:
    """Whether a regular file can be seen there; False too where the system refuses to say."""
    return os.path.isfile(path)


def seen_folder(path: Name) -> bool:
    """Whether a folder can be seen there; False too where the system refuses to say."""
    return os.path.isdir(path)


def exists(path: Name) -> bool:
    """Whether something is there; RunError KD521 where the system refuses to say."""
    return _state(path) is not None


def is_file(path: Name) -> bool:
    """Whether a regular file is there; RunError KD521 where the system refuses to say."""
    state = _state(path)
    return state is not None and stat.S_ISREG(state.st_mode)


def is_folder(path: Name) -> bool:
    """Whether a folder is there; RunError KD521 where the system refuses to say."""
    state = _state(path)
    return state is not None and stat.S_ISDIR(state.st_mode)


def is_link(path: Name) -> bool:
    """Whether a symbolic link is there; RunError KD521 where the system refuses to say."""
    state = _state(path, follow=False)
    return state is not None and stat.S_ISLNK(state.st_mode)


def same(one: Name, other: Name) -> bool:
    """Whether two paths lead to one file or folder; False where one is not there. RunError KD521."""
    with asking(one):
        try:
            return os.path.samefile(one, other)
        except (FileNotFoundError, NotADirectoryError):
            return False


def free_bytes(folder: Name) -> int:
    """Bytes that are free on the disk of a folder; RunError KD521."""
    with asking(folder):
        return shutil.disk_usage(folder).free


def size_of(path: Name) -> int:
    """Bytes in a file; RunError KD521."""
    with asking(path):
        return os.stat(path).st_size


def _state(path: Name, follow: bool = True) -> os.stat_result | None:
    with asking(path):
        try:
            return os.stat(path, follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None


def bytes_in(path: Name) -> bytes:
    """The bytes of a file; RunError KD521."""
    with asking(path), open(path, "rb") as file:
        return file.read()


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


def text_in(path: Name, errors: str = "strict") -> str:
    """The UTF-8 text of a file; RunError KD521. Raises ValueError where it is no UTF-8."""
    return bytes_in(path).decode(errors=errors)


def entries(folder: Name) -> list[Path]:
    """What lies in a folder, sorted; RunError KD521."""
    with asking(folder):
        return sorted(Path(folder, name) for name in os.listdir(folder))


def entries_like(folder: Name, pattern: str) -> list[Path]:
    """What lies in a folder under names of a pattern (`step_*.pt`), sorted; none where there is no folder."""
    return [path for path in entries(folder) if fnmatchcase(path.name, pattern)] if is_folder(folder) else []


def expanded(name: Name) -> Path:
    """The path with `~` and `~user` replaced by their folders; RunError KD521 where there is no such user."""
    name = os.fspath(name)
    path = os.path.expanduser(name)
    if name.startswith("~") and path == name:
        user = name[1:].partition("/")[0]
        whose = f"there is no user `{shown_path(user)}`" if user else "your home folder is unknown"
        help = "write the path in full; a folder whose name begins with `~` is written `./~name`"
        raise RunError.of("KD521", f"cannot use `{shown_path(name)}`: {whose}", help)
    return Path(path)


def real_path(path: Name) -> Path:
    """The absolute path with all symbolic links followed; RunError KD521."""
    with asking(path):
        return Path(os.path.realpath(path))


def make_folder(path: Path) -> None:
    """Create a folder and those above it; RunError KD740."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file; a missing one is no error. RunError KD740."""
    with writing(path):
        path.unlink(missing_ok=True)


def prove_writable(path: Path) -> None:
    """Prove that a file can be written there, leaving nothing behind but its folder; RunError KD740."""
    if is_folder(path):
        raise disk_error(path, OSError(errno.EISDIR, "it is a folder"))
    # Beside the file, as `write_whole` does it: an existing one is replaced, not opened.
    trial = temporary_name(path)
    make_folder(path.parent)
    with writing(path):
        with open(trial, "wb"):
            pass
        trial.unlink()


def write_whole(path: Path, content: str | bytes | memoryview | Callable[[BinaryIO], Any]) -> Path:
    """Write a file so that `path` appears with all its bytes on disk, or stays as it was; returns the path.

    content: text, bytes, or a function that writes to the open file. Raises RunError KD740.
    """
    with writing(path), written_beside(path) as temporary, open(temporary, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
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


@contextmanager
def filled(folder: Path, replaced: Iterable[str] = ()) -> Iterator[Path]:
    """The temporary folder to be filled in the `with` block; what is in it appears in `folder` at its end.

    replaced: names in `folder` to be deleted then. Where the block raises, all stays as it was. RunError KD740.
    """
    folder = real_path(folder)
    new = not is_folder(folder)
    # A folder that is there may be a disk of its own or somebody's working directory: it is not renamed over.
    temporary = temporary_name(folder if new else folder / folder.name)
    make_folder(temporary.parent)
    sweep_temporary(temporary.parent, folder.name)
    with writing(folder):
        temporary.mkdir()
    try:
        yield temporary
        with writing(folder):
            if new:
                temporary.rename(folder)
            else:
                for name in replaced:
                    delete_tree(folder / name)
                for path in entries(temporary):
                    path.rename(folder / path.name)
            _flush_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def delete_tree(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; a missing one is no error. OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def process_facts(pid: int | None) -> list[str]:
    """What Linux tells of a process behind its name, its state first; nothing where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _start_of(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; None where the system does not say."""
    facts = process_facts(pid)
    try:
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
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        os.fsync(handle)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert what the system refuses inside the block into RunError KD740."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
    except ValueError as error:
        if not is_about_the_name(error):
            raise
        raise disk_error(path, error) from error


ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_error(path: Path, error: OSError | ValueError) -> RunError:
    """RunError KD740 for a write that failed, in one line."""
    reason, help = reason_of(error)
    if isinstance(error, OSError):
        reason = error.strerror or reason
    number = error.errno if isinstance(error, OSError) else None
    if number not in (errno.EMFILE, errno.ENFILE):
        first = "free some space or" if number in ROOM else "ask for the right to write there or"
        help = f"{first} choose another folder (`saver.save_dir` for a run)"
    return RunError.of(
        "KD740", f"cannot write {shown_path(path)}: {reason}", f"{help}; what was saved before is whole"
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
