"""The learning rate of every step, against the points that United-Perception gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcli.errors import SpecError
from kdcli.spec.schema import OptimizerSpec, SchedulerSpec
from kdcli.training.optim import LearningRate, build_optimizer


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
        ("StepLR", {"step_size": 1}),
        ("CosineAnnealingWarmRestarts", {"T_0": 1}),
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
