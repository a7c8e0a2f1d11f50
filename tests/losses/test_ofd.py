"""Overhauled feature distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdcli.errors import RunError
from kdcli.losses.ofd import FeatureOverhaul, margin_of


def norm(weights: list[float], biases: list[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(weights)).eval()
    layer.load_state_dict(
        {**layer.state_dict(), "weight": torch.tensor(weights), "bias": torch.tensor(biases)}
    )
    return layer


def test_the_margin_is_the_mean_of_the_negative_part() -> None:
    margin = margin_of(norm([1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 5.0, -1.0]))
    drawn = 1 + 2 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    assert math.isclose(margin[0], -math.sqrt(2 / math.pi), rel_tol=1e-6)
    assert math.isclose(margin[1], drawn[drawn < 0].mean(), rel_tol=1e-2)
    assert margin[2] == -1.5, "hardly ever negative: three deviations"
    assert margin[3] == -1.0, "always its bias"


def test_a_number_by_hand() -> None:
    loss = FeatureOverhaul([(1, 1, 1, 4)], [(1, 1, 1, 4)], [norm([1.0], [0.0])]).eval()
    nn.init.ones_(loss.connectors[0][0].weight)
    m = -math.sqrt(2 / math.pi)
    student = torch.tensor([2.0, -0.5, -3.0, 0.0]).view(1, 1, 1, 4)
    teacher = torch.tensor([1.0, -2.0, -2.0, -0.1]).view(1, 1, 1, 4)
    # Positive: (2 − 1)². Below the margin: (−0.5 − m)². Both far below: 0. Between: (0 + 0.1)².
    expected = 1 + (-0.5 - m) ** 2 + 0.1**2
    torch.testing.assert_close(loss([student], [teacher]), torch.tensor(expected), rtol=1e-4, atol=0.0)


def test_deeper_layers_weigh_twice_as_much_and_the_teacher_is_averaged_down() -> None:
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 4), (2, 3, 4, 4)]
    norms = [norm([1.0] * 3, [0.0] * 3)] * 2
    loss = FeatureOverhaul(shapes, shapes, norms).eval()
    loss.connectors[1].load_state_dict(loss.connectors[0].state_dict())
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    single = FeatureOverhaul(shapes[:1], shapes[:1], norms[:1]).eval()
    single.connectors[0].load_state_dict(loss.connectors[0].state_dict())
    down = torch.nn.functional.avg_pool2d(teacher, 2)
    torch.testing.assert_close(loss([student] * 2, [teacher] * 2), 1.5 * single([student], [down]))


def test_margins_are_saved_and_not_trained() -> None:
    loss = FeatureOverhaul([(2, 3, 4, 4)], [(2, 5, 4, 4)], [norm([1.0] * 5, [0.0] * 5)])
    assert loss.state_dict()["margin0"].shape == (1, 5, 1, 1)
    assert "margin0" not in dict(loss.named_parameters())
    with pytest.raises(RunError, match="KD450"):
        margin_of(nn.BatchNorm2d(3, affine=False))
    with pytest.raises(RunError, match="batch norm of 3 channels"):
        FeatureOverhaul([(2, 3, 4, 4)], [(2, 5, 4, 4)], [norm([1.0] * 3, [0.0] * 3)])


def test_a_wider_connector_by_hand() -> None:
    loss = FeatureOverhaul([(1, 1, 1, 4)], [(1, 1, 1, 4)], [norm([1.0], [0.0])], kernel_size=3).eval()
    nn.init.ones_(loss.connectors[0][0].weight)  # type: ignore[index]
    student = torch.tensor([2.0, -0.5, -3.0, 0.0]).view(1, 1, 1, 4)
    teacher = torch.tensor([1.0, -2.0, -2.0, -0.1]).view(1, 1, 1, 4)
    # With their neighbours: 1.5, -1.5, -3.5, -3. All but the first are below their targets: (1.5 - 1)².
    torch.testing.assert_close(loss([student], [teacher]), torch.tensor(0.25), rtol=1e-3, atol=0.0)
