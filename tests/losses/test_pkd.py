"""Pearson distillation."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.pkd import pearson


def test_it_is_one_minus_the_correlation() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    count = 3 * 4 * 4
    correlations = [
        torch.corrcoef(torch.stack([student[:, c].flatten(), teacher[:, c].flatten()]))[0, 1]
        for c in range(2)
    ]
    expected = (1 - sum(correlations) / 2) * (count - 1) / count
    torch.testing.assert_close(pearson(student, teacher), expected, rtol=1e-5, atol=0.0)


def test_scale_and_shift_change_nothing_and_sizes_may_differ() -> None:
    teacher = torch.randn(2, 3, 4, 4).double()
    assert pearson(5 * teacher + 1, teacher) < 1e-10
    small = torch.randn(2, 3, 2, 2).double()
    up = torch.nn.functional.interpolate(small, (4, 4), mode="bilinear")
    torch.testing.assert_close(pearson(small, teacher), pearson(up, teacher))
    down = torch.nn.functional.interpolate(teacher, (2, 2), mode="bilinear")
    torch.testing.assert_close(pearson(small, teacher, resize_student=False), pearson(small, down))


@pytest.mark.parametrize("shapes", [((2, 3, 4, 4), (2, 4, 4, 4)), ((1, 3), (1, 3))])
def test_unlike_channels_and_single_values_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(RunError, match="KD450"):
        pearson(torch.randn(shapes[0]), torch.randn(shapes[1]))


@pytest.mark.parametrize("other", [(2, 8, 3), (2, 3, 3, 3), (2, 3)])
def test_tokens_are_stretched_to_nothing_else(other: tuple[int, ...]) -> None:
    for shapes in ((other, (2, 9, 3)), ((2, 9, 3), other)):
        with pytest.raises(RunError, match="cannot match the positions"):
            pearson(torch.randn(shapes[0]), torch.randn(shapes[1]))
