"""Learning rates of United-Perception's schedules at steps computed by hand; an epoch has 10 steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdcli.errors import SpecError
from kdcli.spec.schema import SchedulerSpec
from kdcli.training.optim import LearningRate, check_total
from tests.training.test_optim import curve


@pytest.mark.parametrize(
    ("kind", "kwargs", "lr", "points"),
    [
        # 0.1 + 1 * (1 + cos(pi * (e - 1) / 4)) / 2: in epoch 0 at pi / 4 before its top, in epoch 3 half way down.
        (
            "CosineLREpochScheduler",
            {"T_max": 4, "eta_min": 0.1, "warm_epoch": 1},
            1.1,
            {0: 0.953553, 9: 0.953553, 10: 1.1, 19: 1.1, 30: 0.6, 39: 0.6, 50: 0.1},
        ),
        ("CosineLREpochScheduler", {"T_max": 4}, 1.0, {0: 1.0, 20: 0.5, 40: 0.0}),
        # 2 * (0.1 + 0.9 * (1 + cos(pi * (e + 1) / 4)) / 2): eta_min is a share of the lr.
        (
            "EpochBasedCosineAnnealingLR",
            {"T_max": 4, "eta_min": 0.1, "offset_epoch": 1},
            2.0,
            {0: 1.736396, 9: 1.736396, 10: 1.1, 30: 0.2},
        ),
        # 0.1 + (1 - i / 20) ** 2; and over 10 steps, whatever `max_epoch` says.
        ("polylr", {"max_epoch": 2, "power": 2.0, "min_lr": 0.1}, 1.1, {0: 1.1, 10: 0.35, 20: 0.1, 25: 0.1}),
        ("polylr", {"max_iter": 10, "max_epoch": 2, "power": 2.0, "min_lr": 0.1}, 1.1, {5: 0.35, 10: 0.1}),
        ("polylr", {"max_epoch": 0.5}, 1.0, {1: 0.8, 4: 0.2}),
        # 20 steps: from 1 / 25 to 1 at step 0.25 * 20 - 1, to 1 / 25 / 10000 at the last; half way at step 2.
        (
            "OneCycleLR",
            {"max_epoch": 2, "max_lr": 1.0, "pct_start": 0.25},
            9.0,
            {0: 0.04, 2: 0.52, 4: 1.0, 19: 4e-6},
        ),
    ],
)
def test_points_of_a_schedule(kind: str, kwargs: dict[str, Any], lr: float, points: dict[int, float]) -> None:
    lrs = curve(60 if kind != "OneCycleLR" else 20, lr=lr, type=kind, kwargs=kwargs)
    assert {step: lrs[step] for step in points} == pytest.approx(points, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "kwargs", "points"),
    [
        # From a third to the whole in 5 epochs of 10 steps; half way at step 25.
        ("LinearLR", {}, {0: 1 / 3, 25: 2 / 3, 50: 1.0}),
        ("ConstantLR", {}, {0: 1 / 3, 49: 1 / 3, 50: 1.0}),
        ("PolynomialLR", {}, {0: 1.0, 25: 0.5, 50: 0.0}),
    ],
)
def test_a_length_that_is_not_written_is_in_epochs_too(
    kind: str, kwargs: dict[str, Any], points: dict[int, float]
) -> None:
    lrs = curve(55, lr=1.0, type=kind, kwargs=kwargs)
    assert {step: lrs[step] for step in points} == pytest.approx(points, abs=1e-6)
    assert lrs == curve(55, lr=1.0, type=kind, kwargs={"total_iters": 5})


def test_a_polylr_without_a_length_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        curve(1, lr=1.0, type="polylr", kwargs={})
    assert "give `max_epoch`, in epochs, or `max_iter`, in steps" in caught.value.diagnostics[0].message


def momenta(optimizer: torch.optim.Optimizer, kwargs: dict[str, Any], steps: int) -> list[float]:
    """The momentum of each step, or Adam's first beta."""
    spec = SchedulerSpec(
        type="OneCycleLR", kwargs={"max_lr": 1.0, "pct_start": 0.25, "max_epoch": 2, **kwargs}
    )
    rate = LearningRate(optimizer, spec, batch_size=1, world_size=1, steps_per_epoch=10, path=())
    found = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        found.append(group["betas"][0] if "betas" in group else group["momentum"])
        rate.advance()
    return found


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_one_cycle_moves_the_momentum_against_the_lr(kind: str) -> None:
    def made() -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)([nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer

    found = momenta(made(), {}, 20)
    assert [found[i] for i in (0, 2, 4, 19)] == pytest.approx([0.95, 0.9, 0.85, 0.95])
    found = momenta(made(), {"base_momentum": 0.5, "max_momentum": 0.7}, 5)
    assert [found[i] for i in (0, 4)] == pytest.approx([0.7, 0.5])
    assert set(momenta(made(), {"cycle_momentum": False}, 5)) == {0.0 if kind == "SGD" else 0.9}


def test_an_optimizer_without_momentum_is_told() -> None:
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(SpecError) as caught:
        momenta(optimizer, {}, 1)
    (found,) = caught.value.diagnostics
    assert found.code == "KD443" and "`cycle_momentum: false`" in (found.help or "")


def test_one_cycle_of_too_few_epochs_is_told() -> None:
    spec = SchedulerSpec(type="OneCycleLR", kwargs={"max_lr": 1.0, "max_epoch": 2})
    check_total(spec, 20, (), 10)
    with pytest.raises(SpecError) as caught:
        check_total(spec, 21, (), 10)
    (found,) = caught.value.diagnostics
    assert (
        found.path == ("kwargs", "max_epoch")
        and "ends after 20 steps, the training after 21" in found.message
    )
