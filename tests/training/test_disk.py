"""Checkpoints on a disk that fails: a full one, torn writes, renames that do not happen, flipped bits."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
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


NOBODY = 2**22 + 1
"""A number that no process can have."""

HERE = disk._computer()


def made(folder: Path, *names: str, age: float = 0.0) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    return paths


def test_what_no_living_process_can_be_writing_is_swept(tmp_path: Path) -> None:
    dead = made(
        tmp_path, f"a.onnx.{NOBODY}-{HERE}.tmp", f"a.safetensors.{NOBODY}-{HERE}.tmp.{NOBODY}-{HERE}.tmp"
    )
    before_0_3 = made(
        tmp_path, f"report.html.{NOBODY}.tmp", f".student.safetensors.{NOBODY}.part", f".run.{NOBODY}.onnx"
    )
    living = made(tmp_path, f"a.onnx.{os.getpid()}-{HERE}.tmp", f"b.onnx.{os.getppid()}-{HERE}.tmp")
    elsewhere = made(tmp_path, "a.onnx.1-00000000.tmp", "b.onnx.1-00000000.tmp", age=3600.0)
    users = made(
        tmp_path, "notes.tmp", "a.onnx", "7.part", ".hidden.12", f"x-{NOBODY}.tmp", "c.0-1.tmp", age=1e6
    )
    (tmp_path / f"link.txt.{NOBODY}-{HERE}.tmp").symlink_to(users[0])
    sweep_temporary(tmp_path, "b.onnx")
    assert all(path.exists() for path in (*dead, *before_0_3, *living, *elsewhere, *users))
    sweep_temporary(tmp_path)
    assert not any(path.exists() for path in (*dead, *before_0_3))
    assert all(path.exists() for path in (*living, *elsewhere, *users))
    # After a day another computer's is a leftover; in a container the next process may have the same number.
    os.utime(elsewhere[0], (time.time() - 1e5, time.time() - 1e5))
    os.utime(living[0], (time.time() - 1e6, time.time() - 1e6))
    sweep_temporary(tmp_path, "a.onnx")
    assert (
        not elsewhere[0].exists() and not living[0].exists() and elsewhere[1].exists() and living[1].exists()
    )
    sweep_temporary(tmp_path / "nowhere")


def test_writing_a_file_again_deletes_what_a_killed_process_left_of_it(tmp_path: Path) -> None:
    left, other = made(tmp_path, f"x.json.{NOBODY}-{HERE}.tmp", f"y.json.{NOBODY}-{HERE}.tmp")
    disk.write_whole(tmp_path / "x.json", "{}")
    assert not left.exists() and other.exists() and (tmp_path / "x.json").read_text() == "{}"
    with pytest.raises(ZeroDivisionError), disk.written_beside(tmp_path / "x.json") as beside:
        beside.write_text("half")
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", other.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from kdcli import disk
from kdcli.cli import main
import kdcli.distill.cached
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
which, sys.argv = sys.argv[1], ["kdcli", *sys.argv[2:]]
real = {"replace": os.replace, "rename": os.rename}
def killing(source, target):
    die() if str(target).endswith(which) else real["replace"](source, target)
os.replace = killing
os.rename = lambda source, target: die()
main()
"""
"""kdcli, killed in the moment in which a file or a folder is to take its name."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "which, command",
    [
        (".onnx", ["export", "runs/small", "--format", "onnx", "-o", "out/small.onnx"]),
        ("report.html", ["report", "runs/small"]),
        ("-", ["cache", "small.yaml"]),
        ("student.safetensors", ["train", "small.yaml", "--overwrite"]),
    ],
    ids=["export", "report", "cache", "train"],
)
def test_a_killed_command_leaves_nothing_once_it_was_run_again(which: str, command: list[str]) -> None:
    Path("small.yaml").write_text(
        SPEC.replace("allow_weak_teacher: true}", "allow_weak_teacher: true, cache: {}}")
    )

    def kdcli(*words: str) -> int:
        return subprocess.run([sys.executable, *words], capture_output=True, check=False).returncode

    if command[0] in ("export", "report"):
        assert kdcli("-m", "kdcli.cli", "train", "small.yaml") == 0
    whole = {path for path in Path().rglob("*")}
    assert kdcli("-c", KILLED, which, *command) == -signal.SIGKILL
    left = {path for path in Path().rglob("*")} - whole
    assert any(path.name.endswith(".tmp") for path in left)
    assert kdcli("-m", "kdcli.cli", *command) == 0
    assert not [path for path in Path().rglob("*") if path.suffix in (".tmp", ".part", ".new")]
