"""The checks for a GPU, run on the CPU: their own code, what they print, and that they can fail."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.distill import folding as fold_module
from kdcli.errors import RunError
from kdcli.parallel import launch
from kdcli.training import build
from kdcli.training import train as training
from tests.gpu import __main__ as gpu
from tests.gpu import commands, costs, results
from tests.gpu.lines import Lines, Machine, Skipped


def test_without_cuda_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == gpu.NO_CUDA
    assert capsys.readouterr().out.splitlines() == [
        "torch finds no CUDA here: nothing is proved (`--on cpu` runs the checks' own code)"
    ]


def test_a_name_that_is_none_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["folded"]) == 2 and "folding" in capsys.readouterr().err
    assert gpu.main(["--list"]) == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()] == list(gpu.CHECKS)


@pytest.mark.slow
def test_what_fails_what_is_skipped_and_what_is_late_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def good(_: Machine, lines: Lines) -> None:
        lines.most("a", 1.0, 1.05)

    def bad(_: Machine, lines: Lines) -> None:
        lines.least("b", 0.9, 0.95)

    def skipped(*_: Any) -> None:
        raise Skipped("needs two GPUs")

    def broken(*_: Any) -> None:
        raise ValueError("no such thing")

    def status(minutes: str, *checks: Any) -> tuple[int, list[str]]:
        monkeypatch.setattr(gpu, "CHECKS", {check.__name__: check for check in checks})
        code = gpu.main(["--on", "cpu", "--minutes", minutes])
        return code, capsys.readouterr().out.splitlines()

    assert status("1", good, skipped)[0] == 0
    code, rows = status("1", good, bad, skipped, broken)
    assert code == 1 and rows[-1].startswith("1 of 3 ok, 2 failed")
    assert rows[1].startswith("ok   good: a") and "<= 1.05" in rows[1]
    assert rows[2].startswith("FAIL bad: b") and "0.9" in rows[2] and ">= 0.95" in rows[2]
    assert rows[3] == "--   skipped: needs two GPUs" and "ValueError: no such thing" in rows[4]
    code, rows = status("-1", good)
    assert code == 1 and rows[1].startswith("--   good: not begun")


@pytest.mark.slow
def test_the_checks_run_on_the_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.main(["folding", "methods", "modes", "speed", "--on", "cpu"]) == 0, capsys.readouterr().out
    monkeypatch.setattr(build, "fold", lambda *_: 0)
    assert gpu.main(["folding", "--on", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAIL folding: BatchNorms left, fp32" in out and "ok   folding: logits" in out


@pytest.mark.slow
def test_a_folding_that_changes_the_logits_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a BatchNorm were left out and nobody looked."""
    monkeypatch.setattr(fold_module, "_fold", lambda pair: setattr(pair.parent, pair.name, nn.Identity()))
    monkeypatch.setattr(fold_module, "_same", lambda *_: True)
    assert gpu.main(["folding", "--on", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "ok   folding: BatchNorms left, fp32" in out and "FAIL folding: logits" in out


@pytest.mark.slow
def test_a_detectors_waits_are_counted_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["detector_waits", "--on", "cpu"]) == 0, capsys.readouterr().out


def test_torchs_word_on_the_mode_that_counts_waits_is_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes once in a process, with the first step."""
    prototype = [
        "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    ]

    def mode(_: str) -> None:
        if prototype:
            warnings.warn(prototype.pop(), stacklevel=1)

    def step(*_: Any) -> None:
        warnings.warn(
            "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:1.)",
            stacklevel=1,
        )

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    monkeypatch.setattr(training.TrainLoop, "step", step)
    waits: list[str] = []
    loop: Any = object.__new__(training.TrainLoop)
    with results.counted(Machine(torch.device("cpu"), tmp_path), waits):
        for _ in range(2):
            loop.step(None, [])
    assert len(waits) == 2 and all(wait.startswith("test_gpu.py:") for wait in waits)


def test_the_loop_by_hand_reads_normalised_images_of_the_runs_sizes(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Net(nn.Linear):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return super().forward(image.flatten(1))

    net = nn.ModuleDict({"model": Net(3, 2)})
    kwargs = {"num_samples": 8, "shape": [3, 1, 1], "num_classes": 2}
    dataset = SimpleNamespace(
        train=SimpleNamespace(dataset=SimpleNamespace(kwargs=SimpleNamespace(model_dump=lambda: kwargs)))
    )
    run: Any = SimpleNamespace(
        student=net,
        teachers={"teacher0": SimpleNamespace(net=net)},
        train_loader=SimpleNamespace(workers=None, batch_size=4),
        spec=SimpleNamespace(dataset=dataset),
    )
    hand = costs.by_hand(Machine(torch.device("cpu"), tmp_path), run, 3, None)
    next(hand), next(hand)
    assert len(seen) == 12 and {one.shape for one in seen} == {(4, 3, 1, 1)}
    assert all(-2.0 <= float(one.min()) and float(one.max()) <= 2.0 for one in seen)


def test_the_slurm_task_of_the_check_takes_the_one_gpu_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for name, value in commands.SLURM_TASK.items():
        monkeypatch.setenv(name, value)
    assert launch.is_worker() and launch.device_index(3, visible=1) == 0
    for name in commands.SLURM_TASK:
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    with pytest.raises(RunError, match="KD720"):
        launch.device_index(3, visible=1)


@pytest.mark.long
def test_the_other_checks_run_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["resumed", "waits", "guard", "commands", "two_cards"]
    assert gpu.main([*names, "--on", "cpu"]) == 0, capsys.readouterr().out
