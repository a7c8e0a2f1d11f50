"""Similarity preserving."""

from __future__ import annotations

import torch

from kdcli.losses.sp import similarity_preserving


def test_a_number_by_hand() -> None:
    # Student rows are orthogonal: the identity. Teacher rows are equal: every entry 1/√2.
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[1.0], [1.0]])
    half = 0.5**0.5
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    torch.testing.assert_close(similarity_preserving(student, teacher), torch.tensor(expected))


def test_only_similarities_matter() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    student = 2 * teacher.flatten(1) @ rotation
    assert similarity_preserving(student, teacher) < 1e-20
