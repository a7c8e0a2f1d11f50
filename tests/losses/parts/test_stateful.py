"""The convolution that brings a student's map to the teacher's shape."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.parts.stateful import ConvRegression


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


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 9, 3), (2, 5, 3, 1)), ((2, 5, 3, 3), (2, 9, 5)), ((2, 10, 3), (2, 9, 3)), ((2, 3), (2, 5, 2, 2))],
)
def test_places_that_are_not_the_same_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match="cannot match the positions"):
        ConvRegression(student, teacher, method="fitnet")


@pytest.mark.parametrize(("student", "kernel"), [((2, 3, 4, 2), (4, 2)), ((2, 9, 3), (9, 1))])
def test_towards_a_vector_the_kernel_reads_every_position(
    student: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    regression = ConvRegression(student, (2, 5), method="fitnet")
    assert regression.conv.kernel_size == kernel
    assert regression(torch.randn(student)).shape == (2, 5, 1, 1)


def test_a_student_that_is_much_smaller_is_refused() -> None:
    with pytest.raises(RunError, match="KD450"):
        ConvRegression((2, 3, 2, 2), (2, 5, 8, 8), method="fitnet")
