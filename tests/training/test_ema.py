"""The moving average: its decay, what it averages, what a run makes of it, and what may continue it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.models.weights import read_weights
from kdcli.records import Finished, Notice
from kdcli.spec.parse import read
from kdcli.spec.schema import Ema, EmaKwargs
from kdcli.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from kdcli.training.ema import VERSION, MovingAverage, decay_at
from tests.training.runs import SPEC, spec_of, train_all
from tests.training.test_resume_options import begun, refused

SAMPLE = Path(__file__).parents[2] / "sample_configs/digits_student.yaml"


def average(ema_type: str = "linear", **kwargs: Any) -> Ema:
    return Ema.model_validate({"ema_type": ema_type, "kwargs": kwargs})


class Small(nn.Module):
    """One weight and one buffer of each kind; `step` sets all that moves to a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    @torch.no_grad()
    def set(self, number: float) -> None:
        self.weight.fill_(number)
        self.running.fill_(number)
        self.count.fill_(int(number))


@pytest.mark.parametrize(("step", "decay"), [(0, 0.0), (100, 0.048761), (2000, 0.631994), (10000, 0.993063)])
def test_the_decay_of_exp_rises_over_two_thousand_steps(step: int, decay: float) -> None:
    assert decay_at(average("exp", decay=0.9998), step) == pytest.approx(decay, abs=5e-7)


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.01), (400, 0.802), (98_900, 0.999), (98_000, 98_001 / 98_100)]
)
def test_the_decay_of_linear_warms_up(step: int, decay: float) -> None:
    assert decay_at(average(decay=0.999, warmup=100), step) == pytest.approx(decay, abs=1e-9)


def test_the_decay_counts_for_as_many_steps_as_one_average_spans() -> None:
    assert decay_at(average(decay=0.9, inner_T=3), 5) == pytest.approx(0.729)
    whole = decay_at(average("exp", decay=0.9, inner_T=3), 2000)
    assert whole == pytest.approx(0.729 * (1 - math.exp(-1)))


def test_without_warm_up_the_decay_holds_from_the_first_step() -> None:
    assert EmaKwargs().warmup == EmaKwargs().inner_T == 1
    assert [decay_at(average(decay=0.9), step) for step in (0, 1, 1000)] == [0.9] * 3


def test_linear_averages_at_every_inner_step_from_the_first() -> None:
    net = Small()
    mean = MovingAverage(net, average(decay=0.5, inner_T=2))
    seen = []
    for number in (1.0, 2.0, 3.0, 4.0):
        net.set(number)
        mean.update()
        seen.append(mean.parameters["weight"][0].item())
    # 0.5 ** 2 stays: 0.75 * 1, then 0.25 * 0.75 + 0.75 * 3
    assert seen == [0.75, 0.75, 2.4375, 2.4375]


def test_exp_averages_at_every_step() -> None:
    net = Small()
    mean = MovingAverage(net, average("exp", decay=0.9, inner_T=2))
    expected = 0.0
    for step, number in enumerate((1.0, 2.0, 3.0)):
        net.set(number)
        mean.update()
        decay = 0.81 * (1 - math.exp(-step / 2000))
        expected = decay * expected + (1 - decay) * number
        assert mean.parameters["weight"][0].item() == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(3.0, abs=1e-4)


def test_buffers_of_real_numbers_are_averaged_others_copied() -> None:
    net = Small()
    mean = MovingAverage(net, average(decay=0.5))
    for number in (1.0, 3.0):
        net.set(number)
        mean.update()
    assert mean.buffers["running"].tolist() == mean.parameters["weight"].tolist() == [1.75, 1.75]
    assert mean.buffers["count"].item() == 3
    assert mean.buffers["mask"].tolist() == [0.0, -math.inf]
    with mean.in_place():
        assert net.running.tolist() == [1.75, 1.75]
    assert net.running.tolist() == [3.0, 3.0]


