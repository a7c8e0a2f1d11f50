"""Warm-ups, schedulers and optimizers: their numbers, and that each of their arguments does something."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.errors import KdError, SpecError
from kdcli.records import Step
from kdcli.spec.schema import OptimizerSpec, SchedulerSpec
from kdcli.spec.tables import OPTIMIZERS, SCHEDULERS
from kdcli.training.optim import (
    IN_EPOCHS,
    IN_STEPS,
    LearningRate,
    build_optimizer,
    optimizer_class,
    scheduler_class,
)
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of

METRICS = (10.0, 11.0, 13.0, 13.1, 13.2, 12.0, 12.0, 20.0)
"""What the evaluation after each epoch gives, for ReduceLROnPlateau."""


def rate_of(spec: SchedulerSpec, optimizer: str = "SGD", lr: float = 1.0, batch: int = 1) -> LearningRate:
    made = getattr(torch.optim, optimizer)([nn.Parameter(torch.zeros(1))], lr=lr)
    return LearningRate(made, spec, batch_size=batch, world_size=2, steps_per_epoch=10, path=())


def followed(rate: LearningRate, steps: int) -> list[tuple[float, float]]:
    """The learning rate and the momentum (beta1) of each step."""
    seen = []
    for step in range(steps):
        group = rate.optimizer.param_groups[0]
        seen.append((rate.now, float(group["betas"][0] if "betas" in group else group["momentum"])))
        rate.advance()
        if step % 10 == 9:
            rate.evaluated(METRICS[step // 10])
    return seen


def curve(kind: str, kwargs: dict[str, Any], steps: int = 80) -> list[tuple[float, float]]:
    """Of a scheduler at lr 1, without warm-up, 10 steps an epoch."""
    return followed(
        rate_of(SchedulerSpec(type=kind, kwargs=kwargs, warmup_register_type="no_scale_lr")), steps
    )


@pytest.mark.parametrize("register", [None, "base"])
@pytest.mark.parametrize(
    ("kind", "ratio", "lrs"),
    [
        # from the raw lr 0.01, or from the ratio of the target, to 0.01 * 8 * 2
        ("exp", None, (0.01, 0.04, 0.16)),
        ("exp", 0.25, (0.04, 0.08, 0.16)),
        ("linear", None, (0.01, 0.085, 0.16)),
        ("linear", 0.25, (0.04, 0.1, 0.16)),
        ("linear", 0.0, (0.0, 0.08, 0.16)),
        ("constant", None, (0.01, 0.01, 0.01)),
        ("constant", 0.25, (0.04, 0.04, 0.04)),
    ],
)
def test_a_warm_up_to_the_scaled_rate(
    kind: Any, ratio: float | None, lrs: tuple[float, ...], register: Any
) -> None:
    spec = SchedulerSpec(
        type="MultiStepLR",
        kwargs={"milestones": [9]},
        warmup_iter=5,
        warmup_type=kind,
        warmup_ratio=ratio,
        warmup_register_type=register,
    )
    seen = [lr for lr, _ in followed(rate_of(spec, lr=0.01, batch=8), 7)]
    assert (seen[0], seen[2], seen[4]) == pytest.approx(lrs)
    assert seen[5:] == pytest.approx([0.16, 0.16])


@pytest.mark.parametrize(
    ("kind", "ratio", "lrs"),
    [
        ("exp", None, (0.01, 0.01, 0.01)),
        ("exp", 0.25, (0.0025, 0.005, 0.01)),
        ("linear", None, (0.01, 0.01, 0.01)),
        ("linear", 0.5, (0.005, 0.0075, 0.01)),
        ("constant", 0.5, (0.005, 0.005, 0.005)),
    ],
)
def test_a_warm_up_without_scaling(kind: Any, ratio: float | None, lrs: tuple[float, ...]) -> None:
    spec = SchedulerSpec(
        type="MultiStepLR",
        kwargs={"milestones": [9]},
        warmup_iter=5,
        warmup_type=kind,
        warmup_ratio=ratio,
        warmup_register_type="no_scale_lr",
    )
    seen = [lr for lr, _ in followed(rate_of(spec, lr=0.01, batch=8), 7)]
    assert (seen[0], seen[2], seen[4]) == pytest.approx(lrs)
    assert seen[5:] == pytest.approx([0.01, 0.01])


def test_a_warm_up_of_one_step_is_at_its_end_at_once() -> None:
    spec = SchedulerSpec(type="MultiStepLR", kwargs={"milestones": [9]}, warmup_iter=1)
    assert rate_of(spec, lr=0.01, batch=8).now == pytest.approx(0.16)
    assert SchedulerSpec(type="StepLR").warmup_type == "exp"


CYCLE = {"base_lr": 0.1, "max_lr": 1.1, "step_size_up": 5}
ONE_CYCLE = {"max_lr": 1.0, "total_steps": 80}
ENDS = {"div_factor": 10.0, "final_div_factor": 10.0}


@pytest.mark.parametrize(
    ("kind", "kwargs", "lrs"),
    [
        ("ConstantLR", {"factor": 0.25, "total_iters": 2}, {0: 0.25, 19: 0.25, 20: 1.0}),
        (
            "LinearLR",
            {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 2},
            {0: 0.25, 10: 0.5, 20: 0.75},
        ),
        ("PolynomialLR", {"total_iters": 2, "power": 2.0}, {0: 1.0, 10: 0.25, 15: 0.0625, 20: 0.0}),
        ("ExponentialLR", {"gamma": 0.5}, {9: 1.0, 10: 0.5, 20: 0.25}),
        ("StepLR", {"step_size": 2, "gamma": 0.5}, {19: 1.0, 20: 0.5, 40: 0.25}),
        ("MultiStepLR", {"milestones": [1, 3], "gamma": 0.5}, {9: 1.0, 10: 0.5, 29: 0.5, 30: 0.25}),
        ("CosineAnnealingLR", {"T_max": 2, "eta_min": 0.2}, {0: 1.0, 10: 0.6, 20: 0.2}),
        (
            "CosineAnnealingWarmRestarts",
            {"T_0": 1, "T_mult": 2, "eta_min": 0.2},
            {0: 1.0, 5: 0.6, 10: 1.0, 20: 0.6, 30: 1.0},
        ),
        ("CyclicLR", {**CYCLE, "step_size_down": 10}, {0: 0.1, 5: 1.1, 10: 0.6, 15: 0.1, 20: 1.1}),
        ("CyclicLR", {**CYCLE, "mode": "triangular2"}, {5: 1.1, 15: 0.6, 25: 0.35}),
        ("CyclicLR", {**CYCLE, "mode": "exp_range", "gamma": 0.9}, {5: 0.1 + 0.9**5, 15: 0.1 + 0.9**15}),
        # in steps: the peak at 0.25 * 40 - 1, the last step is 39, and 24 lies halfway
        (
            "OneCycleLR",
            {"max_lr": 1.0, "total_steps": 80, "pct_start": 0.25, **ENDS},
            {0: 0.1, 19: 1.0, 79: 0.01},
        ),
        (
            "OneCycleLR",
            {
                "max_lr": 2.0,
                "epochs": 8,
                "steps_per_epoch": 10,
                "anneal_strategy": "linear",
                "pct_start": 0.25,
            },
            {0: 0.08, 19: 2.0, 49: 1.000004, 79: 0.000008},
        ),
        (
            "OneCycleLR",
            {**ONE_CYCLE, "pct_start": 0.25, "three_phase": True, **ENDS},
            {0: 0.1, 19: 1.0, 38: 0.1, 79: 0.01},
        ),
        # higher is better: 13.1 and 13.2 are not above 13 * 1.1, nor is 12; the evaluation follows the epoch
        (
            "ReduceLROnPlateau",
            {"factor": 0.5, "patience": 1, "threshold": 0.1},
            {49: 1.0, 50: 0.5, 69: 0.5, 70: 0.25},
        ),
    ],
)
def test_a_scheduler_by_hand(kind: str, kwargs: dict[str, Any], lrs: dict[int, float]) -> None:
    seen = curve(kind, kwargs)
    assert {step: seen[step][0] for step in lrs} == pytest.approx(lrs, abs=1e-9)


MOVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ConstantLR": ({}, {"factor": 0.5, "total_iters": 1}),
    "CosineAnnealingLR": ({"T_max": 2}, {"T_max": 1, "eta_min": 0.1, "warmup_iter": 5}),
    "CosineLREpochScheduler": ({"T_max": 6}, {"T_max": 4, "eta_min": 0.1, "warm_epoch": 1}),
    "CosineAnnealingWarmRestarts": ({"T_0": 1}, {"T_0": 2, "T_mult": 2, "eta_min": 0.1}),
    "CyclicLR": (
        {**CYCLE, "mode": "exp_range", "gamma": 0.9},
        {
            "base_lr": 0.2,
            "max_lr": 2.0,
            "step_size_up": 6,
            "step_size_down": 3,
            "mode": "triangular2",
            "gamma": 0.8,
            "cycle_momentum": False,
            "base_momentum": 0.7,
            "max_momentum": 0.99,
        },
    ),
    "EpochBasedCosineAnnealingLR": ({"T_max": 6}, {"T_max": 4, "eta_min": 0.1, "offset_epoch": 1}),
    "ExponentialLR": ({"gamma": 0.5}, {"gamma": 0.1}),
    "LinearLR": ({"total_iters": 2}, {"start_factor": 0.5, "end_factor": 0.5, "total_iters": 1}),
    "MultiStepLR": ({"milestones": [1]}, {"milestones": [2], "gamma": 0.5}),
    "OneCycleLR": (
        {"max_lr": 1.0, "epochs": 8, "steps_per_epoch": 10},
        {
            "max_lr": 2.0,
            "total_steps": 90,
            "epochs": 9,
            "steps_per_epoch": 12,
            "pct_start": 0.5,
            "anneal_strategy": "linear",
            "cycle_momentum": False,
            "base_momentum": 0.7,
            "max_momentum": 0.99,
            "div_factor": 10.0,
            "final_div_factor": 10.0,
            "three_phase": True,
            "max_epoch": 9,
        },
    ),
    "PolynomialLR": ({"total_iters": 2}, {"total_iters": 1, "power": 2.0}),
    "ReduceLROnPlateau": (
        {"patience": 0, "threshold": 0.2},
        {
            "mode": "min",
            "factor": 0.5,
            "patience": 1,
            "threshold": 0.05,
            "threshold_mode": "abs",
            "cooldown": 1,
            "min_lr": 0.5,
            "eps": 0.5,
        },
    ),
    "StepLR": ({"step_size": 1}, {"step_size": 2, "gamma": 0.5}),
    "polylr": ({"max_epoch": 6}, {"max_epoch": 4, "max_iter": 50, "power": 2.0, "min_lr": 0.2}),
}
"""Of each scheduler the arguments to start from, and another value of each argument that it has."""

FUNCTIONS = {"scale_fn": "a function, which a spec can't hold", "scale_mode": "it is of `scale_fn`"}


def test_every_scheduler_is_moved() -> None:
    assert MOVED.keys() == set(SCHEDULERS), "give a new scheduler another value of each of its arguments"


@pytest.mark.parametrize("kind", sorted(MOVED))
def test_each_argument_of_a_scheduler_changes_the_curve(kind: str) -> None:
    kwargs, others = MOVED[kind]
    known = inspect.signature(scheduler_class(kind)).parameters.keys() - {"optimizer", "last_epoch"}
    assert others.keys() == known - FUNCTIONS.keys()
    before = curve(kind, kwargs)
    for name, value in others.items():
        if (kind, name) == ("ReduceLROnPlateau", "mode"):
            continue  # it has one value, below
        # The length of one cycle is given in one way.
        beside = {"max_lr": 1.0} if name == "max_epoch" and kind == "OneCycleLR" else kwargs
        assert curve(kind, {**beside, name: value}) != before, name


@pytest.mark.parametrize("kind", sorted(MOVED))
def test_the_rates_are_bit_for_bit_those_of_the_scheduler_behind_an_optimizer_that_steps(kind: str) -> None:
    spec = SchedulerSpec(type=kind, kwargs=MOVED[kind][0], warmup_register_type="no_scale_lr")
    alone, expected = rate_of(spec), []
    for step in range(80):
        expected.append(float(alone.shadow.param_groups[0]["lr"]))
        ended = step % 10 == 9
        if kind == "ReduceLROnPlateau":
            alone.scheduler.step(*[METRICS[step // 10]]) if ended else None
        elif kind in IN_EPOCHS or kind in IN_STEPS or ended:
            alone.shadow.step()
            alone.scheduler.step()
    assert [lr for lr, _ in followed(rate_of(spec), 80)] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_one_cycle_moves_the_momentum_against_the_rate(optimizer: str) -> None:
    kwargs = {**ONE_CYCLE, "total_steps": 40, "pct_start": 0.25}

    def momenta(**more: Any) -> list[float]:
        spec = SchedulerSpec(type="OneCycleLR", kwargs={**kwargs, **more}, warmup_register_type="no_scale_lr")
        return [momentum for _, momentum in followed(rate_of(spec, optimizer), 40)]

    # The peak of the rate is at 0.25 * 40 - 1, its end at 39; 24 lies halfway.
    seen = momenta(anneal_strategy="linear")
    assert [seen[step] for step in (0, 9, 24, 39)] == pytest.approx([0.95, 0.85, 0.9, 0.95])
    seen = momenta(base_momentum=0.5, max_momentum=0.7)
    assert [seen[step] for step in (0, 9, 24, 39)] == pytest.approx([0.7, 0.5, 0.6, 0.7])
    assert set(momenta(cycle_momentum=False)) == {0.0 if optimizer == "SGD" else 0.9}


def test_one_cycle_needs_a_momentum_to_move() -> None:
    spec = SchedulerSpec(type="OneCycleLR", kwargs=ONE_CYCLE)
    with pytest.raises(SpecError, match="`Adagrad` has none") as caught:
        rate_of(spec, "Adagrad")
    (finding,) = caught.value.diagnostics
    assert finding.code == "KD443" and "cycle_momentum: false" in (finding.help or "")
    rate_of(SchedulerSpec(type="OneCycleLR", kwargs={**ONE_CYCLE, "cycle_momentum": False}), "Adagrad")


@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
def test_a_restored_momentum_goes_on_and_one_of_an_older_run_stays(kind: str) -> None:
    spec = SchedulerSpec(type=kind, kwargs=MOVED[kind][0])
    whole = rate_of(spec)
    followed(whole, 13)
    state = whole.state_dict()
    again, older = rate_of(spec), rate_of(spec)
    again.load_state_dict(state)
    older.optimizer.param_groups[0]["momentum"] = 0.3
    older.load_state_dict({name: value for name, value in state.items() if name != "momenta"})
    rest = followed(whole, 10)
    assert followed(again, 10) == rest
    assert followed(older, 10) == [(lr, 0.3) for lr, _ in rest]
    assert "momenta" not in older.state_dict()


SAME_NUMBERS = {"foreach", "fused", "capturable", "differentiable"}
"""Ways to the same update."""

OTHER_VALUES: dict[str, Any] = {
    "beta2_decay": -0.5,
    "betas": (0.5, 0.6),
    "d": 2.0,
    "eps": 0.5,
    "etas": (0.3, 3.0),
    "initial_accumulator_value": 1.0,
    "lr": 0.05,
    "maximize": True,
    "momentum": 0.7,
    "ns_coefficients": (3.0, -4.0, 2.0),
    "ns_steps": 2,
    "step_sizes": (0.5, 0.6),
    "adjust_lr_fn": "match_rms_adamw",
    "weight_decay": 0.3,
    "nesterov": True,
    "centered": True,
    "alpha": 0.5,
    "always_adapt": True,
    "bias_correction": False,
    "eta": 0.5,
    "grad_averaging": False,
    "max_grad_norm": 0.5,
    "trust_clip": True,
    "dampening": 0.5,
    "lambd": 10.0,
    "lr_decay": 0.5,
    "momentum_decay": 0.5,
    "rho": 0.5,
    "t0": 1.0,
    "decoupled_weight_decay": True,
    "amsgrad": True,
}
OWN_VALUES: dict[tuple[str, str], Any] = {
    ("Adafactor", "eps"): (0.5, 0.5),
    ("Muon", "eps"): 100.0,
    ("Muon", "nesterov"): False,
}
NEEDS: dict[str, dict[str, Any]] = {
    "nesterov": {"momentum": 0.9},
    "always_adapt": {"weight_decay": 0.0},
    "dampening": {"momentum": 0.9},
    "decoupled_weight_decay": {"weight_decay": 0.3},
    "amsgrad": {"betas": (0.5, 0.6)},
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_argument_of_an_optimizer_changes_the_weights(kind: str) -> None:
    start = torch.linspace(-2, 3, 6).view(2, 3)
    gradients = [torch.cos(start * (step + 1)) / (step + 1) for step in range(8)]

    def moved(kwargs: dict[str, Any]) -> list[float]:
        weight = nn.Parameter(start.clone())
        optimizer = build_optimizer(OptimizerSpec(type=kind, kwargs={"lr": 0.1, **kwargs}), [weight], ())
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        # ASGD's `t0` decides its average alone.
        averages = [state["ax"] for state in optimizer.state.values() if "ax" in state]
        return [number for tensor in (weight.detach(), *averages) for number in tensor.flatten().tolist()]

    options = inspect.signature(optimizer_class(kind)).parameters.keys() - {"params"}
    assert options - SAME_NUMBERS <= OTHER_VALUES.keys(), "give a new argument another value"
    for name in options - SAME_NUMBERS:
        needed = NEEDS.get(name, {})
        value = OWN_VALUES.get((kind, name), OTHER_VALUES.get(name))
        assert moved({**needed, name: value}) != moved(needed), name


def test_sgd_and_adam_by_hand() -> None:
    def after(kind: str, gradients: Sequence[float], **kwargs: Any) -> float:
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = build_optimizer(OptimizerSpec(type=kind, kwargs={"lr": 0.1, **kwargs}), [weight], ())
        for gradient in gradients:
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        return float(weight.detach())

    assert after("SGD", [2.0]) == pytest.approx(0.8)
    # decay: 1 - 0.1 * (2 + 0.5 * 1); momentum: 2, then 0.9 * 2 + 1
    assert after("SGD", [2.0], weight_decay=0.5) == pytest.approx(0.75)
    assert after("SGD", [2.0, 1.0], momentum=0.9) == pytest.approx(1 - 0.2 - 0.28)
    assert after("SGD", [2.0, 1.0], momentum=0.9, nesterov=True) == pytest.approx(
        1 - 0.1 * 3.8 - 0.1 * (1 + 0.9 * 2.8)
    )
    # the first step of Adam is the lr long; AdamW decays first
    assert after("Adam", [2.0], eps=1e-12) == pytest.approx(0.9)
    assert after("AdamW", [2.0], eps=1e-12, weight_decay=0.5) == pytest.approx(0.95 - 0.1)
    mean, square = (0.5 * 2 * 0.5 + 0.5 * 1) / 0.75, (0.5 * 4 * 0.5 + 0.5 * 1) / 0.75
    second = 0.9 - 0.1 * mean / math.sqrt(square)
    assert after("Adam", [2.0, 1.0], betas=[0.5, 0.5], eps=1e-12) == pytest.approx(second)


def test_a_plateau_counts_evaluations_and_not_steps_or_epochs() -> None:
    """patience 2: the third evaluation without a gain halves it, whatever lies between two of them."""
    kwargs = {"patience": 2, "factor": 0.5}
    rate = rate_of(SchedulerSpec(type="ReduceLROnPlateau", kwargs=kwargs, warmup_register_type="no_scale_lr"))
    lrs = []
    for metric in (10.0, 9.0, 9.0, 9.0, None, 9.0):
        for _ in range(40):
            rate.advance()
        rate.evaluated(metric)
        lrs.append(rate.now)
    assert lrs == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_a_plateau_follows_a_figure_that_rises() -> None:
    with pytest.raises(KdError, match="follows the metric by which the best student is chosen") as caught:
        rate_of(SchedulerSpec(type="ReduceLROnPlateau", kwargs={"mode": "min"}))
    assert caught.value.diagnostics[0].code == "KD443"


def test_a_run_halves_its_rate_by_evaluations_alone() -> None:
    """Four epochs between two evaluations: none of them is an evaluation without a gain."""
    scheduler = (
        "trainer.lr_scheduler={type: ReduceLROnPlateau, kwargs: {patience: 0, factor: 0.5, threshold: 1000}}"
    )
    for more in ([], ["runtime.iter_base=true", "trainer.test_freq=20"]):
        changes = [
            scheduler,
            "trainer.lr_scheduler.warmup_register_type=no_scale_lr",
            "trainer.max_epoch=null",
        ]
        spec = spec_of(
            SPEC, *changes, "trainer.max_iter=60", "trainer.test_freq=4", *more, "saver.save_dir=p"
        )
        with run_of(spec, overwrite=True) as run:
            lrs = {one.step: one.lr for one in train(run) if isinstance(one, Step)}
        # The first evaluation, after step 20, is the best so far; those after 40 and 60 are no gain.
        assert [lrs[step] for step in (1, 20, 21, 40, 41, 60)] == [0.05] * 4 + [0.025] * 2
