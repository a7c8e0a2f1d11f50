"""Channel-wise distillation."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.cwd import channel_wise


def test_a_number_by_hand() -> None:
    # Two channels of two positions; at T 2 the teacher's first is (⅔, ⅓), all others are even.
    student = torch.zeros(1, 2, 1, 2)
    teacher = student.clone()
    teacher[0, 0, 0, 0] = 2 * math.log(2)
    divergence = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    torch.testing.assert_close(channel_wise(student, teacher, T=2.0), torch.tensor(4 * divergence / 2))


def test_tokens_are_positions_and_a_shift_of_a_channel_changes_nothing() -> None:
    tokens, others = torch.randn(2, 9, 5), torch.randn(2, 9, 5)
    as_maps = [x.transpose(1, 2).unflatten(2, (3, 3)) for x in (tokens, others)]
    torch.testing.assert_close(channel_wise(tokens, others), channel_wise(*as_maps))
    assert channel_wise(tokens + torch.randn(1, 1, 5), tokens).abs() < 1e-6
    with pytest.raises(RunError, match="KD450"):
        channel_wise(tokens, others[:, :4])
