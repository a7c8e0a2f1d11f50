"""SimKD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcli.errors import RunError
from kdcli.losses.simkd import SimKD


def test_it_is_the_mean_square_of_the_projected_map() -> None:
    loss = SimKD((2, 3, 8, 8), (2, 6, 4, 4), nn.Linear(6, 5))
    student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 6, 4, 4)
    projected = loss.projector(nn.functional.avg_pool2d(student, 2))
    torch.testing.assert_close(loss(student, teacher), (projected - teacher).square().mean())
    assert loss(student, projected) == 0
    widths = [m.out_channels for m in loss.projector if isinstance(m, nn.Conv2d)]
    assert widths == [3, 3, 6]


def test_the_exported_student_ends_in_the_projector_and_the_teachers_classifier() -> None:
    classifier = nn.Linear(6, 5)
    loss = SimKD((2, 3, 8, 8), (2, 6, 4, 4), classifier).eval()
    student = torch.randn(2, 3, 8, 8)
    head = loss.student_end()
    pooled = loss.projector(nn.functional.avg_pool2d(student, 2)).mean((2, 3))
    torch.testing.assert_close(head(student), classifier(pooled))
    assert set(map(id, head.parameters())) == set(map(id, loss.parameters()))
    assert not any(p.requires_grad for p in classifier.parameters())


def test_vectors_are_refused() -> None:
    with pytest.raises(RunError, match="KD450"):
        SimKD((2, 3), (2, 6), nn.Linear(6, 5))


def test_the_factor_narrows_the_projector() -> None:
    loss = SimKD((2, 3, 8, 8), (2, 6, 4, 4), nn.Linear(6, 5), factor=3)
    assert [m.out_channels for m in loss.projector if isinstance(m, nn.Conv2d)] == [2, 2, 6]
