"""A worker that is stuck keeps nobody: it is named and killed once a run is to stop, and never before."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcli.failures import doing
from kdcli.parallel import pulse as pulses
from kdcli.parallel import watchdog as module
from kdcli.parallel.pulse import (
    BETWEEN_SECONDS,
    STUCK_SECONDS,
    UNHURRIED_SECONDS,
    Pulse,
    State,
    keep_pulse,
    pulse_path,
    read,
)
from kdcli.parallel.watchdog import (
    AT_ONCE_SECONDS,
    LEAVE_SECONDS,
    STOP_SECONDS,
    Watchdog,
    status_of,
    stuck_after_death,
    stuck_after_signal,
    stuck_text,
)
from tests.parallel.launched import TRAIN, TWO, command, prepare, wait_for


def state(rank: int, moved: float = 100.0, **fields: Any) -> State:
    """A worker in an ordinary training step."""
    ordinary = {
        "text": "training step 5 of 9",
        "asked": 0,
        "left": 0,
        "patience": 6.0,
        "waits": False,
        "saves": False,
    }
    return State(**{"rank": rank, "pid": 1000 + rank, "moved": moved, **ordinary, **fields})


def ranks(states: list[State]) -> list[int]:
    return [one.rank for one in states]


STUCK = state(1)
WAITING = state(0, waits=True)


@pytest.mark.parametrize(
    ("states", "now", "named"),
    [
        ([WAITING, STUCK], 105.9, []),
        ([WAITING, STUCK], 106.1, [1]),
        ([state(0, moved=106.0), STUCK], 106.1, [1]),
        ([WAITING, state(1, waits=True)], 106.1, [0, 1]),  # in a backward pass that never ends
        # A step that may take thrice the longest so far; torch.compile, an evaluation; a checkpoint.
        ([WAITING, state(1, patience=40.0)], 139.0, []),
        ([WAITING, state(1, patience=40.0)], 141.0, [1]),
        ([WAITING, state(1, text="measuring the student", patience=600.0)], 699.0, []),
        ([WAITING, state(1, text="saving a checkpoint", patience=600.0, saves=True)], 699.0, []),
        # It decodes: slow, and yet its main thread runs.
        ([WAITING, state(1, moved=400.0)], 405.0, []),
    ],
)
def test_after_a_signal_who_does_not_move_is_stuck_and_who_waits_for_others_is_not(
    states: list[State], now: float, named: list[int]
) -> None:
    assert ranks(stuck_after_signal(states, 100.0, now, alone=True)) == named


def test_the_time_counts_from_the_signal() -> None:
    assert stuck_after_signal([state(0, moved=10.0)], 100.0, 105.0, alone=True) == []


def test_one_that_waits_for_another_machine_waits_with_reason() -> None:
    both = [WAITING, state(1, waits=True)]
    assert stuck_after_signal(both, 100.0, 500.0, alone=False) == []
    assert ranks(stuck_after_signal([WAITING, STUCK], 100.0, 500.0, alone=False)) == [1]


def test_after_a_death_waiting_is_in_vain_and_a_checkpoint_is_written_to_its_end() -> None:
    saving = state(2, saves=True, patience=UNHURRIED_SECONDS)
    evaluating = state(3, patience=UNHURRIED_SECONDS)
    states = [WAITING, state(1, moved=105.0), saving, evaluating]
    assert ranks(stuck_after_death(states, 100.0, 106.1)) == [0, 3]
    assert ranks(stuck_after_death([saving], 100.0, 701.0)) == [2]


def test_what_is_said_names_the_process_and_what_it_did() -> None:
    assert stuck_text(STUCK, 107.4) == (
        "process 1 (pid 1001) is stuck in training step 5 of 9, without a move for 7 s: it is killed"
    )
    assert "waits for other processes in training step 5 of 9" in stuck_text(WAITING, 107.0)
    assert "takes too long to leave" in stuck_text(state(1, moved=106.0), 107.0)


@pytest.fixture
def pulse(tmp_path: Path) -> Iterator[Pulse]:
    yield Pulse(pulse_path(tmp_path, 0), 3)
    doing.listener = pulses.pulse = None


def seen(tmp_path: Path) -> State:
    found = read(pulse_path(tmp_path, 0))
    assert found is not None
    return found


def test_a_pulse_says_what_is_done_and_how_long_it_may_take(
    tmp_path: Path, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [50.0]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(doing, "listener", pulse.follow)
    epoch = [1]
    with doing(lambda: f"epoch {epoch[0]}"):
        epoch[0] = 2
        with doing("training step 1 of 9"):
            pulse.step()
            first = seen(tmp_path)
        now[0] += 5.0
        with doing("training step 2 of 9"):
            pulse.step()
            with doing("the forward pass of teacher0"), pulse.waiting():
                assert seen(tmp_path).text == "training step 2 of 9, the forward pass of teacher0"
                assert seen(tmp_path).waits
        assert (seen(tmp_path).patience, seen(tmp_path).waits) == (15.0, False)
        pulse.between_steps()
        assert seen(tmp_path).patience == BETWEEN_SECONDS
        with pulse.saving():
            saving = seen(tmp_path)
        now[0] += 90.0
        pulse.step()  # what was saved before it was no part of a step
        assert seen(tmp_path).patience == 15.0
        pulse.no_step()
        assert seen(tmp_path).patience == UNHURRIED_SECONDS and seen(tmp_path).moved == 145.0
    assert (first.rank, first.pid, first.text) == (3, os.getpid(), "epoch 2, training step 1 of 9")
    assert first.patience == UNHURRIED_SECONDS, "the first step may compile"
    assert (
        saving.saves and saving.patience == UNHURRIED_SECONDS and saving.text.endswith("saving a checkpoint")
    )
    pulse.hear(signal.SIGTERM)
    pulse.leave(143)
    assert (seen(tmp_path).asked, seen(tmp_path).left) == (signal.SIGTERM, 144)
    assert read(tmp_path / "none") is None


def test_a_main_thread_that_runs_python_has_a_pulse_and_a_forked_child_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulses, "BEAT_SECONDS", 0.01)
    before = signal.getsignal(pulses.PING)
    try:
        keep_pulse(pulse_path(tmp_path, 0), 0)
        began, until = seen(tmp_path).moved, time.monotonic() + 20.0
        while seen(tmp_path).moved == began and time.monotonic() < until:
            sum(range(1000))
        assert seen(tmp_path).moved > began
        child = os.fork()
        if child == 0:
            os._exit(pulses.pulse is not None or doing.listener is not None)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        pulses.stop_pulse()
        signal.signal(pulses.PING, before)


class Workers:
    """Two processes that do nothing, and the states that they are said to be in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes = [self._started() for _ in range(2)]
        self.states = [state(rank, pid=one.pid) for rank, one in enumerate(self.processes)]
        monkeypatch.setattr(module, "read", lambda path: self.states[int(path.name)])
        self.dog = Watchdog([Path("0"), Path("1")], alone=True)

    @staticmethod
    def _started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"])

    def end(self, rank: int) -> None:
        self.processes[rank].kill()
        self.processes[rank].wait()

    def killed(self) -> list[int]:
        return [one.rank for one in self.dog.killed]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    made = Workers(monkeypatch)
    yield made
    for rank in range(2):
        made.end(rank)


