"""Own code in every command: spawned data workers, two processes, resume, eval, export, report, cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcli.report.run_files import read_metrics
from tests.plugins.specs import MINE
from tests.training.outcomes import assert_same, outcome

pytestmark = pytest.mark.slow

STARTER = """\
if __name__ == "__main__":
    import torch.multiprocessing
    from kdcli.cli import main

    torch.multiprocessing.set_start_method("spawn")
    main()
"""
"""kdcli, where data workers share nothing with the process that starts them."""
PLUGIN = ("--plugin", "mine_kd")
WORKERS = tuple(f"dataset.{side}.dataloader.kwargs.num_workers=1" for side in ("train", "test"))
LOSSES = "mimic.cfgs={one: {type: 'mine_kd.losses:huber'}, two: {type: 'mine_kd.losses:Scaled'}}"
LAYERS = ("mimic.student.mimic_name=[model.layer3]", "mimic.teacher0.mimic_name=[model.layer3]")
WIDTHS = "net.model.kwargs.widths=[4, 4, 4, 8]"


@pytest.fixture
def run(mine: Path, folder: Path) -> Callable[..., str]:
    """What `kdcli` says with some words, in a process of its own."""
    starter = folder / "kdcli_spawned.py"
    starter.write_text(STARTER, encoding="utf-8")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(mine)])

    def say(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, str(starter), *words],
            env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return say


def lay(where: Path) -> None:
    where.mkdir(exist_ok=True)
    os.chdir(where)
    Path("small.yaml").write_text(MINE, encoding="utf-8")


def test_own_code_in_spawned_workers_on_resume_and_where_the_run_is_opened(
    run: Callable[..., str], folder: Path
) -> None:
    words = ("small.yaml", *WORKERS, LOSSES, *LAYERS, WIDTHS, *PLUGIN)
    lay(folder / "whole")
    assert "is taken as a feature loss" in run("validate", *words, "--files")
    whole = outcome(Path(), run("train", *words, "--no-report"))
    lay(folder / "parts")
    run("train", *words, "--no-report", "trainer.max_iter=3", "trainer.max_epoch=null")
    allowed = ("--allow-changed", "trainer")
    screen = run("train", *words, "--no-report", "--resume", *allowed)
    parts = outcome(Path(), screen)
    assert_same(
        {"last": whole["last"], "best": whole["best"]}, {"last": parts["last"], "best": parts["best"]}
    )
    shown = json.loads(subprocess_json(run("eval", "out", *PLUGIN, "--format", "json")))
    assert "recall" in shown["networks"][0]["metrics"]
    assert "largest difference" in run("export", "out", *PLUGIN, "--format", "torch-export")
    assert "curves alone" not in run("report", "out", *PLUGIN)
    data = json.loads(Path("out/report_data.json").read_text(encoding="utf-8"))
    assert data["primary"] == "recall" and "recall" in data["comparison"][0]["metrics"]


def subprocess_json(text: str) -> str:
    """The JSON object in a screen with other lines."""
    return text[text.index("{") : text.rindex("}") + 1]


def test_own_code_in_two_processes(run: Callable[..., str], folder: Path) -> None:
    lay(folder / "two")
    words = ("small.yaml", LOSSES, *LAYERS, WIDTHS, *PLUGIN, "--device", "cpu", "--nproc", "2", "--no-report")
    run("train", *words)
    assert json.loads(Path("out/env.json").read_text(encoding="utf-8"))["processes"] == 2
    measured = [line for line in read_metrics(Path("out/metrics.jsonl")) if line["kind"] == "evaluation"]
    # Twelve test samples of four classes, each counted once: three a class.
    assert measured and all(
        line["metrics"]["recall"] == pytest.approx(line["metrics"]["top1"]) for line in measured
    )


def test_own_code_with_a_cached_teacher(run: Callable[..., str], folder: Path) -> None:
    lay(folder / "cached")
    plain = "dataset.train.dataloader.kwargs={num_workers: 0}"
    cache = "mimic.teacher0.cache={views: 2}"
    changes = ("small.yaml", plain, cache, "mimic.cfgs={loss: {type: 'mine_kd.losses:softened'}}", *PLUGIN)
    run("cache", *changes)
    assert "finished" in run("train", *changes, "--no-report")
