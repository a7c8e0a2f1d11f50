"""Files that mean harm: an error each, no code run, nothing written outside the run folder."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.errors import KdError, RunError
from kdcli.spec.parse import read
from kdcli.training.checkpoint import FORMAT, checkpoints, load_checkpoint
from tests.training.runs import SPEC, run_of, spec_of, train_all

SECRET = "secret: 1\n"

SPECS: dict[str, str] = {
    "aliases that multiply": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "merges that multiply": "m0: &m0 {k: v}\n"
    + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}], n{i}: 1}}\n" for i in range(1, 12)),
    "brackets": "x-a: " + "[" * 20_000 + "]" * 20_000,
    "braces": "x-a: " + "{a: " * 5_000 + "}" * 5_000,
    "itself": "x-a: &a [*a]\n",
    "an object": "x-a: !!python/object/apply:os.system ['touch pwned']\n",
    "a name": "x-a: !!python/name:os.system\n",
    "an unknown tag": "x-a: !evil {a: 1}\n",
    "include above": "x-a: !include ../secret.yaml\n",
    "include absolute": "x-a: !include /etc/passwd\n",
    "include through a link": "x-a: !include link.yaml\n",
    "include itself": "x-a: !include spec.yaml\n",
    "include a folder": "x-a: !include .\n",
    "include a device": "x-a: !include /dev/zero\n",
    "include a pipe": "x-a: !include pipe.yaml\n",
    "include with a null": 'x-a: !include "a\\0.yaml"\n',
    "a long number": "x-a: " + "9" * 5_000 + "\n",
    "no text": "\x00\x01\x02",
}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_hostile_spec_is_refused(name: str, folder: Path) -> None:
    (folder / "secret.yaml").write_text(SECRET)
    inside = folder / "specs"
    inside.mkdir()
    (inside / "link.yaml").symlink_to(folder / "secret.yaml")
    os.mkfifo(inside / "pipe.yaml")
    path = inside / "spec.yaml"
    path.write_text(SPECS[name])
    with pytest.raises(KdError) as caught:
        read(str(path), ())
    assert "secret" not in str(caught.value).replace("secret.yaml", "")
    assert not list(folder.rglob("pwned"))


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, ("touch pwned",))


def _zip_pickle(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _huge() -> bytes:
    """A state whose tensor says it has 10^12 elements, over a storage of one."""
    data = _saved(
        {"format": FORMAT, "trainee": {"student.model.conv1.weight": torch.zeros(1).expand(10**12)}}
    )
    return data


WEIGHTS: dict[str, Callable[[], bytes]] = {
    "code.pt": lambda: _saved({"format": FORMAT, "x": Evil()}),
    "bare.pkl": lambda: pickle.dumps(Evil(), protocol=2),
    "zipped.pt": lambda: _zip_pickle(pickle.dumps(Evil(), protocol=2)),
    "huge.pt": _huge,
    "header.safetensors": lambda: struct.pack("<Q", 2**62) + b"{}",
    "empty.pt": lambda: b"",
    "list.pt": lambda: _saved([1, 2]),
    "bomb.pt": lambda: _deflated(),
}


def _deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(WEIGHTS))
@pytest.mark.parametrize("use", ["resume", "resume_model", "pretrain_model", "teacher_weight"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_weights_are_refused(name: str, use: str, folder: Path) -> None:
    (folder / name).write_bytes(WEIGHTS[name]())
    changes: list[str] = []
    options: dict[str, Any] = {}
    if use == "resume":
        options["resume"] = folder / name
    elif use == "teacher_weight":
        changes = [f"mimic.teacher0.teacher_weight={name}"]
    else:
        changes = [f"saver.{use}={name}"]
    with pytest.raises(KdError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_all(spec_of(SPEC, *changes), **options)
    assert not list(folder.rglob("pwned"))
    assert not list(folder.rglob("student.safetensors"))


@pytest.mark.slow
def test_a_checkpoint_of_the_right_format_and_the_wrong_content_is_refused(folder: Path) -> None:
    with run_of(spec_of(SPEC, "trainer.max_epoch=1")) as run:
        from kdcli.training.train import train

        list(train(run))
    state = load_checkpoint(checkpoints(Path("runs/small/checkpoints"))[0])
    for number, broken in enumerate(
        [
            {"format": FORMAT},
            {**state, "progress": {"step": "many"}},
            {**state, "progress": {**state["progress"], "stage": 7, "over": False}},
            {**state, "trainee": {"x": torch.zeros(2)}},
            {**state, "optimizer": {"state": {}, "param_groups": []}},
            {**state, "processes": []},
            {**state, "spec": "[" * 100},
            {**state, "spec": "&a [*a]"},
            {**state, "ema": 3, "rate": None},
        ]
    ):
        path = folder / f"broken{number}.pt"
        torch.save(broken, path)
        with pytest.raises(RunError):
            train_all(
                spec_of(SPEC, "trainer.max_epoch=1", "saver.save_dir=other"), resume=path, overwrite=True
            )


@pytest.mark.parametrize("link", ["", "checkpoints", "metrics.jsonl", "train.log", "student.safetensors"])
def test_a_link_in_the_run_folder_is_not_followed(link: str, folder: Path) -> None:
    outside = folder / "outside"
    outside.mkdir()
    target = outside / "file"
    target.write_text("precious")
    root = folder / "run"
    if link:
        root.mkdir()
        (root / link).symlink_to(outside if link == "checkpoints" else target)
    else:
        root.symlink_to(outside)
    with pytest.raises(RunError, match="symbolic link"):
        train_all(spec_of(SPEC, "saver.save_dir=run"))
    assert target.read_text() == "precious" and list(outside.iterdir()) == [target]


def _png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("line", ["bomb.png 0", "../outside.png 0", "/etc/hostname 0", "missing.png 0"])
def test_a_hostile_image_list_is_refused(line: str, folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    (images / "bomb.png").write_bytes(_png_bomb())
    (folder / "outside.png").write_bytes(_png_bomb())
    (folder / "list.txt").write_text(f"{line}\n" * 4)
    text = SPEC.replace(
        "      type: fake\n      kwargs:\n        num_samples: 40\n        num_classes: 4\n        shape: [1, 8, 8]\n",
        "      type: cls\n      kwargs:\n        meta_file: list.txt\n"
        "        image_reader: {type: fs_pillow, kwargs: {image_dir: images, color_mode: GRAY}}\n",
    )
    with pytest.raises(KdError):
        train_all(spec_of(text, source=str(folder / "small.yaml")))
