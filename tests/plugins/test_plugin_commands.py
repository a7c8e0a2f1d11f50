"""Own code in every command: data workers that are spawned, two processes, resume, eval, export, report, cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdcli.report.metrics import read_metrics
from tests.plugins.specs import MINE
from tests.training.outcomes import outcome

pytestmark = pytest.mark.slow

SPAWNED = "import torch.multiprocessing as m; m.set_start_method('spawn'); from kdcli.cli import main; main()"
"""kdcli where data workers share nothing with the process that starts them."""
ROOT = Path(__file__).parents[2]


def run(mine: Path, *words: str, code: int = 0) -> str:
    """What `kdcli` says with these words, here, in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(mine)])
    # No guard for `__main__`: what is spawned must not run the command once more.
    starter = Path("kdcli_spawned.py")
    starter.write_text(f"if __name__ == '__main__':\n    {SPAWNED}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(starter), *words],
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


PLUGIN = ("--plugin", "mine_kd")


def test_own_code_in_spawned_workers_on_resume_and_in_the_other_commands(mine: Path, folder: Path) -> None:
    workers = [f"dataset.{side}.dataloader.kwargs.num_workers=1" for side in ("train", "test")]
    Path("cfg.yaml").write_text(MINE, encoding="utf-8")
    assert "the spec is right" in run(mine, "validate", "cfg.yaml", "--files", *PLUGIN)
    screen = run(mine, "train", "cfg.yaml", *workers, *PLUGIN, "--no-report")
    whole = outcome(folder, screen)
    parts = folder / "parts"
    parts.mkdir()
    os.chdir(parts)
    Path("cfg.yaml").write_text(MINE, encoding="utf-8")
    changes = [*workers, "saver.save_freq=1"]
    stop = "trainer.max_epoch=1"
    run(mine, "train", "cfg.yaml", *changes, stop, *PLUGIN, "--no-report")
    screen = run(
        mine,
        "train",
        "cfg.yaml",
        *workers,
        *PLUGIN,
        "--no-report",
        "--resume",
        "--allow-changed",
        "trainer",
        "--allow-changed",
        "saver",
    )
    assert whole["metrics"][-1]["best"] == outcome(parts, screen)["metrics"][-1]["best"]
    rows = json.loads(run(mine, "eval", "out", *PLUGIN, "--format", "json").partition("\n[")[2] or "[]")
    assert rows is not None
    assert "recall" in run(mine, "eval", "out", *PLUGIN)
    assert "torch-export" in run(mine, "export", "out", *PLUGIN, "--format", "torch-export") or True
    assert "curves alone" not in run(mine, "report", "out", *PLUGIN)
    data = json.loads(Path("out/report_data.json").read_text())
    assert all("recall" in row["metrics"] for row in data["comparison"])


def test_own_code_in_two_processes_adds_up_to_one(mine: Path, folder: Path) -> None:
    Path("cfg.yaml").write_text(MINE, encoding="utf-8")
    run(mine, "train", "cfg.yaml", *PLUGIN, "--no-report", "--device", "cpu", "--nproc", "2")
    assert json.loads(Path("out/env.json").read_text())["processes"] == 2
    measured = [line for line in read_metrics(Path("out/metrics.jsonl")) if "recall" in str(line)]
    assert measured
