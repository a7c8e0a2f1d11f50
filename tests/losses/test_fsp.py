"""Flow of solution procedure."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.fsp import solution_flow


def test_a_number_by_hand() -> None:
    # One channel each: the flow is the mean product, student (1·1 + 2·3)/2 = 3.5 and teacher 1.
    student = [torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)]
    teacher = [torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)]
    torch.testing.assert_close(solution_flow(student, teacher), torch.tensor(2.5**2))


def test_flows_are_summed_over_neighbours_and_the_larger_map_is_averaged_down() -> None:
    torch.manual_seed(0)
    student = [torch.randn(2, c, size, size) for c, size in ((2, 4), (3, 4), (4, 2))]
    teacher = [torch.randn_like(x) for x in student]
    both = solution_flow(student[:2], teacher[:2]) + solution_flow(student[1:], teacher[1:])
    torch.testing.assert_close(solution_flow(student, teacher), both)
    pooled = [torch.nn.functional.avg_pool2d(x[1], 2) for x in (student, teacher)]
    direct = solution_flow([pooled[0], student[2]], [pooled[1], teacher[2]])
    torch.testing.assert_close(solution_flow(student[1:], teacher[1:]), direct)


def test_one_layer_and_unlike_channels_are_refused() -> None:
    one, other = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    for student, teacher in (([one], [one]), ([one, one], [one, other])):
        with pytest.raises(RunError, match="KD450"):
            solution_flow(student, teacher)
