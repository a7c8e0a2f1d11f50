"""The learning rate of every step and the moving average, against the points that United-Perception gives."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.errors import SpecError
from kdcli.models.weights import read_weights
from kdcli.records import Finished, Notice
from kdcli.spec.parse import read
from kdcli.spec.schema import Ema, EmaKwargs, OptimizerSpec, SchedulerSpec
from kdcli.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from kdcli.training.optim import (
    AVERAGE_VERSION,
    LearningRate,
    MovingAverage,
    build_optimizer,
    clear_gradients,
    decay_at,
)
from tests.training.runs import SPEC, spec_of, train_all
from tests.training.test_resume_options import begun, refused


def curve(
    steps: int,
    *,
    lr: float,
    batch_size: int = 1,
    steps_per_epoch: int = 10,
    world_size: int = 1,
    **spec: object,
) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    rate = LearningRate(
        optimizer,
        SchedulerSpec(**{"type": "MultiStepLR", "kwargs": {"milestones": [1000]}, **spec}),  # type: ignore[arg-type]
        batch_size=batch_size,
        world_size=world_size,
        steps_per_epoch=steps_per_epoch,
        path=(),
    )
    found = []
    for _ in range(steps):
        found.append(rate.now)
        rate.advance()
    return found


def test_exp_warm_up_to_the_scaled_rate() -> None:
    lrs = curve(600, lr=0.00125, batch_size=16, warmup_iter=500)
    assert lrs[0] == pytest.approx(0.00125)
    assert lrs[250] == pytest.approx(0.005014, rel=1e-4)
    assert lrs[499] == pytest.approx(0.02)
    assert lrs[500] == pytest.approx(0.02)


def test_linear_warm_up_without_scaling() -> None:
    lrs = curve(
        20,
        lr=0.4,
        batch_size=64,
        warmup_iter=10,
        warmup_type="linear",
        warmup_ratio=0.25,
        warmup_register_type="no_scale_lr",
    )
    assert lrs[0] == pytest.approx(0.1)
    assert lrs[9] == pytest.approx(0.4)


def test_the_scale_is_processes_times_batch_and_immediate_without_warm_up() -> None:
    assert curve(1, lr=0.001, batch_size=8, world_size=2)[0] == pytest.approx(0.016)


def test_milestones_and_t_max_are_epochs() -> None:
    lrs = curve(40, lr=1.0, kwargs={"milestones": [1, 3], "gamma": 0.1}, steps_per_epoch=10)
    assert (lrs[9], lrs[10], lrs[29], lrs[30]) == pytest.approx((1.0, 0.1, 0.1, 0.01))
    cosine = curve(21, lr=1.0, type="CosineAnnealingLR", kwargs={"T_max": 2}, steps_per_epoch=10)
    assert (cosine[0], cosine[10], cosine[20]) == pytest.approx((1.0, 0.5, 0.0), abs=1e-9)


COSINE = {"type": "CosineAnnealingLR", "warmup_register_type": "no_scale_lr"}


def test_warmup_iter_among_a_cosines_kwargs_is_the_step_at_which_it_begins() -> None:
    lrs = curve(21, lr=1.0, steps_per_epoch=10, kwargs={"T_max": 2, "warmup_iter": 8}, **COSINE)
    # (1 + cos(pi * (i - 8) / 12)) / 2: a half at 14, nothing at 20; before 8 the side that rises
    assert (lrs[8], lrs[12], lrs[14], lrs[16], lrs[20]) == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0))
    assert (lrs[0], lrs[2], lrs[4]) == pytest.approx((0.25, 0.5, 0.75))


def test_a_cosine_begins_where_the_warm_up_ends() -> None:
    lrs = curve(
        21,
        lr=0.4,
        steps_per_epoch=10,
        warmup_iter=5,
        warmup_type="linear",
        warmup_ratio=0.25,
        kwargs={"T_max": 2, "eta_min": 0.1, "warmup_iter": 5},
        **COSINE,
    )
    assert lrs[:5] == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4])
    # 0.1 + 0.3 * (1 + cos(pi * (i - 5) / 15)) / 2: three quarters at 10, a quarter at 15
    assert (lrs[5], lrs[10], lrs[15], lrs[20]) == pytest.approx((0.4, 0.325, 0.175, 0.1))


def test_a_warm_up_alone_does_not_shift_the_cosine() -> None:
    lrs = curve(20, lr=1.0, steps_per_epoch=10, warmup_iter=5, kwargs={"T_max": 2}, **COSINE)
    zero = {"T_max": 2, "warmup_iter": 0}
    assert lrs[10] == pytest.approx(0.5) and lrs[15] == pytest.approx((1 - 0.5**0.5) / 2)
    assert curve(20, lr=1.0, steps_per_epoch=10, warmup_iter=5, kwargs=zero, **COSINE) == lrs


@pytest.mark.parametrize(
    ("shift", "said"), [(20, "end at step 20"), (90, "begins at step 90"), (-1, "got -1")]
)
def test_a_cosine_that_begins_after_its_end_is_refused(shift: int, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        curve(1, lr=1.0, steps_per_epoch=10, kwargs={"T_max": 2, "warmup_iter": shift}, **COSINE)
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KD443", ("kwargs", "warmup_iter")) and said in found.message


def test_a_scheduler_by_epoch_moves_once_an_epoch() -> None:
    lrs = curve(25, lr=1.0, type="ExponentialLR", kwargs={"gamma": 0.5}, steps_per_epoch=10)
    assert (lrs[9], lrs[10], lrs[20]) == pytest.approx((1.0, 0.5, 0.25))


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("MultiStepLR", {"milestones": [1, 2]}),
        ("CosineAnnealingLR", {"T_max": 3}),
        ("CosineAnnealingLR", {"T_max": 3, "warmup_iter": 4}),
        ("CosineAnnealingLR", {"T_max": 3, "warmup_iter": 17, "eta_min": 0.01}),
        ("ExponentialLR", {"gamma": 0.5}),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 30}),
        ("OneCycleLR", {"max_lr": 1.0, "max_epoch": 3}),
        ("CosineLREpochScheduler", {"T_max": 3, "warm_epoch": 1}),
        ("EpochBasedCosineAnnealingLR", {"T_max": 3, "eta_min": 0.1}),
        ("polylr", {"max_epoch": 3, "power": 0.9}),
        ("StepLR", {"step_size": 1}),
        ("CosineAnnealingWarmRestarts", {"T_0": 1}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 4}),
        ("ConstantLR", {"total_iters": 1}),
        ("LinearLR", {"total_iters": 2}),
        ("PolynomialLR", {"total_iters": 2}),
    ],
)
def test_a_restored_rate_goes_on_as_if_nothing_had_happened(kind: str, kwargs: dict[str, object]) -> None:
    def make() -> LearningRate:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        spec = SchedulerSpec(type=kind, kwargs=kwargs, warmup_iter=4, warmup_register_type="no_scale_lr")
        return LearningRate(optimizer, spec, batch_size=2, world_size=1, steps_per_epoch=10, path=())

    whole = make()
    lrs = []
    for step in range(28):
        if step == 13:
            restored = make()
            restored.load_state_dict(whole.state_dict())
        lrs.append(whole.now)
        whole.advance()
    again = []
    for _ in range(13, 28):
        again.append(restored.now)
        restored.advance()
    assert again == lrs[13:]


def test_an_unknown_argument_names_the_nearest() -> None:
    spec = OptimizerSpec(type="SGD", kwargs={"lr": 0.1, "momentun": 0.9})
    with pytest.raises(SpecError) as caught:
        build_optimizer(spec, [nn.Parameter(torch.zeros(1))], ("trainer", "optimizer"))
    found = caught.value.diagnostics[0]
    assert found.path == ("trainer", "optimizer", "kwargs", "momentun") and "momentum" in (found.help or "")


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_fused_form_makes_the_same_steps(name: str) -> None:
    found = []
    for kwargs in ({}, {"foreach": False}):
        weight = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        optimizer = build_optimizer(OptimizerSpec(type=name, kwargs={"lr": 0.1, **kwargs}), [weight], ())
        for step in range(3):
            weight.grad = torch.cos(weight.detach() + step)
            optimizer.step()
        found.append(weight.detach())
        assert bool(optimizer.defaults["fused"]) is (kwargs == {})
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_momentum_begins_at_nothing_where_a_scaler_skips_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch's fused SGD makes its momentum then and doesn't fill it; what lies in memory by chance is NaN here."""
    weight = nn.Parameter(torch.ones(3))
    spec = OptimizerSpec(type="SGD", kwargs={"lr": 0.5, "momentum": 0.9})
    optimizer = build_optimizer(spec, [weight], ("trainer", "optimizer"))
    monkeypatch.setattr(torch, "empty_like", lambda like, **_: torch.full_like(like, math.nan))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (math.inf, 4.0):
        scaler.scale(weight.sum() * 0)
        weight.grad = torch.full((3,), gradient)
        scaler.step(optimizer)
        scaler.update()
    # The second step's scale is half of the first, 1: 1 - 0.5 * 4
    assert weight.tolist() == [-1.0] * 3


