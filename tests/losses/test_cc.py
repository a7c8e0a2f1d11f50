"""Correlation congruence."""

from __future__ import annotations

import torch

from kdcli.losses.cc import CorrelationCongruence


def test_a_number_by_hand() -> None:
    loss = CorrelationCongruence((3, 2), (3, 2), feat_dim=2)
    for layer in (loss.embed_s, loss.embed_t):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    teacher = torch.zeros(3, 2)
    student = torch.tensor([[1.0, -2.0], [3.0, 1.0], [0.0, 2.0]])
    # Neighbouring deviations: (1, 2)·(3, 1) = 5 and (3, 1)·(0, 2) = 2.
    torch.testing.assert_close(loss(student, teacher), torch.tensor((5 + 2) / 2))
    assert loss(student, student) == 0 and loss(student[:1], teacher[:1]) == 0


def test_maps_are_flattened() -> None:
    loss = CorrelationCongruence((3, 2, 4, 4), (3, 5))
    assert loss.embed_s.in_features == 32
    assert loss(torch.randn(3, 2, 4, 4), torch.randn(3, 5)).shape == ()


def test_as_many_numbers_as_feat_dim_are_compared() -> None:
    loss = CorrelationCongruence((3, 2), (3, 2), feat_dim=1)
    for layer in (loss.embed_s, loss.embed_t):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    student = torch.tensor([[1.0, -2.0], [3.0, 1.0], [0.0, 2.0]])
    # Sums -1, 4, 2 against 0: neighbouring deviations 1 * 4 and 4 * 2.
    torch.testing.assert_close(loss(student, torch.zeros(3, 2)), torch.tensor((4.0 + 8.0) / 2))
