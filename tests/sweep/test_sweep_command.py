"""`kdcli sweep` as a user runs it: ordinary runs, ends of all kinds, failures, what is written."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kdcli.commands.sweep import _Sweep
from kdcli.sweep.study import Trial

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

SPEC = """runtime: {runner: {type: kd}, random_seed: 1, threads: 1}
net: {name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}}
teacher0: {name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}}
mimic:
  cfgs: {loss: {type: kd_loss, kwargs: {T: 4}}}
  teacher0: {mimic_name: [logits], allow_random: true, allow_weak_teacher: true}
  student: {mimic_name: [logits]}
dataset:
  train:
    dataset:
      type: fake
      kwargs: {num_samples: 64, num_classes: 4, shape: [1, 8, 8], transformer: [{type: to_tensor}]}
  test:
    dataset:
      type: fake
      kwargs: {num_samples: 32, num_classes: 4, shape: [1, 8, 8], transformer: [{type: to_tensor}]}
  batch_sampler: {kwargs: {batch_size: 16}}
trainer: {max_epoch: 3, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
"""
RANGES = """sweep:
  mimic.loss_weight: {low: 0.1, high: 10, log: true}
  mimic.cfgs.loss.kwargs.T: [1, 4]
"""


def kdcli(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdcli.cli", *words], cwd=folder, capture_output=True, text=True, timeout=600
    )


def swept(folder: Path, block: str, *words: str, spec: str = SPEC) -> dict[str, Any]:
    (folder / "cfg.yaml").write_text(spec + block)
    done = kdcli("sweep", "cfg.yaml", "--format", "json", *words, folder=folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def of(result: dict[str, Any]) -> list[tuple[object, ...]]:
    return [(one["number"], one["values"], one["state"], one["metrics"]) for one in result["trials"]]


def test_trials_are_runs_that_share_one_cache_and_the_best_is_tested(tmp_path: Path) -> None:
    result = swept(tmp_path, RANGES, "--trials", "3", "--seeds", "2", "--hold-out", "0.25")
    # The spec as it is written is the first trial.
    assert result["trials"][0]["values"] == {"mimic.loss_weight": 1.0, "mimic.cfgs.loss.kwargs.T": 4}
    assert len(result["trials"]) == 3
    root = tmp_path / "runs" / "cfg-sweep"
    assert len(list((root / "cache").glob("teacher0-*"))) == 1
    run = str(root / "trials" / "000")
    for command in (
        ["eval", run],
        ["report", run, "--quick"],
        ["compare", run, str(root / "trials" / "001")],
    ):
        done = kdcli(*command, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    evaluated = json.loads(kdcli("eval", run, "--format", "json", folder=tmp_path).stdout)
    assert json.dumps(evaluated).count("student")
    # The best as a spec trains to what its seeds say, bit for bit.
    text = (root / "best.yaml").read_text()
    assert text.startswith("# The best of 3 trials")
    assert "hold_out" not in yaml.safe_load(text)["dataset"]
    done = kdcli("train", str(root / "best.yaml"), "saver.save_dir=again", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    metric = result["seeds"][0]["metric"]
    last = json.loads((tmp_path / "again" / "finished.json").read_text())["last"]
    assert last[metric] == result["seeds"][0]["values"][0]
    page = (root / "sweep.html").read_text()
    assert page.count("<svg") >= 3
    assert "http" not in page.replace('http-equiv="', "").replace("http://www.w3.org/2000/svg", "")
    # The same command again: nothing is trained, the same is said.
    before = (root / "trials" / "000" / "metrics.jsonl").stat().st_mtime_ns
    assert of(swept(tmp_path, RANGES, "--trials", "3", "--seeds", "2", "--hold-out", "0.25")) == of(result)
    assert (root / "trials" / "000" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_kill_loses_the_running_trial_alone(tmp_path: Path) -> None:
    words = ("--trials", "4", "--seeds", "0", "--no-halving")
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = swept(whole, RANGES, *words)
    (tmp_path / "cfg.yaml").write_text(SPEC + RANGES)
    command = [sys.executable, "-m", "kdcli.cli", "sweep", "cfg.yaml", *words]
    trials = tmp_path / "runs" / "cfg-sweep" / "trials"
    for number in (0, 2):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not (trials / f"{number:03}" / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert of(swept(tmp_path, RANGES, *words)) == of(expected)


def test_two_processes_share_one_storage(tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text(SPEC + RANGES)
    command = [sys.executable, "-m", "kdcli.cli", "sweep", "cfg.yaml", "--trials", "4", "--seeds", "1"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate(timeout=600) for one in both]
    assert [one.returncode for one in both] == [0, 0], "\n".join(text[-3000:] for _, text in said)
    result = swept(tmp_path, RANGES, "--trials", "4", "--seeds", "1")
    assert [one["number"] for one in result["trials"]] == [0, 1, 2, 3]
    assert {one["state"] for one in result["trials"]} <= {"complete", "stopped"}


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    block = "sweep: {trainer.optimizer.kwargs.lr: [0.1, 1.0e+30]}\n"
    result = swept(tmp_path, block, "--seeds", "0")
    assert [one["state"] for one in result["trials"]] == ["complete", "failed"]
    assert result["trials"][1]["error"].startswith("KD7")
    assert (tmp_path / "runs" / "cfg-sweep" / "trials" / "001" / "error.txt").read_text().startswith("KD7")


def test_a_sweep_whose_trials_all_fail_stops(tmp_path: Path) -> None:
    block = "sweep: {trainer.optimizer.kwargs.lr: [1.0e+30, 1.0e+31, 1.0e+32, 1.0e+33]}\n"
    (tmp_path / "cfg.yaml").write_text(SPEC + block)
    done = kdcli("sweep", "cfg.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert "KD838" in done.stderr
    assert "all 3 trials failed" in done.stderr


def test_a_spec_that_does_not_train_as_it_is_written_loses_nothing(tmp_path: Path) -> None:
    """Its seeds fail: the best values, the page and the spec are there all the same."""
    block = "sweep: {trainer.optimizer.kwargs.lr: [1.0e+30, 0.05]}\n"
    result = swept(tmp_path, block, "--seeds", "2", spec=SPEC.replace("lr: 0.1", "lr: 1.0e+30"))
    assert [one["state"] for one in result["trials"]] == ["failed", "complete"]
    best, written = result["seeds"]
    assert len(best["values"]) == 2 and not best["failed"]
    assert written["values"] == [] and set(written["failed"]) == {"1", "2"}
    assert "as written seed 1 failed: KD7" in result["verdict"] and "no verdict" in result["verdict"]
    root = tmp_path / "runs" / "cfg-sweep"
    assert "failed: KD7" in (root / "best.yaml").read_text() and (root / "sweep.html").is_file()


def test_a_sweep_of_failed_and_stopped_trials_says_which(tmp_path: Path) -> None:
    states = {"failed": "KD730: not finite", "stopped": None}
    ended = [
        Trial(number=number, values={}, state=state, error=states[state])
        for number, state in enumerate(("failed", "stopped", "stopped"))
    ]
    whole = SimpleNamespace(folder=tmp_path)
    said = str(_Sweep.hopeless(whole, ended))  # type: ignore[arg-type]
    assert "1 failed, 2 were stopped" in said and "KD730: not finite" in said and "None" not in said


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "-1"])
def test_a_share_that_is_none_is_wrong_usage(share: str, tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text(SPEC + RANGES)
    done = kdcli("sweep", "cfg.yaml", f"--hold-out={share}", folder=tmp_path)
    assert done.returncode == 2 and "--hold-out" in done.stderr and not (tmp_path / "runs").exists()


def test_the_command_s_share_wins_and_its_words_train_the_best(tmp_path: Path) -> None:
    spec = SPEC.replace("dataset:\n", "dataset:\n  hold_out: 0.5\n", 1)
    words = ("--trials", "1", "--seeds", "1", "--hold-out", "0.25", "--device", "cpu")
    result = swept(tmp_path, "sweep: {mimic.loss_weight: [1]}\n", *words, spec=spec)
    assert result["hold_out"] == 0.25
    words = tuple(shlex.split(result["command"])[1:])
    assert "dataset.hold_out=" in words and words[-2:] == ("--device", "cpu")
    done = kdcli(*words, "saver.save_dir=again", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "again" / "finished.json").read_text())["last"]
    assert last[result["seeds"][0]["metric"]] == result["seeds"][0]["values"][0]


def test_a_signal_says_how_a_sweep_goes_on(tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text(SPEC.replace("max_epoch: 3", "max_epoch: 3000") + RANGES)
    command = [sys.executable, "-m", "kdcli.cli", "sweep", "cfg.yaml", "--no-halving"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "cfg-sweep" / "trials" / "000" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command again: trials that have ended stay" in " ".join(said.split())
    assert "--resume" not in said and "Traceback" not in said


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    swept(tmp_path, "sweep: {mimic.loss_weight: [1]}\n", "--seeds", "0")
    (tmp_path / "cfg.yaml").write_text(SPEC + "sweep: {mimic.loss_weight: [1, 2]}\n")
    done = kdcli("sweep", "cfg.yaml", "--seeds", "0", folder=tmp_path)
    assert done.returncode == 1
    assert "KD836" in done.stderr
    assert "`mimic.loss_weight`" in done.stderr


def test_without_a_block_three_numbers_are_tried(tmp_path: Path) -> None:
    result = swept(tmp_path, "", "--trials", "1", "--seeds", "0")
    assert list(result["space"]) == [
        "mimic.loss_weight",
        "mimic.cfgs.loss.kwargs.T",
        "trainer.optimizer.kwargs.lr",
    ]
    lr = result["space"]["trainer.optimizer.kwargs.lr"]
    assert (lr["low"], lr["high"]) == (0.033, 0.3)


def test_no_share_can_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text(SPEC + RANGES)
    done = kdcli("sweep", "cfg.yaml", "--hold-out", "0.001", folder=tmp_path)
    assert done.returncode == 1
    assert "KD271" in done.stderr
