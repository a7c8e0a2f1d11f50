"""Relational distillation."""

from __future__ import annotations

import math

import torch

from kdcli.losses.rkd import relational


def test_a_number_by_hand() -> None:
    # Three points on a line. Distances over their mean: student 1, 1, 2 over 4/3; teacher 1, 2, 3 over 2.
    student = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    pairs = zip((0.75, 0.75, 1.5), (0.5, 1.0, 1.5), strict=True)
    expected = 25 * 2 * sum((s - t) ** 2 / 2 for s, t in pairs) / 9
    assert math.isclose(relational(student, teacher, angle_weight=0.0).item(), expected, rel_tol=1e-9)
    # On a line every angle is 0° or 180°, the same for both.
    assert relational(student, teacher, distance_weight=0.0) < 1e-12


def test_angles_are_those_of_triples() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3).double(), torch.randn(4, 2).double()

    def angle(x: torch.Tensor, i: int, j: int, k: int) -> float:
        if j == i or k == i:
            return 0.0
        first, second = x[j] - x[i], x[k] - x[i]
        return float(first @ second / (first.norm() * second.norm()))

    total = 0.0
    for i in range(4):
        for j in range(4):
            for k in range(4):
                gap = abs(angle(student, i, j, k) - angle(teacher, i, j, k))
                total += gap - 0.5 if gap >= 1 else gap**2 / 2
    result = relational(student, teacher, distance_weight=0.0).item()
    assert math.isclose(result, 50 * total / 64, rel_tol=1e-9)
    weighed = relational(student, teacher, distance_weight=0.0, angle_weight=7.0).item()
    assert math.isclose(weighed, 7 * total / 64, rel_tol=1e-9)


def test_moving_and_scaling_change_nothing_and_one_row_has_no_relations() -> None:
    teacher = torch.randn(4, 3).double()
    assert relational(7 * teacher + 2, teacher) < 1e-12
    row = torch.randn(1, 3, requires_grad=True)
    loss = relational(row, torch.randn(1, 3))
    loss.backward()
    assert loss == 0 and row.grad is not None and not row.grad.any()


def test_squared_distances_and_their_floor_by_hand() -> None:
    student = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)

    def of(eps: float) -> float:
        return relational(student, teacher, squared=True, angle_weight=0.0, eps=eps).item()

    # Squares 1, 1, 4 over their mean 2, and 1, 4, 9 over 14/3; none below 4: all equal, and 4, 4, 9 over 17/3.
    for eps, own, others in (
        (1e-12, (0.5, 0.5, 2.0), (3 / 14, 12 / 14, 27 / 14)),
        (4.0, (1.0, 1.0, 1.0), (12 / 17, 12 / 17, 27 / 17)),
    ):
        expected = 25 * 2 * sum((s - t) ** 2 / 2 for s, t in zip(own, others, strict=True)) / 9
        assert math.isclose(of(eps), expected, rel_tol=1e-9)
