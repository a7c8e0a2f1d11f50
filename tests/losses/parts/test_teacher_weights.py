"""Several teachers, weighted sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcli.losses.kd import kd_loss
from kdcli.losses.parts.teacher_weights import average, confidence, entropy

LABELS = torch.tensor([0, 1])
SURE = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
UNSURE = torch.zeros(2, 2)


def test_average_is_the_plain_sum() -> None:
    assert average([SURE, UNSURE], LABELS).equal(torch.ones(2, 2))


def test_entropy_prefers_the_surer_teacher() -> None:
    weights = entropy([SURE, UNSURE], LABELS)
    sure = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    share = sure / (sure + math.log(2))
    torch.testing.assert_close(weights[:, 0], torch.tensor([1 - share, share]) / 2)


def test_confidence_prefers_the_teacher_nearer_to_the_label() -> None:
    weights = confidence([SURE, UNSURE], LABELS)
    errors = [-math.log(0.75), math.log(2)]
    first = math.exp(errors[0]) / (math.exp(errors[0]) + math.exp(errors[1]))
    assert weights[0, 0].item() == pytest.approx((1 - first) / 2)
    assert weights[0, 0] > weights[1, 0] and weights[0, 1] < weights[1, 1]


@pytest.mark.parametrize("weigh", [average, entropy, confidence])
def test_weights_are_finite_and_without_gradient(weigh: Callable[..., Tensor]) -> None:
    certain = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    for teachers in ([certain, certain], [certain, certain.flip(1), UNSURE], [certain]):
        weights = weigh(teachers, LABELS)
        assert weights.shape == (len(teachers), 2)
        assert weights.isfinite().all() and not weights.requires_grad
    assert weigh([certain.detach().half()], LABELS).equal(torch.ones(1, 2))


def test_weighted_losses_add_up_as_the_authors_add_them() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 2)
    teachers = [SURE, UNSURE]
    weights = confidence(teachers, LABELS)
    total = sum(kd_loss(student, t, teacher_weights=w, T=4.0) for t, w in zip(teachers, weights, strict=True))
    rows = torch.stack(
        [torch.stack([kd_loss(student[i : i + 1], t[i : i + 1], T=4.0) for i in range(2)]) for t in teachers]
    )
    attention = weights * 2
    torch.testing.assert_close(total, (attention * rows).sum() / (2 * 2))
