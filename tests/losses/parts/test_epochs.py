"""A learned temperature rises against the student."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.losses.kd import kd_loss
from kdcli.losses.parts.epochs import LearnedTemperature


def test_it_starts_at_the_authors_value() -> None:
    temperature = LearnedTemperature()
    value = temperature(0)
    assert value.shape == () and value.requires_grad
    assert value.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert LearnedTemperature(start=2.0, range=0.0)(3).item() == 2.0


def test_lambda_falls_by_cosine_and_stays() -> None:
    temperature = LearnedTemperature(cosine_epochs=10)
    assert temperature.reversal(0) == pytest.approx((math.cos(math.pi / 10) - 1) / 2)
    assert temperature.reversal(4.9) == pytest.approx(-0.5)
    assert temperature.reversal(9) == temperature.reversal(50) == -1.0


def test_its_gradient_is_reversed_and_the_value_is_not() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    theta = torch.ones((), requires_grad=True)
    kd_loss(student, teacher, T=1 + 20 * theta.sigmoid()).backward()  # type: ignore[arg-type]
    temperature = LearnedTemperature()
    kd_loss(student, teacher, T=temperature(4)).backward()  # type: ignore[arg-type]
    assert theta.grad is not None and temperature.theta.grad is not None
    torch.testing.assert_close(temperature.theta.grad[0], -0.5 * theta.grad)