def test_without_a_signal_or_a_death_nobody_is_killed(workers: Workers) -> None:
    workers.dog.look(100_000.0)
    assert not workers.dog.killed


def test_a_signal_to_the_launcher_or_to_a_worker_begins_the_time(
    workers: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    workers.states[0] = replace(workers.states[0], asked=int(signal.SIGTERM), moved=200.0, waits=True)
    workers.dog.look(200.0)
    workers.dog.look(205.0)
    assert not workers.dog.killed
    workers.dog.look(206.5)
    assert workers.killed() == [1]
    assert workers.processes[1].wait(10) == -signal.SIGKILL
    assert (
        f"KD817: process 1 (pid {workers.processes[1].pid}) is stuck in training step 5"
        in capsys.readouterr().err
    )
    # The other one moves and does not leave.
    workers.states[0] = replace(workers.states[0], moved=213.9)
    workers.dog.look(207.0)
    workers.dog.look(200.0 + STOP_SECONDS)
    assert workers.killed() == [1]
    workers.dog.look(200.5 + STOP_SECONDS)
    assert workers.killed() == [1, 0]


def test_a_death_ends_who_is_stuck_and_a_restart_begins_anew(workers: Workers) -> None:
    workers.end(1)
    workers.dog.look(300.0)
    workers.states[0] = replace(workers.states[0], moved=305.0)
    workers.dog.look(307.0)
    assert not workers.dog.killed
    # Both are started again, one after the other.
    workers.end(0)
    workers.processes = [workers._started() for _ in range(2)]
    for rank, process in enumerate(workers.processes):
        workers.states[rank] = state(rank, pid=process.pid, moved=308.0)
        workers.dog.look(309.0)
    workers.dog.look(400.0)
    assert not workers.dog.killed
    workers.end(0)
    workers.dog.look(401.0)
    workers.states[1] = replace(workers.states[1], moved=401.0 + LEAVE_SECONDS)
    workers.dog.look(401.5 + LEAVE_SECONDS)
    assert workers.killed() == [1]


def test_what_was_asked_before_a_restart_is_over_after_it(workers: Workers) -> None:
    """The agent ends the others with SIGTERM, which is no wish of the user's."""
    workers.end(1)
    workers.dog.look(300.0)
    workers.states[0] = replace(workers.states[0], moved=300.0, asked=15)
    workers.dog.look(300.2)
    workers.end(0)
    workers.processes = [workers._started() for _ in range(2)]
    for rank, process in enumerate(workers.processes):
        workers.states[rank] = state(rank, pid=process.pid, moved=308.0)
    workers.dog.look(309.0)
    workers.dog.look(900.0)  # nobody is judged
    workers.dog.hear(900.0)  # the first of the user's
    workers.states = [replace(one, moved=901.0, patience=600.0) for one in workers.states]
    workers.dog.look(901.0 + 2 * AT_ONCE_SECONDS)
    assert not workers.dog.killed


def test_one_that_left_after_a_signal_did_not_die(workers: Workers) -> None:
    workers.states = [replace(one, patience=600.0) for one in workers.states]
    workers.dog.hear(300.0)
    workers.end(1)
    workers.states[1] = replace(workers.states[1], left=144)
    workers.dog.look(300.5)
    workers.states[0] = replace(workers.states[0], moved=330.0)
    workers.dog.look(331.0)
    assert not workers.dog.killed


def test_one_that_has_ended_well_did_not_die(workers: Workers) -> None:
    workers.end(1)
    workers.states[1] = replace(workers.states[1], left=1)
    workers.dog.look(300.0)
    workers.dog.look(500.0)
    assert not workers.dog.killed


def test_a_second_signal_ends_all_and_one_that_comes_twice_is_one(workers: Workers) -> None:
    workers.states = [replace(one, patience=600.0) for one in workers.states]
    workers.dog.hear(300.0)
    workers.dog.hear(300.5)
    workers.dog.look(310.0)
    assert not workers.dog.killed
    workers.dog.hear(311.0)
    workers.dog.look(311.0 + AT_ONCE_SECONDS / 2)
    assert not workers.dog.killed
    workers.dog.look(311.5 + AT_ONCE_SECONDS)
    assert workers.killed() == [0, 1]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say so elsewhere")
def test_a_process_that_the_system_has_stopped_is_stuck_whatever_it_was_at(workers: Workers) -> None:
    workers.states = [replace(one, patience=600.0) for one in workers.states]
    stopped = workers.processes[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    until = time.monotonic() + 20.0
    while status_of(stopped.pid) != "T" and time.monotonic() < until:
        time.sleep(0.01)
    workers.dog.hear(300.0)
    workers.dog.look(300.5 + STUCK_SECONDS)
    assert workers.killed() == [1]


def worker(launcher: int, rank: int) -> int:
    """The process id of a launcher's worker."""
    for path in Path("/proc").iterdir():
        try:
            told = (path / "environ").read_bytes().split(b"\0") if path.name.isdigit() else []
        except OSError:
            continue
        if f"KDCLI_LAUNCHER={launcher}".encode() in told and f"LOCAL_RANK={rank}".encode() in told:
            return int(path.name)
    raise AssertionError("no such worker")


TROUBLES = {
    "clutch": ("SIGINT", 130),
    "hang": ("SIGTERM", 143),
    "freeze": ("SIGINT", 130),
}


@pytest.mark.skipif(sys.platform != "linux", reason="how the system stops a process is asked of /proc")
@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "clutch" else pytest.mark.long)
        for name in TROUBLES
    ],
)
def test_a_stuck_process_keeps_no_run_that_is_told_to_stop(folder: Path, trouble: str) -> None:
    name, code = TROUBLES[trouble]
    parts = prepare(folder / "parts", f"1 {trouble}")
    run = command(parts, *TRAIN, *TWO)
    wait_for(parts / "stuck")
    began = time.monotonic()
    os.kill(run.process.pid, signal.Signals[name])
    assert run.code() == code, run.screen()
    # 13 s where little else ran, more on a busy machine; without the watchdog 600 s.
    assert time.monotonic() - began < 60.0
    told = run.screen()
    assert re.search(r"without a move for ([6-9]|1\d) s: it is killed", told), told
    assert (
        told.count("KD817: process 1 (pid ") == 1
        and " is stuck in training step 5 of 12, the student's" in told
    )
    assert f"stopped by {name}; what came after the last checkpoint is not saved" in told
    assert "continue with `kdcli train small.yaml" in told.rstrip().splitlines()[-1]
    if trouble == "clutch":
        resumed = command(parts, *TRAIN, *TWO, "--resume")
        assert resumed.code() == 0 and "continuing at step 3" in resumed.screen(), resumed.screen()


@pytest.mark.skipif(sys.platform != "linux", reason="a worker is found by /proc")
@pytest.mark.long
def test_a_stuck_process_keeps_no_run_whose_other_process_died(folder: Path) -> None:
    parts = prepare(folder / "parts", "1 hang")
    run = command(parts, *TRAIN, "--nproc", "3")
    wait_for(parts / "stuck")
    began = time.monotonic()
    os.kill(worker(run.process.pid, 2), signal.SIGKILL)
    assert run.code() == 1, run.screen()
    assert time.monotonic() - began < 60.0
    told = run.screen()
    assert re.search(r"without a move for ([6-9]|1\d) s: it is killed", told), told
    assert " is stuck in training step 4 of 8, the student's" in told and "KD723: process 2 of this" in told
