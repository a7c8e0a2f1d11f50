"""LAMB and LARS: steps computed by hand, and a state that goes on as it was."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.optimizers.layer_wise import Lamb, Lars
from kdcli.spec.schema import OptimizerSpec
from kdcli.training.optim import build_optimizer


def stepped(kind: type[torch.optim.Optimizer], gradients: list[list[float]], **kwargs: Any) -> list[float]:
    """Where the point (3, 4), of norm 5, comes to with these gradients."""
    point = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = kind([point], **kwargs)
    for gradient in gradients:
        point.grad = torch.tensor(gradient)
        optimizer.step()
        assert point.grad.tolist() == torch.tensor(gradient).tolist()
    values: list[float] = point.tolist()
    return values


UNIT = [0.6, 0.8]


@pytest.mark.parametrize(
    ("gradient", "kwargs", "point"),
    [
        # u = g/|g| + 0.1 * (3, 4) = (1.3, 1.4), of norm 1.910497; the step is 0.1 * 5 / 1.910497 * u.
        (UNIT, {"weight_decay": 0.1}, [2.659774, 3.633602]),
        # A gradient of norm 10 is scaled to 1: the same; Adam's first direction has no length of its own anyway.
        ([6.0, 8.0], {"weight_decay": 0.1}, [2.659774, 3.633602]),
        # No weight decay: no ratio; with `always_adapt` it is 5 / sqrt(2).
        (UNIT, {"weight_decay": 0.0}, [2.9, 3.9]),
        (UNIT, {"weight_decay": 0.0, "always_adapt": True}, [2.646447, 3.646447]),
        # A ratio of 1 at most: 0.1 * u.
        (UNIT, {"weight_decay": 0.1, "trust_clip": True}, [2.87, 3.86]),
        # Uncorrected: m = 0.1 g, v = 0.001 g * g, so m / sqrt(v) = 3.162278; without averaging m = g, so 31.62278.
        (UNIT, {"weight_decay": 0.0, "bias_correction": False}, [2.683772, 3.683772]),
        (
            UNIT,
            {"weight_decay": 0.0, "bias_correction": False, "grad_averaging": False, "eps": 1e-12},
            [-0.162278, 0.837722],
        ),
        # eps of 1 beside |g|: u = (0.6 / 1.6, 0.8 / 1.8); the gradient (6, 8) has been scaled to that.
        ([6.0, 8.0], {"weight_decay": 0.0, "eps": 1.0}, [2.9625, 3.955556]),
        # Up to a norm of 10: u = (6 / 7, 8 / 9).
        ([6.0, 8.0], {"weight_decay": 0.0, "eps": 1.0, "max_grad_norm": 10.0}, [2.914286, 3.911111]),
    ],
)
def test_a_step_of_lamb(gradient: list[float], kwargs: dict[str, Any], point: list[float]) -> None:
    assert stepped(Lamb, [gradient], lr=0.1, **kwargs) == pytest.approx(point, abs=2e-5)


def test_the_averages_of_lamb() -> None:
    # Second step with g2 = 0.5 * g: m = (0.9 * 0.1 + 0.1 * 0.5) g = 0.14 g, corrected by 0.19;
    # v = (0.999 * 0.001 + 0.001 * 0.25) g^2 = 0.001249 g^2, corrected by 0.001999: 0.736842 / 0.790448 = 0.932183.
    found = stepped(Lamb, [UNIT, [0.3, 0.4]], lr=0.1, weight_decay=0.0)
    assert found == pytest.approx([3 - 0.1 - 0.0932183, 4 - 0.1 - 0.0932183], abs=1e-5)


@pytest.mark.parametrize(
    ("gradients", "kwargs", "point"),
    [
        # The rate is 0.1 * 5 / 1.
        ([UNIT], {}, [2.7, 3.6]),
        # d = g + 0.2 p = (1.2, 1.6); the rate 0.1 * 5 / (1 + 0.2 * 5) = 0.25.
        ([UNIT], {"weight_decay": 0.2}, [2.7, 3.6]),
        ([UNIT], {"weight_decay": 0.1, "eta": 0.3}, [2.1, 2.8]),
        # The second rate is 0.1 * 4.5; the buffer 1.9 g, with dampening 1.4 g.
        ([UNIT, UNIT], {"momentum": 0.9}, [2.187, 2.916]),
        ([UNIT, UNIT], {"momentum": 0.9, "dampening": 0.5}, [2.322, 3.096]),
        # g + 0.9 g at once.
        ([UNIT], {"momentum": 0.9, "nesterov": True}, [2.43, 3.24]),
        ([[0.0, 0.0]], {}, [3.0, 4.0]),
    ],
)
def test_a_step_of_lars(gradients: list[list[float]], kwargs: dict[str, Any], point: list[float]) -> None:
    assert stepped(Lars, gradients, lr=1.0, **{"eta": 0.1, **kwargs}) == pytest.approx(point, abs=1e-5)


def test_lars_leaves_a_parameter_of_norm_0() -> None:
    bias = nn.Parameter(torch.zeros(2))
    bias.grad = torch.ones(2)
    Lars([bias], lr=1.0, momentum=0.9).step()
    assert bias.tolist() == [0.0, 0.0]


def test_nesterov_of_lars_needs_momentum() -> None:
    with pytest.raises(ValueError, match="`nesterov` needs a `momentum` above 0"):
        Lars([nn.Parameter(torch.ones(1))], lr=1.0, nesterov=True)


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("LAMB", {"lr": 0.01}),
        ("LARS", {"lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ],
)
def test_a_restored_state_goes_on_as_if_nothing_had_happened(kind: str, kwargs: dict[str, Any]) -> None:
    def made() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        return net, build_optimizer(OptimizerSpec(type=kind, kwargs=kwargs), net.parameters(), ())

    def train(net: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            net(torch.arange(3.0) + step).square().sum().backward()
            optimizer.step()

    whole, optimizer = made()
    train(whole, optimizer, range(6))
    first, before = made()
    train(first, before, range(3))
    saved = io.BytesIO()
    torch.save({"net": first.state_dict(), "optimizer": before.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    second, after = made()
    second.load_state_dict(state["net"])
    after.load_state_dict(state["optimizer"])
    train(second, after, range(3, 6))
    assert torch.equal(whole.weight, second.weight) and torch.equal(whole.bias, second.bias)


@pytest.mark.parametrize(("name", "kind"), [("FusedFP16SGD", "SGD"), ("FusedFP16AdamW", "AdamW")])
def test_united_perceptions_fused_optimizers_are_torchs(name: str, kind: str) -> None:
    optimizer = build_optimizer(
        OptimizerSpec(type=name, kwargs={"lr": 0.1}), [nn.Parameter(torch.ones(1))], ()
    )
    assert type(optimizer) is getattr(torch.optim, kind)
