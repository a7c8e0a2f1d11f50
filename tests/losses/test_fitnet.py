"""FitNet hints."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.fitnet import FitNet


def test_it_is_the_mean_square_of_the_regressed_hint() -> None:
    torch.manual_seed(0)
    loss = FitNet((2, 3, 4, 4), (2, 5, 4, 4))
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    conv = loss.regression.conv
    x = torch.einsum("bchw,oc->bohw", student, conv.weight[:, :, 0, 0]) + conv.bias[None, :, None, None]
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    regressed = ((x - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(loss(student, teacher), ((regressed - teacher) ** 2).mean())
    assert loss(student, loss.regression(student)) == 0


def test_without_relu_negative_hints_can_be_met() -> None:
    loss = FitNet((4, 3), (4, 5), relu=False)
    student = torch.randn(4, 3)
    target = loss.regression(student).flatten(1)
    assert (target < 0).any() and loss(student, target) == 0


def test_one_vector_cannot_be_normalised() -> None:
    loss = FitNet((4, 3), (4, 5))
    with pytest.raises(RunError, match="single value"):
        loss(torch.randn(1, 3), torch.randn(1, 5))
    assert loss.eval()(torch.randn(1, 3), torch.randn(1, 5)).isfinite()
