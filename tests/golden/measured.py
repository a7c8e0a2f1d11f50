"""What is recorded: the first steps of runs, whole runs, and every loss on seeded inputs."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcli.losses import LOSSES
from kdcli.models.weights import read_weights, renamed
from kdcli.records import Step
from kdcli.spec.parse import read
from kdcli.training.train import train
from tests.golden.recorded import hash_of
from tests.losses.cases import make_case
from tests.scenes import write_scenes
from tests.training.runs import run_of

SAMPLES = Path(__file__).parents[2] / "sample_configs"
STEPS = 20

DIGITS = ("student", "teacher", "kd", "feature", "two_teachers", "stages")
FASHION = ("kd", "feature", "contrastive")
RUNS = (*(f"digits_{name}" for name in DIGITS), *(f"fashion_{name}" for name in FASHION), "scenes_student")


def first_steps(name: str, folder: Path) -> dict[str, Any]:
    """The losses of a sample's first 20 steps, and the hash of its student after them."""
    changes = [f"saver.save_dir={folder / name}", "trainer.log_freq=1", *_data(name, folder)]
    parsed = _read(name, changes)
    with _one_thread(), run_of(parsed, places=parsed.places) as run:
        losses: list[dict[str, float]] = []
        for record in train(run):
            if isinstance(record, Step):
                losses.append({key: float(value) for key, value in record.losses.items()})
                if record.step == STEPS:
                    break
        return {"losses": losses, "student": hash_of(run.student.state_dict())}


def whole_run(name: str, folder: Path) -> str:
    """The hash of the student that a sample ends with."""
    parsed = _read(name, [f"saver.save_dir={folder / name}"])
    with _one_thread(), run_of(parsed, places=parsed.places) as run:
        for _ in train(run):
            pass
        weights = read_weights(run.folder.student)
        # The records have the names of the student's modules; the file of a whole model has the model's own.
        return hash_of({name: weights[key] for key, name in renamed(run.student, list(weights)).items()})


def loss_value(name: str) -> dict[str, Any]:
    """A loss on seeded inputs, times its weight: its value, and the hash of the student's gradients."""
    with _one_thread():
        case = make_case(name, requires_grad=True)
        value = case.call() * LOSSES[name].weight
        value.backward()
        gradients = {str(number): t.grad for number, t in enumerate(case.students) if t.grad is not None}
    return {"value": float(value.detach()), "gradients": hash_of(gradients)}


def everything(folder: Path) -> dict[str, Any]:
    """A machine's whole record."""
    return {
        "first_steps": {name: first_steps(name, folder) for name in RUNS},
        "whole_runs": {f"digits_{name}": whole_run(f"digits_{name}", folder / "whole") for name in DIGITS},
        "losses": {name: loss_value(name) for name in sorted(LOSSES)},
    }


def _read(name: str, changes: list[str]) -> Any:
    return read(SAMPLES / f"{name}.yaml", changes)


def _data(name: str, folder: Path) -> list[str]:
    """Small data in place of what has to be fetched."""
    if name.startswith("fashion_"):
        root = _garments(folder / "garments")
        roots = [f"dataset.{side}.dataset.kwargs.root={root}" for side in ("train", "test")]
        return [*roots, "mimic.teacher0.allow_weak_teacher=true"]
    if name.startswith("scenes_"):
        root = folder / "scenes"
        if not root.exists():
            write_scenes(root, num_train=14)
        files = {"meta_file": "{side}.json", "image_reader.kwargs.image_dir": "{side}"}
        given = [
            f"dataset.{side}.dataset.kwargs.{key}={root / file.format(side=side)}"
            for side in ("train", "test")
            for key, file in files.items()
        ]
        return [*given, f"dataset.test.dataset.kwargs.evaluator.kwargs.gt_file={root / 'test.json'}"]
    return []


def _garments(folder: Path) -> Path:
    """Noise in the shape of Fashion-MNIST."""
    if not folder.exists():
        folder.mkdir(parents=True)
        draw = np.random.default_rng(0)
        for prefix, count in (("train", 640), ("t10k", 40)):
            images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
                head = struct.pack(">BBBB", 0, 0, 8, data.ndim) + struct.pack(f">{data.ndim}I", *data.shape)
                (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + data.tobytes()))
    return folder


class _one_thread:
    """One thread inside the block: sums are split by threads."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def differences(mine: Mapping[str, Any], recorded: Mapping[str, Any], *, bits: bool) -> list[str]:
    """Where a run's first steps differ; without bits to a tolerance, at its first steps."""
    found = []
    steps = len(recorded["losses"]) if bits else 5
    for number, (now, then) in enumerate(
        zip(mine["losses"][:steps], recorded["losses"][:steps], strict=True), 1
    ):
        for key in sorted(now.keys() | then.keys()):
            one, other = now.get(key, float("nan")), then.get(key, float("nan"))
            close = one == other if bits else abs(one - other) <= 1e-3 * max(1.0, abs(other))
            if not close:
                found.append(f"step {number}: {key} is {one!r}, on record {other!r}")
    if bits and mine["student"] != recorded["student"]:
        found.append("the student's weights")
    return found


def environment_is_quiet() -> bool:
    """Whether nothing from outside changes the arithmetic."""
    return not any(name in os.environ for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"))
