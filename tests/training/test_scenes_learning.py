"""Detectors learn on scenes of real garments, and a student learns more from its teacher than alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdcli.data.classification.arrays import fashion_mnist
from kdcli.errors import KdError
from kdcli.spec.places import HERE
from tests.scenes import SAMPLES


def run(*arguments: str, folder: Path) -> None:
    """One command on one thread, its screen among the test's output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "kdcli.cli", *arguments], cwd=folder, env=environment, check=True)


def precision(folder: Path) -> list[float]:
    """AP in percent of every evaluation of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["metrics"]["AP"] for row in rows if row.get("kind") == "evaluation"]


@pytest.mark.slow
def test_precision_rises_and_frs_beats_the_plain_student(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    try:
        fashion_mnist((), HERE, False, root=None, split="test")
    except KdError as error:
        pytest.skip(str(error))
    run("make-data", "fashion-scenes", "data/fashion-scenes", folder=tmp_path)
    run("train", str(SAMPLES / "scenes_teacher.yaml"), "trainer.test_freq=3", "--no-report", folder=tmp_path)
    for name in ("student", "frs"):
        spec = str(SAMPLES / f"scenes_{name}.yaml")
        run("train", spec, "runtime.random_seed=2", "--no-report", folder=tmp_path)
    teacher, alone, distilled = (
        precision(tmp_path / f"runs/scenes_{n}") for n in ("teacher", "student-seed2", "frs-seed2")
    )
    assert 20 < teacher[0] < teacher[-1]
    assert teacher[-1] > 48 and alone[-1] > 38
    assert distilled[-1] > alone[-1] + 2.0  # 44.3 to 40.0 where it was measured; seed 1: 45.1 to 42.2
