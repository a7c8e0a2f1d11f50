"""Information theoretic representation distillation."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.itrd import InformationTheoretic


def test_the_correlation_term_uses_the_correlation_of_each_channel() -> None:
    torch.manual_seed(0)
    loss = InformationTheoretic((6, 3), (6, 4), alpha=1.01, mutual_weight=0.0).double()
    student, teacher = torch.randn(6, 3).double(), torch.randn(6, 4).double()
    projected = loss.embed(student)
    total = sum(
        (torch.corrcoef(torch.stack([projected[:, c], teacher[:, c]]))[0, 1] * 5 / 6 - 1).abs() ** 2.02
        for c in range(4)
    )
    torch.testing.assert_close(loss(student, teacher), 2 * torch.log2(total))


def test_the_mutual_term_by_hand() -> None:
    # Orthogonal student rows: Gs is ½ on the diagonal, and so is Gst. Equal ones: Gs is ½ everywhere.
    loss = InformationTheoretic((2, 2), (2, 2), correlation_weight=0.0)
    torch.testing.assert_close(loss(torch.eye(2), torch.randn(2, 2)), torch.tensor(0.0))
    torch.testing.assert_close(loss(torch.ones(2, 2), torch.eye(2)), torch.tensor(0.5))


def test_a_dead_channel_stays_finite_and_one_row_is_refused() -> None:
    loss = InformationTheoretic((4, 3), (4, 3))
    teacher = torch.rand(4, 3)
    teacher[:, 1] = 0
    student = torch.rand(4, 3, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None and student.grad.isfinite().all()
    with pytest.raises(RunError, match="KD450"):
        loss(torch.rand(1, 3), teacher[:1])
