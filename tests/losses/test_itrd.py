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
    thrice = InformationTheoretic((2, 2), (2, 2), correlation_weight=0.0, mutual_weight=3.0)
    torch.testing.assert_close(thrice(torch.ones(2, 2), torch.eye(2)), torch.tensor(1.5))


def test_a_dead_channel_stays_finite_and_one_row_is_refused() -> None:
    loss = InformationTheoretic((4, 3), (4, 3))
    teacher = torch.rand(4, 3)
    teacher[:, 1] = 0
    student = torch.rand(4, 3, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None and student.grad.isfinite().all()
    with pytest.raises(RunError, match="KD450"):
        loss(torch.rand(1, 3), teacher[:1])


@pytest.mark.parametrize("silent", ["student", "teacher", "both"])
def test_a_feature_of_zeros_by_hand(silent: str) -> None:
    # A channel of zeros correlates with nothing: three channels give |0 - 1| each, log2 3. A sample of zeros resembles
    # nothing: without any in the student Gs is 1/2 everywhere in its two unit rows, which adds up to 1; Gst is 0.
    loss = InformationTheoretic((2, 3), (2, 3), correlation_weight=1.0)
    torch.nn.init.eye_(loss.embed.weight)
    torch.nn.init.zeros_(loss.embed.bias)
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    student = (rows if silent == "teacher" else torch.zeros(2, 3)).requires_grad_()
    value = loss(student, torch.rand(2, 3) if silent == "student" else torch.zeros(2, 3))
    value.backward()
    torch.testing.assert_close(value, torch.tensor(3.0).log2() + (1.0 if silent == "teacher" else 0.0))
    assert student.grad is not None and student.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
