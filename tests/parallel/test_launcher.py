"""The launcher by the real command line: signals, deaths, errors, restarts, several machines, other launchers."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launched import TRAIN, TWO, command, prepare, wait_for
from tests.training.outcomes import assert_same, outcome
from tests.training.processes import finish, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run leaves behind."""
    folder = prepare(tmp_path_factory.mktemp("launched") / "whole")
    finish(folder / "small.yaml", folder=folder, processes=2, plugins=["own_student"], report=False)
    return outcome(folder)


def continued(screen: str) -> Sequence[str]:
    """The words after `kdcli` of the command that the last line of a screen tells."""
    last = screen.rstrip().splitlines()[-1]
    assert last.startswith("  help: continue with `kdcli train ") and last.endswith("`"), screen
    return shlex.split(last.partition("`")[2].removesuffix("`"))[1:]


def test_ctrl_c_loses_nothing_and_a_death_restarts_all(folder: Path, whole: dict[str, Any]) -> None:
    parts = prepare(folder / "parts", "1 SIGINT")
    stopped = command(parts, *TRAIN, *TWO, "trainer.log_freq=50")
    assert stopped.code() == 130, stopped.screen()
    words = continued(stopped.screen())
    assert {"trainer.log_freq=50", "--nproc", "--resume"} <= set(words)
    (parts / "order").write_text("0 die")
    restarted = command(parts, *words, "--max-restarts", "1")
    assert restarted.code() == 0, restarted.screen()
    assert "a process died and all are started again: continuing at step " in restarted.screen()
    assert_same(whole, outcome(parts, restarted.screen()))


def test_a_killed_worker_is_told_and_torchrun_continues(folder: Path, whole: dict[str, Any]) -> None:
    parts = prepare(folder / "parts", "1 die")
    killed = command(parts, *TRAIN, *TWO)
    while (parts / "order").exists():
        time.sleep(0.05)
    began = time.monotonic()
    assert killed.code() == 1
    assert time.monotonic() - began < 10.0
    told = killed.screen()
    assert told.count("KD7") == 1 and "error KD723: process 1 of this machine was killed by SIGKILL" in told
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "kdcli.cli")
    finished = command(parts, *TRAIN, "--resume", python=torchrun)
    assert finished.code() == 0, finished.screen()
    assert_same(whole, outcome(parts, finished.screen()))


def test_sigterm_on_one_of_two_machines_and_slurm_continues(folder: Path, whole: dict[str, Any]) -> None:
    parts = prepare(folder / "parts", "1 SIGTERM")
    meeting = ("--nnodes", "2", "--rdzv-endpoint", f"localhost:{free_port()}")
    machines = [command(parts, *TRAIN, *meeting, "--node-rank", str(rank)) for rank in (0, 1)]
    assert [machine.code() for machine in machines] == [143, 143], machines[0].screen()
    assert "continue with `kdcli train" in machines[0].screen().rstrip().splitlines()[-1]
    assert machines[1].screen() == ""
    port = free_port()
    tasks = [
        command(
            parts,
            *(*TRAIN, *TWO, "--resume"),
            MASTER_PORT=port,
            SLURM_NTASKS=2,
            SLURM_STEP_NUM_TASKS=2,
            SLURM_STEP_NODELIST="localhost",
            SLURM_PROCID=rank,
            SLURM_LOCALID=rank,
        )
        for rank in (0, 1)
    ]
    assert [task.code() for task in tasks] == [0, 0], tasks[0].screen() + tasks[1].screen()
    assert tasks[1].screen() == "" and " 2 processes " in tasks[0].screen()
    assert_same(whole, outcome(parts, tasks[0].screen()))


def test_a_second_signal_stops_at_once_and_an_error_is_told_once(folder: Path) -> None:
    parts = prepare(folder / "parts", "1 sleep")
    asleep = command(parts, *TRAIN, *TWO)
    wait_for(parts / "asleep")
    os.kill(asleep.process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert asleep.process.poll() is None
    os.kill(asleep.process.pid, signal.SIGINT)
    assert asleep.code(10.0) == 130
    assert asleep.screen().rstrip().splitlines()[-1].startswith("stopped at once")
    (parts / "order").write_text("1 error")
    failed = command(parts, *TRAIN, *TWO, "--resume")
    assert failed.code() == 1
    told = failed.screen()
    assert told.count("KD7") == 1 and told.count("the student is out of sorts") == 1
    assert "Traceback" not in told and told.rstrip().endswith("help: let it rest")
