"""A process that is stuck keeps nobody: it is named and killed once the run is to stop, and never before."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.parallel.launched import TRAIN, TWO, command, prepare, wait_for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "number", "code"), [("hang", signal.SIGINT, 130), ("clutch", signal.SIGTERM, 143), ("freeze", signal.SIGINT, 130)]
)
def test_a_stuck_process_does_not_keep_a_run_that_is_told_to_stop(
    folder: Path, trouble: str, number: int, code: int
) -> None:
    parts = prepare(folder / "parts", f"1 {trouble}")
    run = command(parts, *TRAIN, *TWO)
    wait_for(parts / "stuck")
    began = time.monotonic()
    os.kill(run.process.pid, number)
    assert run.code() == code, run.screen()
    print(time.monotonic() - began)
    assert time.monotonic() - began < 15.0
    print(run.screen())


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["hang", "clutch"])
def test_a_stuck_process_does_not_keep_a_run_whose_other_process_died(folder: Path, trouble: str) -> None:
    parts = prepare(folder / "parts", f"1 {trouble}")
    run = command(parts, *TRAIN, *TWO)
    wait_for(parts / "stuck")
    began = time.monotonic()
    first = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and f"PPid:\t{run.process.pid}\n" in (p / "status").read_text() and b"RANK=0\0" in (p / "environ").read_bytes() and b"LOCAL_RANK=0\0" in (p / "environ").read_bytes())
    os.kill(first, signal.SIGKILL)
    assert run.code() == 1, run.screen()
    print(time.monotonic() - began)
    print(run.screen())
