"""Code that tables of the tests name; it is read, never imported by what is tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcli.spec.ranges import Positive, Share
from kdcli.spec.tables import Method, OwnLoss, option

Size = int | list[int]
Mode = Literal["RGB", "GRAY"]


def l2_loss(student: Any, teacher: Any, *, feat_norm: bool = False, loss_weight: float = 1.0) -> Any:
    """Squared distance.

    student, teacher: features of equal shape.
    """
    return student, teacher, feat_norm, loss_weight


def kl_loss(
    student: Any, teacher: Any, *, norm: Literal["softmax", "l2"] = "softmax", loss_weight: float = 1.0
) -> Any:
    """KL after a ReLU."""
    return student, teacher, norm, loss_weight


def kd_loss(student: Any, teacher: Any, *, T: Positive = 1.0, loss_weight: float = 1.0) -> Any:
    """Softened KL."""
    return student, teacher, T, loss_weight


def dkd(student: Any, teacher: Any, labels: Any, *, alpha: float = 1.0, loss_weight: float = 1.0) -> Any:
    """Decoupled."""
    return student, teacher, labels, alpha, loss_weight


class Bank:
    """A loss with state and a required option."""

    def __init__(self, student_shape: Any, num_samples: int, *, dim: int, loss_weight: float = 0.8) -> None:
        self.kept = student_shape, num_samples, dim, loss_weight

    def forward(self, student: Any, teacher: Any, indices: Any) -> Any:
        """Contrast."""
        return student, teacher, indices


@dataclass(frozen=True, slots=True, kw_only=True)
class FrsOptions:
    """Options of a method."""

    levels: tuple[int, ...] = option((0, 1), "numbers of maps")
    mode: Mode = option("RGB", "colours", "KD465")
    scale: Positive = option(1.0, "of boxes", "KD462")
    share: Share = option(0.5, "of pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededOptions:
    """Options one of which has no default."""

    path: str = field(metadata={"meaning": "where it lies"})


ANY = Method(losses={"loss": OwnLoss(type="l2_loss", kwargs={"feat_norm": True})}, extra_losses=True)
FRS = Method(
    losses={"neck_loss": OwnLoss(type="l2_loss"), "bank_loss": OwnLoss(type="bank", kwargs={"dim": 128})},
    options=FrsOptions,
)
UNPAIRED = Method(losses={"loss": OwnLoss(type="l2_loss")}, paired=False)
NEEDY = Method(options=NeededOptions)


class ResNet:
    """A backbone; `depth` is the name's."""

    def __init__(
        self,
        *,
        depth: int,
        out_layers: list[int] | None = None,
        normalize: dict[str, Any] | None = None,
        aligned: bool = False,
    ) -> None:
        self.kept = depth, out_layers, normalize, aligned


class Head:
    """A classifier."""

    def __init__(
        self, inplanes: Size | None = None, *, num_classes: Size, dropout: float | None = None
    ) -> None:
        self.kept = inplanes, num_classes, dropout


class Auto:
    """An adapter."""

    def __init__(self, student: Any, teacher: Any, *, norm: bool = True) -> None:
        self.kept = student, teacher, norm


def fake(
    path: Any,
    *,
    num_samples: int = 64,
    shape: tuple[int, int, int] = (3, 32, 32),
    labels: Literal["classes", "none"] = "classes",
) -> Any:
    """A dataset."""
    return path, num_samples, shape, labels


class Reader:
    """An image reader."""

    def __init__(self, path: Any, *, image_dir: str | list[str], color_mode: Mode = "RGB") -> None:
        self.kept = path, image_dir, color_mode


class Crop:
    """A transform."""

    def __init__(self, *, size: Size, scale: Sequence[float] = (0.08, 1.0)) -> None:
        self.kept = size, scale


class ToTensor:
    """A transform without arguments."""


class Mixup:
    """Mixes two samples."""

    def __init__(self, *, alpha: float = 1.0, num_classes: int = 10) -> None:
        self.kept = alpha, num_classes


def imagenet(*, topk: list[int] = [1]) -> Any:  # noqa: B006
    """An evaluator."""
    return topk
