"""Focal and global distillation: each part of one pair of maps."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.losses.fgd import FocalGlobal

GAP = (2 * math.log(3)) ** 2


@pytest.mark.parametrize(
    ("part", "expected"), [("alpha", 0.375 * GAP), ("beta", 0.5 * GAP), ("gamma", 2.0), ("relation", 2 * GAP)]
)
def test_each_part_by_hand(part: str, expected: float) -> None:
    # One channel, two positions, T 2: the teacher's attention is 2 * (3/4, 1/4), the student's 2 * (1/4, 3/4).
    # The first position is foreground of weight 1/4, the second all of the background; the contexts add nothing yet.
    weights = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "relation": 0.0, part: 10.0}
    loss = FocalGlobal((1, 1, 1, 2), (1, 1, 1, 2), T=2.0, **weights)
    teacher = torch.tensor([2 * math.log(3), 0.0]).view(1, 1, 1, 2)
    mask = torch.tensor([0.25, 0.0]).view(1, 1, 1, 2)
    assert float(loss(teacher.flip(3), teacher, mask).detach()) == pytest.approx(10 * expected, rel=1e-5)


def test_the_defaults_are_the_authors_for_two_stages() -> None:
    loss = FocalGlobal((1, 1, 1, 2), (1, 1, 1, 2))
    assert (loss.T, loss.alpha, loss.beta, loss.gamma, loss.relation) == (0.5, 5e-5, 2.5e-5, 5e-5, 5e-7)
