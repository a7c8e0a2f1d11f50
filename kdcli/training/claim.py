"""A run folder claimed by one run: a lock in it that rank 0 holds from before the first write to the end.

The lock is flock's on `.lock`, which the system lifts when the process ends, however it ends. Where the file system
has none, the file `.lock.alive` stands for it: made exclusively, touched every few seconds, and taken over by
another run once nobody has touched it for a while. `.lock` says who holds the folder, and stays behind as the mark
of a run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from kdcli import __version__
from kdcli.disk import beginning_of, disk_error, folder_gone, temporary_name
from kdcli.errors import RunError

LOCK = ".lock"
"""Who holds a run folder, as JSON, under flock."""

ALIVE = ".lock.alive"
"""The same where there is no flock; its time of change is the holder's last sign of life."""

BEAT_SECONDS = 10.0
STALE_SECONDS = 40.0
"""A holder that has given no sign of life for so long is gone."""

PATIENCE_SECONDS = 60.0
"""How long a job that was started again waits for the process that it takes the place of."""

NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
"""What flock fails with on a file system without locks."""

_open_handles: set[int] = set()
"""Descriptors of the claims of this process."""


def _close_in_child() -> None:
    # A data worker would keep the folder locked after its run was killed: flock lasts as long as any copy is open.
    for handle in _open_handles:
        with suppress(OSError):
            os.close(handle)
    _open_handles.clear()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that holds a run folder, or held it last.

    started: seconds since 1970. jobs: what started it (`slurm 12`, `launcher 3f2a`), for one that is started again
    to know its own. token: of one claim alone.
    """

    host: str
    pid: int
    started: float
    jobs: tuple[str, ...]
    token: str

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.started).astimezone()
        return f"pid {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S %Z}"


def holder_of(path: Path) -> Holder | None:
    """The holder that a lock file names; None where it names none."""
    try:
        content = json.loads(beginning_of(path, 4096))
        holder = Holder(
            host=str(content["host"]),
            pid=int(content["pid"]),
            started=float(content["started"]),
            jobs=tuple(map(str, content["jobs"])),
            token=str(content["token"]),
        )
        str(holder)  # a time that is none
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return holder


class Claim:
    """A run folder held by this process; made by `claim`.

    notices: what the user should know of how it is held.
    """

    def __init__(self, root: Path, holder: Holder, made: tuple[Path, ...]) -> None:
        self.root, self.holder, self.notices = root, holder, list[str]()
        self._made, self._made_lock = made, False
        self._lock: int | None = None
        self._ended = threading.Event()
        # Kept open, so that a folder made anew in its place can't have its number.
        self._folder = _remembered(os.open(root, os.O_RDONLY | os.O_DIRECTORY))

    def take(self) -> bool:
        """Lock the folder; False where another run holds it. Raises OSError."""
        try:
            handle = _locked(self.root / LOCK)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return self._take_by_beats()
        if handle is None:
            return False
        self._lock = _remembered(handle)
        if (self.root / ALIVE).exists():
            # From a machine where this file system has no locks.
            if not _is_stale(self.root / ALIVE):
                _closed(handle)
                self._lock = None
                return False
            (self.root / ALIVE).unlink(missing_ok=True)
        self._made_lock = os.fstat(handle).st_size == 0
        with suppress(OSError):  # on a full disk the lock stands without a name
            os.ftruncate(handle, 0)
            os.pwrite(handle, self._text(), 0)
        return True

    def _take_by_beats(self) -> bool:
        if not _made_alone(self.root / ALIVE, self._text()):
            return False
        self._made_lock = (self.root / LOCK).stat().st_size == 0
        (self.root / LOCK).write_bytes(self._text())
        threading.Thread(target=self._beat, name="kdcli-claim", daemon=True).start()
        self.notices.append(
            f"the file system of {self.root} has no file locks (flock): {ALIVE} is touched every "
            f"{BEAT_SECONDS:.0f} s instead, and counts as left behind after {STALE_SECONDS:.0f} s"
        )
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a folder that is gone is noticed by the run itself
                if self._is_held():
                    os.utime(self.root / ALIVE)

    def _text(self) -> bytes:
        return (json.dumps({"kdcli": __version__, **asdict(self.holder)}) + "\n").encode()

    def is_in_place(self) -> bool:
        """Whether the folder under this path still is the one that was opened. Raises OSError where there is none."""
        return os.path.samestat(os.stat(self.root), os.fstat(self._folder))

    def check(self) -> None:
        """Raise RunError KD772 where the folder is gone or another, KD773 where another run has taken it over."""
        try:
            same = self.is_in_place()
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            raise folder_gone(self.root, None if gone else error.strerror or str(error)) from None
        if not same:
            raise folder_gone(self.root)
        try:
            held = self._is_held() or self._take_again()
        except OSError as error:
            raise disk_error(self.root / LOCK, error) from error
        if not held:
            raise RunError.of(
                "KD773",
                f"another run has taken over {self.root}: {self._other() or 'its lock was removed'}",
                "let one run write to a folder: name another `saver.save_dir` for one of them",
            )

    def _is_held(self) -> bool:
        """Whether the lock in the folder is this claim's."""
        if self._lock is None:
            path = self.root / ALIVE
        else:
            path = self.root / LOCK
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(self._lock)):
                    return True
        holder = holder_of(path)
        return holder is not None and holder.token == self.holder.token

    def _take_again(self) -> bool:
        """Lock anew where the lock file was deleted; False where another run was faster."""
        if self._lock is None:
            return _made_alone(self.root / ALIVE, self._text())
        old, taken = self._lock, self.take()
        if taken:
            _closed(old)
        return taken

    def _other(self) -> Holder | None:
        return holder_of(self.root / (LOCK if self._lock is not None else ALIVE))

    def release(self) -> None:
        """Give the folder free, and remove it where nothing was written into it."""
        if os.getpid() != self.holder.pid:
            return
        self._ended.set()
        with suppress(OSError):
            if self._lock is None and self._is_held():
                (self.root / ALIVE).unlink()
        with suppress(OSError):
            # What this claim has made; a folder that is not empty stays. Without a file of a run it is no run's.
            if self._made_lock and all(path.name.startswith(".") for path in self.root.iterdir()):
                (self.root / LOCK).unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()
        if self._lock is not None:
            _closed(self._lock)
        _closed(self._folder)


