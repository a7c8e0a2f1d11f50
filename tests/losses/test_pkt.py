"""Probabilistic knowledge transfer."""

from __future__ import annotations

import math

import torch

from kdcli.losses.pkt import probabilistic_transfer


def test_a_number_by_hand() -> None:
    # Orthogonal student rows: similarities 1 and ½, probabilities ⅔ and ⅓. Equal teacher rows: ½ and ½.
    student, teacher = torch.eye(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    expected = 0.5 * (math.log(0.5 / (2 / 3)) + math.log(0.5 / (1 / 3))) / 2
    torch.testing.assert_close(probabilistic_transfer(student, teacher).item(), expected, rtol=1e-5, atol=0.0)


def test_a_dead_feature_gives_a_finite_gradient() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    probabilistic_transfer(student, torch.rand(3, 4)).backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_eps_is_in_lengths_and_logarithm() -> None:
    # Student rows of length 1 over 1.5: similarities 13/18 and 9/18. Equal teacher rows: a half each.
    student, teacher = torch.eye(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    expected = 0.5 * (math.log(1 / (13 / 22 + 0.5)) + math.log(1 / (9 / 22 + 0.5))) / 2
    torch.testing.assert_close(probabilistic_transfer(student, teacher, eps=0.5).item(), expected)
