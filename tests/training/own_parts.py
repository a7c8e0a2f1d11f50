"""Losses and methods of one's own that do what they must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

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


def writing(student: Tensor, teacher: Tensor) -> Tensor:
    """Changes the teacher's feature."""
    return F.mse_loss(student, teacher.mul_(0))


class Plain:
    """A class with `__call__`, but no module."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Never called."""
        return F.mse_loss(student, teacher)
