"""Masked generative distillation."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.mgd import MaskedGeneration


def test_without_a_mask_it_is_the_square_of_what_is_generated() -> None:
    loss = MaskedGeneration((2, 3, 4, 4), (2, 5, 4, 4), mask_ratio=0.0)
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    generated = loss.generation(loss.align(student))
    expected = (generated - teacher).square().sum() / 2
    torch.testing.assert_close(loss(student, teacher, torch.arange(2)), expected)
    assert loss(student, generated, torch.arange(2)) == 0


@pytest.mark.parametrize(("mask", "axes"), [("channel", (2, 3)), ("spatial", (1,))])
def test_whole_channels_or_positions_are_lost(
    mask: Literal["channel", "spatial"], axes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    loss = MaskedGeneration((8, 16, 8, 8), (8, 16, 8, 8), mask=mask, mask_ratio=0.3)
    seen = []
    loss.generation.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss(torch.ones(8, 16, 8, 8), torch.zeros(8, 16, 8, 8), torch.arange(8))
    kept = seen[0].mean(axes)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean() - 0.7) < 0.1


def test_unlike_sizes_are_refused() -> None:
    with pytest.raises(RunError, match="KD450"):
        MaskedGeneration((2, 3, 4, 4), (2, 3, 8, 8))
