"""Checks that logits and classifiers fit, so that nothing is broadcast in silence."""

from __future__ import annotations

from torch import Tensor, nn

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


def check_classifier(classifier: nn.Module, channels: int, method: str) -> None:
    """Raise RunError KD450 where a linear classifier takes another number of channels."""
    width = classifier.in_features if isinstance(classifier, nn.Linear) else channels
    if width != channels:
        raise RunError.of(
            "KD450",
            f"`{method}`: the teacher's classifier takes {width} channels, its tapped layer gives {channels}",
            "name the teacher's last layer before its classifier",
        )
