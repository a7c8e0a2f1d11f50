"""Cosine and smooth L1 of each position: AM-RADIO's, UNIC's, Theia's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.errors import RunError
from kdcli.losses.cosine import cosine

# Two samples of two positions: across, along at double length; 45 degrees, opposite.
STUDENT = [[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]]
TEACHER = [[[0.0, 1.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, -1.0]]]
APART = [1.0, 0.0, 1 - math.sqrt(0.5), 2.0]
SMOOTH = [(3 - 0.5 + 0.5) / 2, 0.5 / 2, 0.5 / 2, (3 - 0.5) / 2]
"""Of each position, at beta 1: differences (3, 1), (0, 1), (0, 1), (0, 3)."""


def tokens(*, requires_grad: bool = False) -> tuple[Tensor, Tensor]:
    student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=requires_grad)
    return student, torch.tensor(TEACHER, dtype=torch.float64)


def maps() -> tuple[Tensor, Tensor]:
    student, teacher = (x.transpose(1, 2)[:, :, None, :] for x in tokens())
    return student, teacher


def test_tokens_by_hand() -> None:
    expected = 0.9 * sum(APART) / 4 + 0.1 * sum(SMOOTH) / 4
    assert float(cosine(*tokens())) == pytest.approx(expected, rel=1e-12)
    unic = cosine(*tokens(), cosine_weight=0.5, smooth_l1_weight=0.5)
    assert float(unic) == pytest.approx(0.5 * (sum(APART) + sum(SMOOTH)) / 4, rel=1e-12)


def test_a_map_is_compared_place_by_place_along_its_channels() -> None:
    torch.testing.assert_close(cosine(*maps()), cosine(*tokens()), rtol=1e-12, atol=0)


def test_the_summary_is_compared_by_its_direction_alone() -> None:
    """AM-RADIO's loss of the summary has no smooth L1; the patches' weights are those of positions."""
    student, teacher = (x.flatten(0, 1) for x in tokens())
    assert float(cosine(student, teacher)) == pytest.approx(sum(APART) / 4, rel=1e-12)
    torch.testing.assert_close(cosine(5 * student, teacher), cosine(student, teacher))
    both = cosine(student, teacher, smooth_l1_weight=0.25)
    assert float(both) == pytest.approx((sum(APART) + 0.25 * sum(SMOOTH)) / 4, rel=1e-12)


def test_where_the_smooth_l1_turns_linear() -> None:
    value = cosine(*tokens(), cosine_weight=0.0, smooth_l1_weight=1.0, beta=2.0)
    squares = [(3 - 1) + 1 / 4, 1 / 4, 1 / 4, 3 - 1]
    assert float(value) == pytest.approx(sum(squares) / 8, rel=1e-12)


def test_the_cosine_of_a_whole_sample() -> None:
    """Theia's: (0·3 + 2) / (|(3, 0, 0, 1)|·|(0, 1, 0, 2)|) and (1 − 2) / (|(1, 0, 0, 2)|·|(1, 1, 0, −1)|)."""
    value = cosine(*tokens(), smooth_l1_weight=0.0, cosine_weight=1.0, per="sample")
    cosines = [2 / math.sqrt(10 * 5), -1 / math.sqrt(5 * 3)]
    assert float(value) == pytest.approx(1 - sum(cosines) / 2, rel=1e-12)


def test_sums_over_positions_are_divided_by_the_batch() -> None:
    value = cosine(*tokens(), batch_mean=True)
    assert float(value) == pytest.approx((0.9 * sum(APART) + 0.1 * 2 * sum(SMOOTH)) / 2, rel=1e-12)


def test_each_sample_counts_as_its_teacher_does() -> None:
    weights = torch.tensor([2.0, 0.0], dtype=torch.float64)
    expected = 0.9 * sum(APART[:2]) / 2 + 0.1 * sum(SMOOTH[:2]) / 2
    assert float(cosine(*tokens(), weights)) == pytest.approx(expected, rel=1e-12)


def test_torch_has_the_same_cosine_and_the_same_gradient() -> None:
    random = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, 4, 4, generator=random, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, 4, 4, generator=random, dtype=torch.float64)
    value = cosine(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    other = 0.9 * (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    other = other + 0.1 * F.smooth_l1_loss(student, teacher)
    torch.testing.assert_close(value, other)
    torch.testing.assert_close(gradient, torch.autograd.grad(other, student)[0])


def test_a_position_without_direction_is_at_a_right_angle() -> None:
    student, teacher = tokens(requires_grad=True)
    value = cosine(student * torch.tensor([0.0, 1.0]).reshape(2, 1, 1), teacher, smooth_l1_weight=0.0)
    assert float(value.detach()) == pytest.approx(0.9 * (2 + sum(APART[2:])) / 4, rel=1e-6)
    value.backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(RunError, match="`cosine` compares equal shapes"):
        cosine(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))
