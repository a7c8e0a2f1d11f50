"""Mixing of the samples of a batch: mixup, cutmix, either.

Each takes a batch and a generator that is a function of (seed, epoch, batch), and returns a new batch in
which `mixed_labels` float32 [B, num_classes] are the soft targets and `labels` the dominant class. Images without
labels are mixed alike: the teachers see the mixed images, and their answers are the targets.
A batch function of one's own may do anything else to a batch; one that mixes labels takes `num_classes`, and the spec
gives it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.spec.ranges import NonNegative, Share, Width


class Mixup:
    """Convex mixtures of two samples and of their labels; share ~ Beta(alpha, alpha), one a batch.

    Source: "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412.
    """

    def __init__(self, *, alpha: NonNegative = 1.0, num_classes: Width = 1000) -> None:
        self.alpha, self.num_classes = _checked(alpha), num_classes

    def __call__(self, batch: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """The batch with `image` replaced, and with `labels` and `mixed_labels` where it has labels."""
        share = _share(self.alpha, generator)
        partner = torch.from_numpy(generator.permutation(len(batch["image"])))
        image = batch["image"]
        mixed = image * share + image[partner] * (1 - share)
        return {
            **batch,
            "image": mixed,
            **_mixed_labels(batch.get("labels"), partner, share, self.num_classes),
        }


class Cutmix:
    """A rectangle of each image is taken from another; labels are mixed by area.

    The area is 1 - share, share ~ Beta(alpha, alpha), the centre uniform; what hangs over the border is
    cut off and not counted.
    Source: "CutMix: Regularization Strategy to Train Strong Classifiers", arXiv:1905.04899.
    """

    def __init__(self, *, alpha: NonNegative = 1.0, num_classes: Width = 1000) -> None:
        self.alpha, self.num_classes = _checked(alpha), num_classes

    def __call__(self, batch: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """The batch with `image` replaced, and with `labels` and `mixed_labels` where it has labels."""
        side = float(np.sqrt(1 - _share(self.alpha, generator)))
        partner = torch.from_numpy(generator.permutation(len(batch["image"])))
        image = batch["image"]
        height, width = image.shape[2:]
        top, bottom = _span(height, side, generator)
        left, right = _span(width, side, generator)
        mixed = image.clone()
        mixed[:, :, top:bottom, left:right] = image[partner, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return {
            **batch,
            "image": mixed,
            **_mixed_labels(batch.get("labels"), partner, share, self.num_classes),
        }


class CutMixup:
    """Each batch is mixed by cutmix with probability switch_prob, else by mixup.

    alpha stands for both mixup_alpha and cutmix_alpha where they are not given.
    """

    def __init__(
        self,
        *,
        alpha: NonNegative = 1.0,
        mixup_alpha: NonNegative | None = None,
        cutmix_alpha: NonNegative | None = None,
        switch_prob: Share = 0.5,
        num_classes: Width = 1000,
    ) -> None:
        if not 0 <= switch_prob <= 1:
            raise ValueError(f"`switch_prob` must lie in 0..1, got {switch_prob}")
        self.num_classes, self.switch_prob = num_classes, switch_prob
        self.mixup = Mixup(alpha=alpha if mixup_alpha is None else mixup_alpha, num_classes=num_classes)
        self.cutmix = Cutmix(alpha=alpha if cutmix_alpha is None else cutmix_alpha, num_classes=num_classes)

    def __call__(self, batch: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """The batch with `image` replaced, and with `labels` and `mixed_labels` where it has labels."""
        chosen = self.cutmix if generator.random() < self.switch_prob else self.mixup
        return chosen(batch, generator)


def _checked(alpha: float) -> float:
    if alpha < 0:
        raise ValueError(f"`alpha` must not be negative, got {alpha}")
    return alpha


def _share(alpha: float, generator: np.random.Generator) -> float:
    return float(generator.beta(alpha, alpha)) if alpha > 0 else 1.0


def _span(size: int, side: float, generator: np.random.Generator) -> tuple[int, int]:
    half, centre = int(size * side) // 2, int(generator.random() * size)
    return max(0, centre - half), min(size, centre + half)


def _mixed_labels(
    labels: Tensor | None, partner: Tensor, share: float, num_classes: int
) -> dict[str, Tensor]:
    if labels is None:
        return {}
    own, other = labels, labels[partner]
    one_hot = [F.one_hot(side, num_classes).to(torch.float32) for side in (own, other)]
    return {
        "mixed_labels": one_hot[0] * share + one_hot[1] * (1 - share),
        "labels": own if share >= 0.5 else other,
    }