@contextmanager
def claim(
    root: Path, *, restarted: bool = False, say: Callable[[str], object] | None = None
) -> Iterator[Claim]:
    """Hold a run folder for a `with` block; it is made where there is none.

    restarted: this process takes the place of one that may still be ending, which is waited for; say: takes the
    sentence that tells so. Raises RunError KD770 where another run holds it, KD740 where it can't be written.
    """
    held = _taken(root, restarted, say)
    try:
        yield held
    finally:
        held.release()


def _taken(root: Path, restarted: bool, say: Callable[[str], object] | None) -> Claim:
    until = time.monotonic() + PATIENCE_SECONDS
    attempts = 10
    while True:
        try:
            held = Claim(root, _this_process(), _make(root))
            try:
                if held.take():
                    if held.is_in_place():
                        return held
                    raise FileNotFoundError(errno.ENOENT, "it was made anew meanwhile", str(root))
                other = holder_of(root / ALIVE) or holder_of(root / LOCK)
            except BaseException:
                held.release()
                raise
            held.release()
        except OSError as error:
            attempts -= 1
            if isinstance(error, (FileNotFoundError, FileExistsError)) and attempts:
                continue  # a claim that ends may remove the folder just now: there for mkdir, gone for what follows
            raise disk_error(root, error) from error
        by = f"by {other}" if other is not None else "by another process"
        if not (restarted and _is_its_own(other, held.holder)) or time.monotonic() >= until:
            raise RunError.of(
                "KD770",
                f"{root} is being trained {by}",
                "wait until it ends, or train in another folder: `saver.save_dir=runs/second`",
            )
        if say is not None:
            say(
                f"{root} is still held {by}, which this one takes the place of: "
                f"waiting up to {PATIENCE_SECONDS:.0f} s for its end"
            )
            say = None
        time.sleep(0.2)


def _is_its_own(other: Holder | None, own: Holder) -> bool:
    """Whether the holder may be the process that this one takes the place of."""
    return other is None or not own.jobs or not set(other.jobs).isdisjoint(own.jobs)


def was_requeued() -> bool:
    """Whether Slurm has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


# locks


def _this_process() -> Holder:
    names = (("slurm", "SLURM_JOB_ID"), ("launcher", "TORCHELASTIC_RUN_ID"))
    given = [(name, os.environ.get(variable, "")) for name, variable in names]
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=time.time(),
        # torchrun calls a run `none` where nobody names it.
        jobs=tuple(f"{name} {value}" for name, value in given if value not in ("", "none")),
        token=uuid.uuid4().hex,
    )


def _make(root: Path) -> tuple[Path, ...]:
    """Make a folder with its parents; those that were not there before, the innermost first."""
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    return tuple(missing)


def _locked(path: Path) -> int | None:
    """The descriptor of the lock file, locked; None where another process has locked it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A claim that ends may have deleted the file between the two calls.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _made_alone(path: Path, text: bytes) -> bool:
    """Make a file that was not there, or that nobody has touched for long; False where another run has it."""
    for _ in range(2):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        except FileExistsError:
            if not _is_stale(path) or not _set_aside(path):
                return False
            continue
        with open(handle, "wb") as file:
            file.write(text)
        return True
    return False


def _is_stale(path: Path) -> bool:
    """Whether the last sign of life is long ago, by the clock of the file system, which all machines share."""
    probe = temporary_name(path.with_name(LOCK))
    try:
        probe.write_bytes(b"")
        os.utime(probe)
        return probe.stat().st_mtime - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True
    finally:
        probe.unlink(missing_ok=True)


def _set_aside(path: Path) -> bool:
    """Remove a stale file; False where another run has just replaced it by its own, which stays."""
    aside = temporary_name(path)
    try:
        before = path.stat()
        os.rename(path, aside)
        after = aside.stat()
    except FileNotFoundError:
        return True
    try:
        if (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
            return True
        with suppress(OSError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _remembered(handle: int) -> int:
    _open_handles.add(handle)
    return handle


def _closed(handle: int) -> None:
    _open_handles.discard(handle)
    with suppress(OSError):
        os.close(handle)
