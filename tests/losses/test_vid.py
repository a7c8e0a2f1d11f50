"""Variational information distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdcli.errors import RunError
from kdcli.losses.vid import VariationalInformation


def test_it_is_a_gaussian_log_likelihood_with_initial_variance_five() -> None:
    torch.manual_seed(0)
    loss = VariationalInformation((2, 3, 4, 4), (2, 5, 4, 4)).double()
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 4, 4).double()
    gaussian = torch.distributions.Normal(loss.regressor(student), math.sqrt(5.0))
    expected = -gaussian.log_prob(teacher).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-6, atol=0.0)


def test_the_variances_are_trained() -> None:
    loss = VariationalInformation((2, 3), (2, 5))
    assert "log_scale" in dict(loss.named_parameters())
    loss(torch.randn(2, 3), torch.randn(2, 5)).backward()
    assert loss.log_scale.grad is not None and loss.log_scale.grad.all()


def test_the_larger_map_is_averaged_down() -> None:
    loss = VariationalInformation((2, 3, 8, 8), (2, 5, 4, 4))
    student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    down = torch.nn.functional.avg_pool2d(student, 2)
    torch.testing.assert_close(loss(student, teacher), loss(down, teacher))


def test_tokens_fit_equally_many_and_the_mean_fits_a_vector() -> None:
    for other in ((2, 8, 3), (2, 3, 3, 3)):
        with pytest.raises(RunError, match="cannot match the positions"):
            VariationalInformation((2, 9, 3), other)
    loss = VariationalInformation((2, 9, 3), (2, 5))
    student, teacher = torch.randn(2, 9, 3), torch.randn(2, 5)
    torch.testing.assert_close(loss(student, teacher), loss(student.mean(1), teacher))


@pytest.mark.parametrize("variance", [1e-3, 5.0, 49.0, 51.0, 1000.0, 1e6])
def test_the_variance_begins_where_it_is_told(variance: float) -> None:
    loss = VariationalInformation([2, 3, 4, 4], [2, 3, 4, 4], init_pred_var=variance)
    assert float((F.softplus(loss.log_scale.detach()) + loss.eps)[0]) == pytest.approx(variance, rel=1e-5)


def test_a_variance_that_eps_alone_exceeds() -> None:
    with pytest.raises(ValueError, match="`init_pred_var` must be more than `eps`"):
        VariationalInformation([2, 3, 4, 4], [2, 3, 4, 4], init_pred_var=1e-6)


def test_the_floor_of_the_variance_by_hand() -> None:
    loss = VariationalInformation((2, 1), (2, 1), eps=0.25)
    for parameter in loss.parameters():
        torch.nn.init.zeros_(parameter)
    loss.log_scale.data.fill_(-torch.inf)
    value = float(loss(torch.ones(2, 1), torch.ones(2, 1)).detach())
    assert value == pytest.approx(0.5 * (1 / 0.25 + math.log(0.25)))
