"""A signal in any phase loses nothing; the ranks stop at one step; a second signal stops at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli import disk
from kdcli.data.loaders import Loader
from kdcli.errors import Interrupted
from kdcli.models.weights import read_weights
from kdcli.parallel.interrupts import Interrupts, listening
from kdcli.records import Evaluation, Finished, Plan, Saved, Step
from kdcli.training.checkpoint import checkpoints, step_of
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.training.processes import finish, screen, start
from tests.training.runs import SPEC, run_of, spec_of, train_all

Strike = Callable[[Run, pytest.MonkeyPatch], None]


def once(action: Callable[..., Any], at: int = 1) -> Callable[..., Any]:
    """The same function that sends SIGTERM to this process before its call number `at`."""
    calls = [0]

    def striking(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(signal.SIGTERM)
        return action(*args, **kwargs)

    return striking


def while_computing(run: Run, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run.trainee, "forward", once(run.trainee.forward, 8))


def while_loading(run: Run, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loader, "_here", once(Loader._here, 9))


def while_evaluating(run: Run, patch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def count(module: torch.nn.Module, args: Any) -> None:
        calls[0] += not module.training
        if calls[0] == 2:
            calls[0] += 1
            signal.raise_signal(signal.SIGTERM)

    run.student.register_forward_pre_hook(count)


def while_saving(run: Run, patch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, [0]

    def strike(handle: int) -> None:
        calls[0] += 1
        # After spec.yaml, spec.resolved.yaml, env.json, data.json and two lists of samples: in the checkpoint.
        if calls[0] == 14:
            signal.raise_signal(signal.SIGTERM)
        fsync(handle)

    patch.setattr(disk.os, "fsync", strike)


@pytest.mark.parametrize("strike", [while_computing, while_loading, while_evaluating, while_saving])
def test_a_signal_in_any_phase_saves_and_the_run_goes_on_exactly(
    strike: Strike, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_all(spec_of(SPEC, "saver.save_dir=whole", "dataset.dataloader.kwargs.in_memory=false"))
    parsed = spec_of(
        SPEC, "saver.save_dir=parts", "saver.auto_resume=true", "dataset.dataloader.kwargs.in_memory=false"
    )
    first: list[Any] = []
    with run_of(parsed) as run, monkeypatch.context() as patch:
        strike(run, patch)
        with pytest.raises(Interrupted) as stopped:
            for record in train(run):
                first.append(record)
    assert stopped.value.signal_number == signal.SIGTERM
    assert "continue with `kdcli train small.yaml --resume`" in str(stopped.value.diagnostics[0].help)
    assert isinstance(first[-1], Saved)
    second = train_all(parsed)
    told = [r for r in [*first, *second] if isinstance(r, (Step, Evaluation))]
    assert [_plain(r) for r in told] == [_plain(r) for r in whole if isinstance(r, (Step, Evaluation))]
    one, other = (read_weights(Path(name) / "student.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def _plain(record: Any) -> Any:
    if isinstance(record, Step):
        return record.step, record.losses, record.lr, record.epoch
    return record.step, record.metrics, record.best, record.epoch


def test_a_signal_before_the_first_step_stops_at_once() -> None:
    with run_of(spec_of()) as run:
        records = train(run)
        run.trainee.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match="no step was under way") as stopped:
            list(records)
        assert stopped.value.signal_number == signal.SIGINT
        assert not checkpoints(run.folder.checkpoints)


def test_a_signal_after_the_last_save_is_heeded_too() -> None:
    with run_of(spec_of()) as run:
        for record in train(run):
            if isinstance(record, Saved) and record.step == 10:
                break
    parsed = spec_of(SPEC, "saver.auto_resume=true")
    with run_of(parsed) as run:
        kinds = [type(record) for record in train(run)]
    assert kinds.count(Step) == 0 and kinds[-1] is Finished and Plan in kinds


def test_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening() as heard, heard.noting():
        assert signal.getsignal(signal.SIGTERM) == heard._take
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    heard = Interrupts()
    with pytest.raises(Interrupted), heard.noting():
        heard._take(signal.SIGTERM, None)
        assert not left
        heard._take(signal.SIGINT, None)
    assert left == [130]


def test_what_a_launcher_passes_on_is_one_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(os, "getpgid", lambda _: os.getpgrp())
    heard = Interrupts()
    with pytest.raises(Interrupted), heard.noting():
        heard._take(signal.SIGINT, None)
        heard._take(signal.SIGINT, None)
        assert not left
        heard._came -= 2.0
        heard._take(signal.SIGINT, None)
        # A worker in a session of its own hears the launcher alone.
        monkeypatch.setattr(os, "getpgid", lambda _: os.getpgrp() + 1)
        heard._came += 2.0
        heard._take(signal.SIGINT, None)
    assert left == [130, 130]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_stop_at_the_step_that_one_was_asked_to(folder: Path, number: int) -> None:
    spec = folder / "two.yaml"
    spec.write_text(SPEC + "\nsaver: {save_dir: out, auto_resume: true}\n")
    run = start(spec, "trainer.max_epoch=400", "trainer.test_freq=400", processes=2)
    run.wait_for("Step")
    last = run.processes[1]
    assert last.pid is not None
    os.kill(last.pid, number)
    assert run.codes() == [128 + number] * 2
    assert "continue with `kdcli train" in screen(folder).splitlines()[-1]
    assert screen(folder, 1) == ""
    assert len({step_of(path) for path in checkpoints(folder / "out/checkpoints")}) >= 1
    finish(
        spec,
        "trainer.max_epoch=400",
        "trainer.test_freq=400",
        "trainer.max_iter=1",
        allow_changed=["trainer.max_iter"],
        processes=2,
    )


LATE = """\
import atexit, sys, threading, time
from kdcli.parallel import interrupts

interrupts.end_after_hooks()
import torch.distributed as dist
from datetime import timedelta

class Slow:
    def __del__(self):
        time.sleep(1.0)

sys.modules["slow"] = Slow()
atexit.register(print, "a hook ran")
store = dist.HashStore()
store.set_timeout(timedelta(seconds=0.6))
threading.Thread(target=lambda: store.get("never"), daemon=True).start()
time.sleep(0.2)
if sys.argv[1:] == ["grouped"]:
    interrupts.group_made()
interrupts.leave(1)
"""


@pytest.mark.slow
def test_a_thread_of_torch_that_comes_back_at_the_end_does_not_abort_the_process() -> None:
    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", LATE, *words], capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    # The control: without the mark the interpreter is taken down, and the thread comes back into it.
    if sys.version_info < (3, 14):  # from there on such a thread sleeps for ever
        code, _, errors = run()
        assert code == -signal.SIGABRT and "terminate called without an active exception" in errors
    assert run("grouped") == (1, "a hook ran\n", "")
