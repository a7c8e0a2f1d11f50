"""Losses and methods of one's own that do what they must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.distill.mimickers.base import BaseMimicker
from kdcli.distill.mimickers.mimicker import Compared
from kdcli.distill.taps import View
from kdcli.spec.tables import Method


class OnlyFirst(BaseMimicker):
    """Leaves every loss but its first one out."""

    kdcli_record: ClassVar[Method] = Method(extra_losses=True)

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The first of the base method's."""
        yield next(super().features(student, teachers, batch))


class Twice(OnlyFirst):
    """Gives the same loss two times."""

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The first of the base method's, twice."""
        yield from [*super().features(student, teachers, batch)] * 2


class Adds(BaseMimicker):
    """Gives a loss that the spec does not name."""

    kdcli_record: ClassVar[Method] = Method(extra_losses=True)

    def forward(self, *args: Any) -> dict[str, Tensor]:
        """The base method's, and one more."""
        losses = super().forward(*args)
        return {**losses, "own": sum(losses.values(), torch.zeros(()))}


def writing(student: Tensor, teacher: Tensor) -> Tensor:
    """Changes the teacher's feature."""
    return F.mse_loss(student, teacher.mul_(0))


class Plain:
    """A class with `__call__`, but no module."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Never called."""
        return F.mse_loss(student, teacher)


def blind(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's size alone."""
    return student.square().mean()


def by_label(student: Tensor, teacher: Tensor) -> Tensor:
    """What the teacher answers, without a gradient to it."""
    return F.cross_entropy(student, teacher.argmax(1))


def noisy(student: Tensor, teacher: Tensor) -> Tensor:
    """Random, and yet the same whatever the teacher shows."""
    return F.dropout(student.square(), 0.5).mean()


class Blind(BaseMimicker):
    """Compares the student with itself."""

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The base method's, the student's feature in the teacher's place."""
        for key, compared in super().features(student, teachers, batch):
            halves = [one.detach() * 0.5 for one in compared.students if isinstance(one, Tensor)]
            yield key, replace(compared, teachers=halves)


class Hidden(nn.Module):
    """Has a layer in a plain list, or in one that torch knows of."""

    def __init__(self, num_classes: int = 4, listed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        layers = [nn.Linear(8, 8)]
        self.layers: Any = nn.ModuleList(layers) if listed else layers
        self.last = nn.Linear(8, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        return self.last(self.layers[0](self.first(image.flatten(1))))  # type: ignore[no-any-return]
