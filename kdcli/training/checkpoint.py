"""Checkpoints that survive a killed run: written whole, verified, and never run code.

A checkpoint is one file `step_00001234-<first 16 hex digits of its SHA-256>.pt`: written beside, flushed
to disk, then renamed, so that a name always stands for exactly those bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from kdcli.errors import RunError

_NAME = re.compile(r"step_(\d{8,})-([0-9a-f]{16})\.pt")
TEMPORARY = ".tmp"


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, keep: int, best: int | None = None
) -> Path:
    """Write one checkpoint, then drop all but the newest `keep` and that of the step `best`.

    Raises RunError (KD740) where the disk is full or the folder can't be written; older checkpoints
    are untouched then.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    digest = hashlib.sha256(data).hexdigest()[:16]
    path = folder / f"step_{step:08d}-{digest}.pt"
    write_whole(path, lambda file: file.write(data))
    others = [other for other in checkpoints(folder) if other != path]
    twins = [other for other in others if step_of(other) == step]
    older = [other for other in others if step_of(other) < step]
    for old in (*twins, *(other for other in older[max(keep, 1) - 1 :] if step_of(other) != best)):
        old.unlink(missing_ok=True)
    return path


def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file so that `path` appears with all its bytes on disk, or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def to_disk(path: Path) -> None:
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


def disk_error(path: Path, error: OSError) -> RunError:
    """RunError KD740 for a write that failed, in one line."""
    reason = error.strerror or str(error)
    return RunError.of(
        "KD740",
        f"cannot write {path}: {reason}",
        "free some space or choose another `saver.save_dir`; what was saved before is whole",
    )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's file name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def newest_valid(folder: Path) -> Iterator[tuple[Path, dict[str, Any] | RunError]]:
    """Checkpoints from newest to oldest: a state, or why this one can't be used; ends at the first state."""
    for path in checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except RunError as error:
            yield path, error
            continue
        yield path, state
        return


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint without running code; raises RunError where it is truncated, damaged or foreign."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError.of("KD710", f"cannot read the checkpoint {path}: {error.strerror}") from None
    match = _NAME.fullmatch(path.name)
    if match is not None and hashlib.sha256(data).hexdigest()[:16] != match[2]:
        raise RunError.of(
            "KD711", f"the checkpoint {path} is damaged: its bytes do not give the checksum in its name"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what can't be read is refused below
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError.of(
            "KD712", f"{path} is not a checkpoint that can be loaded safely: {reason}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError.of("KD713", f"{path} is not a checkpoint of this version of kdcli")
    return state


FORMAT = 1


def sweep_temporary(folder: Path) -> None:
    """Delete the temporary files that a killed process left."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
