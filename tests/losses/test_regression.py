"""The convolution that brings a student's map to the teacher's shape."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.regression import ConvRegression


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((2, 3, 8, 8), (2, 5, 4, 4), (3, 3)),
        ((2, 3, 4, 4), (2, 5, 8, 8), (4, 4)),
        ((2, 3, 7, 6), (2, 5, 4, 4), (4, 3)),
        ((2, 3, 4, 4), (2, 3, 4, 4), (1, 1)),
        ((2, 9, 3), (2, 9, 5), (1, 1)),
        ((2, 3), (2, 5), (1, 1)),
    ],
)
def test_its_output_has_the_shape_of_the_teacher(
    student: tuple[int, ...], teacher: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    regression = ConvRegression(student, teacher, method="fitnet")
    assert regression.conv.kernel_size == kernel
    as_map = {4: teacher, 3: (2, 5, 9, 1), 2: (2, 5, 1, 1)}[len(teacher)]
    assert regression(torch.randn(student)).shape == as_map


def test_a_student_that_is_much_smaller_is_refused() -> None:
    with pytest.raises(RunError, match="KD450"):
        ConvRegression((2, 3, 2, 2), (2, 5, 8, 8), method="fitnet")
