"""The simple recipe."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdcli.errors import RunError
from kdcli.losses.srd import SimpleRecipe


def test_it_is_a_log_of_fourth_powers_beside_the_divergence() -> None:
    torch.manual_seed(0)
    loss = SimpleRecipe((6, 3, 4, 4), (6, 5)).double()
    student, teacher = torch.randn(6, 3, 4, 4).double(), torch.randn(6, 5).double()
    s_logits, t_logits = torch.randn(6, 4).double(), torch.randn(6, 4).double()

    def normalised(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-4).sqrt()

    projected = student.mean((2, 3)) @ loss.embed.weight.T + loss.embed.bias
    feature = ((normalised(projected) - normalised(teacher)) ** 4).sum().log()
    p = t_logits.softmax(1)
    divergence = (p * (p.log() - s_logits.log_softmax(1))).sum() / 6
    result = loss(student, teacher, s_logits, t_logits)
    torch.testing.assert_close(result, 2 * feature + divergence)


def test_equal_projections_give_the_lowest_finite_value() -> None:
    loss = SimpleRecipe((6, 3), (6, 3), beta=0.0)
    torch.nn.init.eye_(loss.embed.weight)
    torch.nn.init.zeros_(loss.embed.bias)
    feature, logits = torch.randn(6, 3), torch.randn(6, 4)
    lowest = loss(feature, feature, logits, logits)
    assert lowest.isfinite() and lowest < loss(feature, feature.flip(0), logits, logits)


def test_temperature_scales_the_divergence_and_one_row_is_refused() -> None:
    loss = SimpleRecipe((6, 3), (6, 3), alpha=0.0, T=4.0)
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    expected = 16 * F.kl_div((s / 4).log_softmax(1), (t / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss(torch.randn(6, 3), torch.randn(6, 3), s, t), expected)
    with pytest.raises(RunError, match="KD450"):
        loss(torch.randn(1, 3), torch.randn(1, 3), s[:1], t[:1])


def test_both_parts_are_weighed() -> None:
    inputs = torch.randn(6, 3), torch.randn(6, 5), torch.randn(6, 4), torch.randn(6, 4)

    def of(alpha: float, beta: float) -> torch.Tensor:
        torch.manual_seed(0)
        value: torch.Tensor = SimpleRecipe((6, 3), (6, 5), alpha=alpha, beta=beta)(*inputs)
        return value

    torch.testing.assert_close(of(0.5, 3.0), 0.5 * of(1.0, 0.0) + 3 * of(0.0, 1.0))
