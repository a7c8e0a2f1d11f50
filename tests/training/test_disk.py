"""Checkpoints on a disk that fails: a full one, torn writes, renames that do not happen, flipped bits."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli import disk
from kdcli.disk import sweep_temporary
from kdcli.errors import RunError
from kdcli.records import Notice, Saved
from kdcli.training.checkpoint import (
    FORMAT,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all


def state_at(step: int) -> dict[str, Any]:
    return {"format": FORMAT, "step": step, "weights": torch.arange(4.0) + step}


class Faults:
    """A file layer that fails at a chosen call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def at(self, name: str, number: int, code: int) -> None:
        """Let os.<name> fail at its call `number`."""
        action: Callable[..., Any] = getattr(os, name)
        calls = [0]

        def failing(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                raise OSError(code, os.strerror(code))
            return action(*args, **kwargs)

        self.patch.setattr(disk.os, name, failing)

    def full_after(self, room: int) -> None:
        """Let no file of more than so many bytes be written."""

        def opened(path: Any, mode: str) -> Any:
            return _Small(open(path, mode), room)

        self.patch.setattr(disk, "open", opened, raising=False)


class _Small:
    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.file.write(bytes(data)[: self.room])
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _Small:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize(
    "fail",
    [
        lambda faults: faults.full_after(100),
        lambda faults: faults.at("fsync", 1, errno.EIO),
        lambda faults: faults.at("fsync", 2, errno.ENOSPC),
        lambda faults: faults.at("replace", 1, errno.EROFS),
    ],
    ids=["full disk", "flush fails", "flush of the folder fails", "rename fails"],
)
def test_a_failed_save_is_told_and_leaves_the_older_one_whole(
    fail: Callable[[Faults], None], faults: Faults, tmp_path: Path
) -> None:
    old = save_checkpoint(tmp_path, 1, state_at(1), keep=1)
    fail(faults)
    with pytest.raises(RunError) as caught:
        save_checkpoint(tmp_path, 2, state_at(2), keep=1)
    assert caught.value.diagnostics[0].code == "KD740"
    assert old in checkpoints(tmp_path) and load_checkpoint(old)["step"] == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_on_a_full_disk_stops_and_goes_on_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = spec_of(SPEC, "saver.auto_resume=true")
    with run_of(parsed) as run:
        records = train(run)
        for record in records:
            if isinstance(record, Saved):
                break
        with monkeypatch.context() as patch:
            Faults(patch).full_after(5000)
            with pytest.raises(RunError, match="No space left on device"):
                list(records)
    assert [step_of(p) for p in checkpoints(Path("runs/small/checkpoints"))] == [5]
    assert train_all(parsed)[-1].step == 10  # type: ignore[union-attr]


def test_the_newest_valid_one_is_used_where_later_ones_are_torn_or_flipped() -> None:
    parsed = spec_of(SPEC, "saver.auto_resume=true", "trainer.max_epoch=3")
    train_all(parsed)
    newest, second, third = checkpoints(Path("runs/small/checkpoints"))
    newest.write_bytes(newest.read_bytes()[:-1])
    flipped = bytearray(second.read_bytes())
    flipped[100] ^= 4
    second.write_bytes(bytes(flipped))
    records = train_all(parsed)
    told = [r.message for r in records if isinstance(r, Notice)]
    assert sum("damaged" in message and "trying the one before" in message for message in told) == 2
    assert "continuing at step 5" in told
    assert step_of(third) == 5


def test_a_run_with_damaged_checkpoints_alone_does_not_start_over_in_silence() -> None:
    parsed = spec_of(SPEC, "saver.auto_resume=true", "trainer.max_epoch=1")
    train_all(parsed)
    (only,) = checkpoints(Path("runs/small/checkpoints"))
    only.write_bytes(b"")
    with pytest.raises(RunError, match="no valid checkpoint") as caught:
        train_all(parsed)
    assert caught.value.diagnostics[0].code == "KD718"


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, state_at(step), keep=2, best=2 if step > 1 else None)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [6, 5, 2]


def test_the_same_step_again_replaces_its_twin(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_at(1), keep=3)
    save_checkpoint(tmp_path, 1, {**state_at(1), "more": 1}, keep=3)
    (only,) = checkpoints(tmp_path)
    assert load_checkpoint(only)["more"] == 1


def test_an_earlier_step_never_pushes_out_later_ones(tmp_path: Path) -> None:
    for step in (4, 5, 6, 1):
        save_checkpoint(tmp_path, step, state_at(step), keep=2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [6, 5, 1]


def test_half_written_files_are_swept() -> None:
    train_all(spec_of(SPEC, "trainer.max_iter=1"))
    folder = Path("runs/small/checkpoints")
    left = folder / "step_00000009-0000000000000000.pt.123.tmp"
    left.write_bytes(b"half")
    train_all(spec_of(SPEC, "trainer.max_iter=1"), overwrite=True)
    assert not left.exists()
    sweep_temporary(folder)