def test_a_parameter_may_get_its_first_gradient_late() -> None:
    def moved(**kwargs: bool) -> list[torch.Tensor]:
        weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
        spec = OptimizerSpec(type="SGD", kwargs={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **kwargs})
        optimizer = build_optimizer(spec, weights, ())
        for step in range(4):
            optimizer.zero_grad()
            sum((w * w).sum() for w in (weights if step >= 2 else weights[:1])).backward()  # type: ignore[union-attr]
            optimizer.step()
        return [weight.detach() for weight in weights]

    for fused, plain in zip(moved(), moved(foreach=False), strict=True):
        assert torch.allclose(fused, plain)


def test_gradients_are_cleared_as_the_optimizer_does_it() -> None:
    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none=False)

    for kind, kept in ((torch.optim.SGD, False), (Own, True)):
        weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
        weights[0].grad = weights[2].grad = torch.ones(2)
        clear_gradients(kind([{"params": weights[:1]}, {"params": weights[1:2]}], lr=0.1))
        assert weights[0].grad is None if not kept else torch.equal(weights[0].grad, torch.zeros(2))
        assert weights[1].grad is None and weights[2].grad is not None


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


@pytest.mark.parametrize(
    ("step", "linear", "exp"),
    [
        # d = 0.9 ** 2; linear: (1 + i) / (5 + i) until that is above 0.81; exp: d * (1 - exp(-i / 2000))
        (0, 0.2, 0.0),
        (1, 1 / 3, 0.81 * 0.000499875),
        (2, 3 / 7, 0.81 * 0.000999500),
        (12, 13 / 17, 0.81 * 0.005982036),
        (13, 14 / 18, 0.81 * 0.006478921),
        (17, 0.81, 0.81 * 0.008463977),
        (1999, 0.81, 0.81 * 0.631936572),
    ],
)
def test_the_decay_of_the_first_steps_with_every_argument(step: int, linear: float, exp: float) -> None:
    kwargs = {"decay": 0.9, "inner_T": 2, "warmup": 5}
    assert decay_at(average(**kwargs), step) == pytest.approx(linear, rel=1e-9)
    assert decay_at(average("exp", **kwargs), step) == pytest.approx(exp, rel=1e-6)


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


