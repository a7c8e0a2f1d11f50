"""Steps are told by the device's pace: what the host waits for at a log point is the steps' time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.parallel.distributed import Processes
from kdcli.training.checkpoint import Progress
from kdcli.training.loss_records import DeviceNotices, LossRecords


class Clock:
    """A host that hands over a step in 1 s, and a device that takes 3 s for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = self.device = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.host)

    def hand_over(self) -> None:
        self.host += 1.0
        self.device = max(self.device, self.host) + 3.0

    def wait(self, total: Tensor) -> Tensor:
        self.host = max(self.host, self.device)
        return total


def test_a_slow_device_is_not_told_at_the_hosts_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    run: Any = SimpleNamespace(
        total_steps=40,
        accumulate=1,
        steps_per_epoch=20,
        processes=SimpleNamespace(world_size=1, sum=clock.wait),
    )
    records = LossRecords(run)
    clock.host += 100.0  # the guard's time, and a test's
    records.begin()
    seconds = []
    for step in range(1, 21):
        clock.hand_over()
        records.add(Progress(step=step, batch=step), [{"task.ce": torch.tensor(1.0)}], 0.1, 480, None)
        if step % 10 == 0:
            seconds += [record.seconds for record in records.flush()]
    assert len(seconds) == 20
    assert sum(seconds) == pytest.approx(clock.host - 100.0)
    assert 480 * 20 / sum(seconds) == pytest.approx(
        160.0, rel=0.05
    )  # images/s; the host alone handed over 480


def test_skipped_steps_of_fp16_are_counted_and_told() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    run: Any = SimpleNamespace(
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**20),
        processes=Processes(device=torch.device("cpu")),
        train_loader=[1, 2],
    )
    notices = DeviceNotices(run, Progress())
    for gradient in (float("inf"), float("nan"), 1.0):
        run.scaler.scale(parameter.sum())
        parameter.grad = torch.full((2,), gradient) * 2.0**20
        notices.step(optimizer)
    assert torch.isfinite(parameter).all()
    (said,) = notices.notices()
    assert "2 of 3 steps so far were skipped" in said.message and said.level == "info"
    assert list(notices.notices()) == []
    (said,) = notices.notices(over=True)
    assert "bf16" in said.message and said.level == "warning"
