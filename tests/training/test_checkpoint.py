"""Checkpoints: whole or absent, verified by name and by content, never running code."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from kdcli import disk
from kdcli.errors import RunError
from kdcli.models.weights import read_weights
from kdcli.training import checkpoint
from kdcli.training.checkpoint import (
    FORMAT,
    checkpoints,
    is_checked,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
    step_of,
)
from tests.damages import damages
from tests.training.outcomes import the_same

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


def test_a_failed_save_keeps_no_view_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 crashed where the collector found a view and its archive in the traceback of a full disk."""
    views: list[memoryview] = []

    def full(path: Path, content: memoryview) -> Path:
        views.append(content)
        raise disk.disk_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(checkpoint, "write_whole", full)
    with pytest.raises(RunError, match="No space left on device"):
        save_checkpoint(tmp_path, 1, STATE, keep=1)
    with pytest.raises(ValueError, match="released"):
        len(views[0])


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


def small_state(step: int) -> dict[str, object]:
    draws = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(20, 10, generator=draws) for name in ("a", "b")}
    return {"format": FORMAT, "kdcli": "0", "progress": {"step": step}, "trainee": weights, "ema": None}


def test_200_damages_are_noticed_whatever_the_name(tmp_path: Path) -> None:
    """Bits, cuts, zeros, exchanged blocks: refused with the file's name, or what is read is bit-equal."""
    saved = save_checkpoint(tmp_path, 7, small_state(7), keep=1)
    whole = load_checkpoint(saved)
    path = tmp_path / "renamed.pt"
    path.write_bytes(saved.read_bytes())
    assert the_same(load_checkpoint(path), whole)
    refused = 0
    for data in damages(saved.read_bytes()):
        path.write_bytes(data)
        try:
            assert the_same(load_checkpoint(path), whole)
        except RunError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 190


def test_a_checkpoint_that_lost_its_checksum_is_refused_for_that(tmp_path: Path) -> None:
    data = save_checkpoint(tmp_path, 7, small_state(7), keep=1).read_bytes()
    weights = small_state(7)["trainee"]["a"].numpy().tobytes()  # type: ignore[index]
    path = tmp_path / "renamed.pt"
    for old, new in ((b"kdcli sha256", b"kdcli sha257"), (weights[:80], weights[80:160])):
        assert data.count(old) == 1
        data = data.replace(old, new)
    path.write_bytes(data)
    for read in (load_checkpoint, read_weights):
        with pytest.raises(RunError, match=r"KD711|KD537"):
            read(path)


def test_a_checkpoint_whose_name_says_another_step_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, small_state(3), keep=9)
    newest = save_checkpoint(tmp_path, 7, small_state(7), keep=9)
    newest.rename(newest.with_name(newest.name.replace("00000007", "00000009")))
    (_, error), (path, state) = newest_valid(tmp_path)
    assert "its name says step 9, and it holds step 7" in str(error) and step_of(path) == 3
    assert isinstance(state, dict)


def test_a_checkpoint_of_kdcli_0_2_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(small_state(5), buffer)
    name = f"step_00000005-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt"
    (tmp_path / name).write_bytes(buffer.getvalue())
    state = load_checkpoint(tmp_path / name)
    assert the_same(state, small_state(5)) and is_checked(tmp_path / name, state)
    renamed = (tmp_path / name).rename(tmp_path / "copy.pt")
    assert not is_checked(renamed, load_checkpoint(renamed))
    damaged = bytearray(buffer.getvalue())
    damaged[300] ^= 1
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(RunError, match="KD711"):
        load_checkpoint(tmp_path / name)
