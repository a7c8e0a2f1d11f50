"""The checks for a GPU, run on the CPU: their own code, what they print, and that they can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli.training import build
from tests.gpu import __main__ as gpu
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
    assert "FAIL folding: BatchNorms left, fp32" in capsys.readouterr().out


@pytest.mark.long
def test_the_other_checks_run_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["resumed", "waits", "guard", "commands", "two_cards"]
    assert gpu.main([*names, "--on", "cpu"]) == 0, capsys.readouterr().out