def test_an_average_restored_goes_on_as_if_nothing_had_happened() -> None:
    def follow(mean: MovingAverage, numbers: range) -> None:
        for number in numbers:
            mean.net.set(float(number))  # type: ignore[operator]
            mean.update()

    spec = average(decay=0.9, inner_T=2, warmup=7)
    whole = MovingAverage(Small(), spec)
    follow(whole, range(9))
    again = MovingAverage(Small(), spec)
    half = MovingAverage(Small(), spec)
    follow(half, range(5))
    again.load_state_dict(half.state_dict())
    follow(again, range(5, 9))
    assert again.step == whole.step
    assert torch.equal(again.parameters["weight"], whole.parameters["weight"])
    assert torch.equal(again.buffers["running"], whole.buffers["running"])


def test_an_average_of_a_short_run_has_learnt(tmp_path: Path) -> None:
    parsed = read(
        SAMPLE,
        [
            "trainer.ema={enable: true, ema_type: exp, kwargs: {decay: 0.9998}}",
            "trainer.max_epoch=6",
            f"saver.save_dir={tmp_path / 'run'}",
        ],
    )
    finished = train_all(parsed, places=parsed.places)[-1]
    assert isinstance(finished, Finished)
    assert finished.last["top1"] > 45.0  # 10 by chance, which is where the first weights stay


def made_old(path: Path) -> None:
    """Put a checkpoint as it was before the average had a version in the place of this one."""
    state = load_checkpoint(path)
    state["ema"] = {key: value for key, value in state["ema"].items() if key != "version"}
    state["spec"] = state["spec"].replace("warmup: 1", "warmup: 0")
    assert "warmup: 0" in state["spec"]
    folder = path.parent
    shutil.rmtree(folder)
    folder.mkdir()
    save_checkpoint(folder, state["progress"]["step"], state, keep=1)


AVERAGE = "trainer.ema={enable: true, ema_type: exp, kwargs: {decay: 0.9998}}"


def test_an_average_of_the_old_meaning_goes_on_where_that_is_allowed() -> None:
    newest = begun(AVERAGE)
    assert load_checkpoint(newest)["ema"]["version"] == VERSION
    made_old(newest)
    said = refused("KD725", AVERAGE, resume=True)
    assert "--allow-changed trainer.ema" in said
    refused("KD725", AVERAGE, resume=True, allow_changed=("trainer.ema.kwargs.warmup",))
    records = train_all(spec_of(SPEC, AVERAGE), resume=True, allow_changed=("trainer.ema",))
    assert any(isinstance(r, Notice) and "continuing at step 5" in r.message for r in records)
    state = load_checkpoint(checkpoints(newest.parent)[0])
    assert state["ema"]["version"] == VERSION and state["ema"]["step"] == 10


def test_an_average_of_todays_meaning_goes_on() -> None:
    begun(AVERAGE)
    train_all(spec_of(SPEC, AVERAGE), resume=True)
    one = read_weights(Path("runs/small/student.safetensors"))
    train_all(spec_of(SPEC, AVERAGE, "saver.save_dir=whole"))
    other = read_weights(Path("whole/student.safetensors"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_an_average_that_is_off_on_both_sides_decides_nothing() -> None:
    begun("trainer.ema={enable: false, kwargs: {warmup: 3}}")
    train_all(spec_of(SPEC), resume=True)


def test_an_average_that_one_side_lacks_is_a_key_that_differs() -> None:
    begun(AVERAGE)
    assert "trainer.ema" in refused("KD715", resume=True)


def test_a_buffer_that_began_infinite_is_copied_after_a_resume_too() -> None:
    """A range observer's: whether it is averaged is decided at the first step and kept."""

    class Observed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.register_buffer("largest", torch.tensor(-torch.inf))

    spec = Ema(kwargs=EmaKwargs(decay=0.9))
    net = Observed()
    average = MovingAverage(net, spec)
    net.largest.fill_(3.0)  # type: ignore[operator, union-attr]
    average.update()
    state = average.state_dict()
    again = MovingAverage(net, spec)  # as a resumed run makes it: the buffer is finite by now
    again.load_state_dict(state)
    net.largest.fill_(7.0)  # type: ignore[operator, union-attr]
    for one in (average, again):
        one.update()
        assert float(one.buffers["largest"]) == 7.0
