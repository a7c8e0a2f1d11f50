"""Checkpoints: whole or absent, verified by name, never running code."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from kdcli import disk
from kdcli.errors import RunError
from kdcli.training.checkpoint import (
    FORMAT,
    checkpoints,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
    step_of,
)

STATE = {"format": FORMAT, "weights": torch.arange(4.0)}


def test_what_is_saved_comes_back_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, step, {**STATE, "step": step}, keep=2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [4, 3]
    assert load_checkpoint(checkpoints(tmp_path)[0])["step"] == 4
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".pt", ".pt"]


def test_a_flipped_byte_is_noticed_and_the_one_before_is_used(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {**STATE, "step": 1}, keep=3)
    newest = save_checkpoint(tmp_path, 2, {**STATE, "step": 2}, keep=3)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    found = list(newest_valid(tmp_path))
    assert isinstance(found[0][1], RunError) and "damaged" in str(found[0][1])
    assert isinstance(found[1][1], dict) and found[1][1]["step"] == 1


def test_a_torn_file_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, STATE, keep=1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_older_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save_checkpoint(tmp_path, 1, STATE, keep=1)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        save_checkpoint(tmp_path, 2, STATE, keep=1)
    assert caught.value.diagnostics[0].code == "KD740"
    assert checkpoints(tmp_path) == [old] and list(tmp_path.iterdir()) == [old]
    load_checkpoint(old)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch pwned",))


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"format": 1, "x": Evil()}, path)
    with pytest.raises(RunError, match="loaded safely"):
        load_checkpoint(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RunError):
        load_checkpoint(tmp_path / "bare.pt")
    assert not (tmp_path / "pwned").exists()