@pytest.mark.parametrize("ema_type", ["linear", "exp"])
def test_an_average_restored_goes_on_as_if_nothing_had_happened(ema_type: str) -> None:
    def follow(mean: MovingAverage, numbers: range) -> None:
        for number in numbers:
            mean.net.set(float(number))  # type: ignore[operator]
            mean.update()

    spec = average(ema_type, decay=0.9, inner_T=2, warmup=7)
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


@pytest.mark.slow
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
LINEAR = "trainer.ema={enable: true, ema_type: linear, kwargs: {decay: 0.9, inner_T: 2, warmup: 3}}"


def test_an_average_of_the_old_meaning_goes_on_where_that_is_allowed() -> None:
    newest = begun(AVERAGE)
    assert load_checkpoint(newest)["ema"]["version"] == AVERAGE_VERSION
    made_old(newest)
    said = refused("KD725", AVERAGE, resume=True)
    assert "--allow-changed trainer.ema" in said
    refused("KD725", AVERAGE, resume=True, allow_changed=("trainer.ema.kwargs.warmup",))
    records = train_all(spec_of(SPEC, AVERAGE), resume=True, allow_changed=("trainer.ema",))
    assert any(isinstance(r, Notice) and "continuing at step 5" in r.message for r in records)
    state = load_checkpoint(checkpoints(newest.parent)[0])
    assert state["ema"]["version"] == AVERAGE_VERSION and state["ema"]["step"] == 10


@pytest.mark.parametrize(
    "average", [AVERAGE, pytest.param(LINEAR, marks=pytest.mark.slow)], ids=["exp", "linear"]
)
def test_an_average_of_todays_meaning_goes_on(average: str) -> None:
    begun(average)
    train_all(spec_of(SPEC, average), resume=True)
    one = read_weights(Path("runs/small/student.safetensors"))
    train_all(spec_of(SPEC, average, "saver.save_dir=whole"))
    other = read_weights(Path("whole/student.safetensors"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.slow
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


def test_a_warm_up_in_epochs_and_a_schedule_in_steps() -> None:
    """A warm-up of 0.5 epochs of 10 steps is 5 steps; with `iter_base` the schedule counts steps."""
    spec = SchedulerSpec(
        type="MultiStepLR",
        kwargs={"milestones": [7], "gamma": 0.1},
        warmup_epochs=0.5,
        warmup_type="linear",
        warmup_ratio=0.2,
        warmup_register_type="no_scale_lr",
    )
    rates = {}
    for unit in (10, 1):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        rate = LearningRate(
            optimizer, spec, batch_size=4, world_size=1, steps_per_epoch=unit, path=("trainer",)
        )
        rates[unit] = []
        for _ in range(9):
            rates[unit].append(rate.now)
            rate.advance()
    # From 0.2 to 1 in four equal rises; the milestone is at step 70, and at step 7 where it counts steps.
    assert rates[10] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])
    assert rates[1] == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.1, 0.1])
