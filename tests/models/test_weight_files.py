"""Weight files: every format, nothing executed, broken ones told in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdcli.errors import KdError, RunError, SpecError
from kdcli.models.weights import find_file, read_shapes, read_weights, save_safetensors, weights_hash
from kdcli.spec.places import Places
from tests.damages import damages

STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.ones(2, dtype=torch.bfloat16),
    "n": torch.tensor(3),
}


class Foreign:
    """A class a checkpoint might hold."""


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def code(error: KdError) -> str:
    (found,) = error.diagnostics
    assert "\n" not in found.message
    return found.code


def same(found: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(STATE) and all(torch.equal(found[key], STATE[key]) for key in STATE)


NESTED: dict[str, Any] = {
    "bare": STATE,
    "ordered": OrderedDict(STATE),
    "model": {"model": STATE, "epoch": 3},
    "state_dict": {"state_dict": STATE, "optimizer": {"lr": 0.1}},
    "parallel": {"model": {f"module.{key}": value for key, value in STATE.items()}},
    "compiled": {f"_orig_mod.{key}": value for key, value in STATE.items()},
    "ema first": {"model": {"a": torch.zeros(1)}, "ema": {"ema_state_dict": STATE}, "epoch": 1},
    "ema empty": {"model": {**STATE, "model_cfg": {"depth": 18}}, "ema": {}},
    "numpy beside": {"model": STATE, "metric_val": np.float64(0.7), "best": np.int64(3)},
    "kdcli": {
        "kdcli": "0", "ema": None,
        "trainee": {**{f"student.{k}": v for k, v in STATE.items()}, "x": STATE["n"]},
    },
    "kdcli ema": {
        "kdcli": "0", "trainee": {"student.a": torch.zeros(1)},
        "ema": {"step": 1, "parameters": dict(list(STATE.items())[:2]), "buffers": {"n": STATE["n"]}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_are_read_however_they_are_nested(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth.tar"
    torch.save(NESTED[name], path, _use_new_zipfile_serialization=zipped)
    assert same(read_weights(path))
    assert read_shapes(path) == {key: tuple(value.shape) for key, value in STATE.items()}


def test_safetensors_are_read_by_content(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.bin"):
        save_file({f"module.{key}": value for key, value in STATE.items()}, tmp_path / name)
        assert set(read_weights(tmp_path / name)) == set(STATE)
        assert read_shapes(tmp_path / name)["a.weight"] == (2, 3)


def test_the_hash_is_of_the_weights_not_of_the_file(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "w.pt")
    save_safetensors(STATE, tmp_path / "w.safetensors", {"made": "by kdcli"})
    hashes = {weights_hash(STATE), weights_hash(tmp_path / "w.pt"), weights_hash(tmp_path / "w.safetensors")}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64
    changed = {**STATE, "n": torch.tensor(4)}
    assert weights_hash(changed) != weights_hash(STATE)
    assert weights_hash({**STATE, "n": torch.tensor(3, dtype=torch.int32)}) != weights_hash(STATE)
    assert weights_hash({"b" if k == "n" else k: v for k, v in STATE.items()}) != weights_hash(STATE)


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "w.safetensors"
    shared = torch.randn(4, 4)
    save_safetensors({"a": shared, "b": shared, "c": shared.T, "d": shared[1]}, path)
    back = read_weights(path)
    assert torch.equal(back["b"], shared)
    assert torch.equal(back["c"], shared.T)
    assert [child.name for child in path.parent.iterdir()] == ["w.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as caught:
        save_safetensors(STATE, tmp_path / "file" / "w.safetensors")
    assert code(caught.value) == "KD540"


def test_weights_are_looked_up_beside_the_spec_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, here = tmp_path / "spec", tmp_path / "here"
    spec.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (spec / "w.pt").write_text("")
    (here / "w.pt").write_text("")
    assert find_file("w.pt", Places(spec)) == spec / "w.pt"
    assert find_file("w.pt") == Path("w.pt")
    (spec / "w.pt").unlink()
    assert find_file("w.pt", Places(spec)) == Path("w.pt")
    published = "torchvision:ResNet18_Weights.DEFAULT"
    assert find_file(published, Places(spec)) == Path(published)
    with pytest.raises(RunError) as caught:
        find_file("v.pt", Places(spec))
    assert code(caught.value) == "KD530"
    assert caught.value.diagnostics[0].help == (
        f"there is no `{spec / 'v.pt'}` nor `{here / 'v.pt'}`; did you mean `w.pt`?"
    )
    (here / "v.pt").mkdir()
    with pytest.raises(SpecError) as placed:
        find_file("v.pt", Places(spec), ("saver", "pretrain_model"))
    assert placed.value.diagnostics[0].help == f"`{here / 'v.pt'}` is a folder"
    assert placed.value.diagnostics[0].path == ("saver", "pretrain_model")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_needs_more_is_refused_by_name(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for held, name in ((Foreign(), "Foreign"), (Bomb(), "mkdir")):
        torch.save({"model": STATE, "extra": held}, "w.pt", _use_new_zipfile_serialization=zipped)
        for read in (read_weights, read_shapes):
            with pytest.raises(RunError) as caught:
                read("w.pt")
            assert code(caught.value) == "KD536"
            assert name in str(caught.value)
    Path("plain.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError):
        read_weights("plain.pkl")
    assert not Path("exploded").exists()


def broken(tmp_path: Path) -> dict[str, bytes]:
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(STATE, zipped)
    torch.save(STATE, legacy, _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "good")
    safe = (tmp_path / "good").read_bytes()
    huge = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    return {
        "empty": b"",
        "text": b"hello, world",
        "json": b'{"a": 1}',
        "html": b"<!DOCTYPE html><html></html>",
        "zeros": bytes(4096),
        "zip cut": zipped.getvalue()[: len(zipped.getvalue()) // 2],
        "legacy cut": legacy.getvalue()[:-9],
        "safe cut": safe[:-1],
        "safe header cut": safe[:40],
        "safe huge": struct.pack("<Q", len(huge)) + huge + bytes(8),
        "safe huge header": struct.pack("<Q", 2**60) + b"{" + bytes(64),
    }


@pytest.mark.parametrize("kind", [
    "empty", "text", "json", "html", "zeros", "zip cut", "legacy cut", "safe cut", "safe header cut",
    "safe huge", "safe huge header",
])  # fmt: skip
def test_a_broken_file_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(broken(tmp_path)[kind])
    for read in (read_weights, read_shapes):
        with pytest.raises(RunError) as caught:
            read(path)
        assert code(caught.value) in ("KD532", "KD533")
        assert str(path) in str(caught.value)


def test_a_file_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"depth": 18}}, tmp_path / "w.pt")
    with pytest.raises(RunError) as caught:
        read_weights(tmp_path / "w.pt")
    assert code(caught.value) == "KD532"
    assert "'epoch', 'model'" in str(caught.value)


def test_what_is_declared_larger_than_it_is_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "w.pt")
    with pytest.raises(RunError) as caught:
        read_weights(tmp_path / "w.pt")
    assert code(caught.value) == "KD533"
    torch.save(STATE, tmp_path / "v.pt")
    with zipfile.ZipFile(tmp_path / "v.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    for read in (read_weights, read_shapes):
        with pytest.raises(RunError) as caught:
            read(tmp_path / "packed.pt")
        assert code(caught.value) == "KD533"


def loaded_or_refused(path: Path, whole: dict[str, torch.Tensor]) -> bool:
    """Whether the file was refused by name; what is read is bit-equal."""
    try:
        state = read_weights(path)
    except RunError as error:
        assert str(path) in str(error) and code(error) in ("KD532", "KD533", "KD536", "KD537")
        return True
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in whole.items()}
    assert all(torch.equal(state[key], whole[key]) for key in whole)
    return False


def test_200_damages_to_own_weights_are_noticed(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    whole = {**STATE, "b.weight": torch.randn(40, 20, generator=draws), "n": torch.tensor(3)}
    path = tmp_path / "student.safetensors"
    save_safetensors(whole, path, {"class_names": '["cat", "dog"]'})
    data = path.read_bytes()
    assert not loaded_or_refused(path, whole)
    outcomes = []
    for damaged in damages(data):
        path.write_bytes(damaged)
        outcomes.append(loaded_or_refused(path, whole))
    assert sum(outcomes) >= 190


def test_exchanged_tensors_and_changed_metadata_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_safetensors({"a": torch.ones(3), "b": torch.zeros(3)}, path, {"class_names": "[1, 2]"})
    data = path.read_bytes()
    for one, other in ((b'"a":', b'"b":'), (b"[1, 2]", b"[2, 1]")):
        path.write_bytes(data.replace(one, b"<one>").replace(other, one).replace(b"<one>", other))
        assert path.read_bytes() != data
        with pytest.raises(RunError, match="KD537"):
            read_weights(path)


def test_weights_of_other_programs_and_of_kdcli_0_2_are_read_unchecked(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path, metadata={"format": "kdcli-student", "kdcli": "0.2.0", "sha256": "of something"})
    assert not loaded_or_refused(path, STATE)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_without_a_tensor_is_refused_by_its_header_too(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    save_file({}, path) if suffix == "safetensors" else torch.save({}, path)
    for read in (read_weights, read_shapes):
        with pytest.raises(RunError, match="holds no tensors"):
            read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Tensor.to_sparse, "as a sparse_coo tensor"),
        (Tensor.to_sparse_csr, "as a sparse_csr tensor"),
        (lambda tensor: tensor.to("meta"), "without values, on the `meta` device"),
    ],
)
@pytest.mark.parametrize("read", [read_weights, read_shapes])
def test_tensors_without_dense_values_are_refused(
    read: Callable[[Path], Any], make: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    torch.save({"fc.weight": make(torch.ones(2, 3))}, tmp_path / "w.pt")
    with pytest.raises(RunError, match="KD532") as caught:
        read(tmp_path / "w.pt")
    # Shapes are read without values, and torch may refuse such a tensor itself.
    assert f"holds `fc.weight` {said}" in str(caught.value) or (read is read_shapes and "sparse" in said)
