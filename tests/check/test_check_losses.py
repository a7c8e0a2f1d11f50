"""What validate says of a loss that cannot be built, computed or summed: a loss somebody is just writing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcli.check.check import CheckOptions, check
from kdcli.losses import LOSSES, Loss
from tests.training.runs import SPEC, spec_of


def vector(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> Tensor:
    return (student - teacher).square().mean(1) * loss_weight


def failing(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> Tensor:
    return torch.cat([student, teacher.new_zeros(1, 7)]).mean()


def nothing(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> None:
    (student - teacher).square().mean()


def number(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> float:
    return (student - teacher).square().mean().item()


def several(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> list[Tensor]:
    return [student.mean(), teacher.mean()]


def whole(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> Tensor:
    return (student.argmax(1) != teacher.argmax(1)).sum()


def detached(student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0) -> Tensor:
    return (student.detach() - teacher).square().mean()


def of_the_teacher_alone(
    student: Tensor, teacher: Tensor, *, T: float = 4.0, loss_weight: float = 1.0
) -> Tensor:
    return teacher.square().mean()


class Unbuilt(torch.nn.Module):
    def __init__(self, student_shape: torch.Size, *, T: float = 4.0, loss_weight: float = 1.0) -> None:
        raise ValueError("no such width")

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return student.mean()


@pytest.mark.parametrize(
    ("loss", "code", "words"),
    [
        (vector, "KD439", "is no scalar: [2]; return one number: `.mean()`"),
        (nothing, "KD439", "is no scalar: it returns nothing; end its `forward` with `return`"),
        (number, "KD439", "is no scalar: it returns a float; return the tensor itself, without `.item()`"),
        (several, "KD439", "is no scalar: it returns a list; return one tensor"),
        (whole, "KD438", "or not read; `detach()`, `.data`,"),
        (
            detached,
            "KD438",
            "no gradient: what it reads of the student has one, and is cut off from it in the loss",
        ),
        (of_the_teacher_alone, "KD438", "or not read; `detach()`, `.data`,"),
        (failing, "KD437", "can't be computed: "),
        (Unbuilt, "KD435", "no such width"),
    ],
)
def test_a_broken_loss_is_told_at_its_place(
    loss: Callable[..., object], code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = spec_of(SPEC)
    monkeypatch.setitem(LOSSES, "kd_loss", Loss(f"{__name__}:{loss.__name__}", kind="logit"))  # type: ignore[attr-defined]
    found = [d for d in check(parsed, CheckOptions()).findings if d.severity == "error"]
    assert [d.code for d in found] == [code]
    assert words in f"{found[0].message}; {found[0].help}" and found[0].span is not None
