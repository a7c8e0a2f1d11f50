"""Checks that logits fit, so that nothing is broadcast in silence."""

from __future__ import annotations

from torch import Tensor

from kdcli.errors import RunError
from kdcli.losses.layout import equal_shapes, shown


def check_logits(student: Tensor, teacher: Tensor, labels: Tensor | None, method: str) -> None:
    """Raise RunError KD450 unless both are [B, K] and labels, where given, [B]."""
    equal_shapes(student, teacher, method)
    check_labels(student, labels, method)


def check_labels(logits: Tensor, labels: Tensor | None, method: str) -> None:
    """Raise RunError KD450 unless logits are [B, K] and labels, where given, [B]."""
    if logits.dim() != 2:
        raise RunError.of(
            "KD450",
            f"`{method}` takes logits [B, K], not {shown(logits.shape)}",
            "name the classifier's output (`logits`)",
        )
    if labels is not None and labels.shape != logits.shape[:1]:
        raise RunError.of(
            "KD450",
            f"`{method}` takes one label a row, not {shown(labels.shape)} for logits {shown(logits.shape)}",
            "use a dataset of class labels, without mixing",
        )
