"""A run that waits for data says so once, with the number of workers that would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdcli.records import Alarm
from kdcli.training import loss_records
from kdcli.training.loss_records import DataWaits, remedy_for
from tests.training.runs import SPEC, spec_of, train_all


class Clock:
    """Time that passes where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loss_records, "time", clock)
    monkeypatch.setattr(loss_records, "usable_cores", lambda: 8.0)
    return clock


def run(
    clock: Clock, *, load: float, work: float, device: float = 0.0, busy: bool = False, batches: int = 50
) -> list[Any]:
    """The alarms of some batches: seconds in the loader, beside it, and at a log point after each step."""
    loader: Any = SimpleNamespace(workers=0, in_memory=False)
    waits = DataWaits(loader, busy=lambda: busy)

    def loaded() -> Iterator[int]:
        for number in range(batches):
            clock.now += load
            yield number

    def read() -> Iterator[int]:
        clock.now += device
        yield 1
        clock.now += 100 * load  # whoever shows a record is no device

    found: list[Any] = []
    for number in waits.timed(loaded()):
        clock.now += work
        next(waits.reading(read()))
        found += waits.judge(number + 1)
    return found


def test_a_tenth_of_the_time_is_told_once(clock: Clock) -> None:
    [alarm] = run(clock, load=0.3, work=0.2)
    assert alarm.code == "KD795" and alarm.numbers["share"] == pytest.approx(0.6)
    # 5 are left out, and 20 batches of half a second are 10 seconds; the last one is still under way.
    assert alarm.step == 26
    assert alarm.message == (
        "KD795: data is waited for, step 26: in 60% of the time, over 20 batches; write"
        " `dataset.train.dataloader.kwargs.num_workers: 2` (now 0), or read less: smaller image files,"
        " `scaled_decode: true` for large JPEGs, `dataloader.kwargs.in_memory: true` for few images"
    )
    assert run(clock, load=0.02, work=0.48) == []
    assert run(clock, load=0.003, work=0.002) == []  # a quarter of a second


def test_a_device_that_is_at_work_waits_for_nothing(clock: Clock) -> None:
    assert run(clock, load=0.3, work=0.1, device=0.3) == []
    assert run(clock, load=0.3, work=0.1, busy=True) == []  # it had work for longer than the batch took
    [alarm] = run(clock, load=0.3, work=0.1, device=0.1)
    assert alarm.numbers["share"] == pytest.approx(0.2 / 0.5)


def test_the_number_of_workers_that_would_do() -> None:
    # A batch takes 1 s to read, a step 0.25 s: four workers keep up.
    assert "num_workers: 4` (now 0)" in remedy_for(workers=0, waited=1.0, worked=0.25, cores=8)
    # Of two workers one came each 0.5 s, so that each needs 1 s for it.
    assert "num_workers: 4` (now 2)" in remedy_for(workers=2, waited=0.25, worked=0.25, cores=8)
    assert "num_workers: 3` (now 0), which 4 cores allow" in remedy_for(
        workers=0, waited=1.0, worked=0.1, cores=4
    )
    assert remedy_for(workers=1, waited=1.0, worked=0.1, cores=2).startswith("more data workers than 1")
    assert "num_workers" not in remedy_for(workers=0, waited=1.0, worked=0.1, cores=8, in_memory=True)
    assert remedy_for(workers=None, waited=1.0, worked=0.1, cores=2).startswith("give your DataLoader more")


def test_a_run_records_it_for_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SECONDS", 0.0), ("WAIT_SHARE", -1.0), ("STEPS", 1), ("LEFT_OUT", 0)):
        monkeypatch.setattr(loss_records, name, value)

    def alarms(folder: str, **kwargs: bool) -> list[Alarm]:
        loads = f"dataset.train.dataloader.kwargs={{in_memory: {str(kwargs['in_memory']).lower()}}}"
        parsed = spec_of(SPEC, "trainer.max_epoch=1", loads, f"saver.save_dir={tmp_path / folder}")
        return [
            record for record in train_all(parsed) if isinstance(record, Alarm) and record.code == "KD795"
        ]

    [alarm] = alarms("files", in_memory=False)
    assert "num_workers" in alarm.message
    assert alarms("held", in_memory=True) == []  # on the CPU that is work, and no wait
