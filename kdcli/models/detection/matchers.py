"""Matching: which ground truth each candidate box stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.models.detection.boxes import intersection_over_first, iou

NEGATIVE, IGNORED = -1, -2

BEST_MARGIN = 1e-3
"""A candidate counts as a ground truth's best where its IoU is within this of the greatest."""


class MaxIouMatcher:
    """Each candidate goes to the ground truth it overlaps most.

    Its greatest IoU below negative_iou_thresh: negative; above positive_iou_thresh: positive; between:
    ignored. allow_low_quality_match: the best candidates of each ground truth are positive too, where
    that IoU is above low_quality_thresh and 0; they go to the ground truth they overlap most. (With a
    threshold of 0, United-Perception lets a ground truth that nothing overlaps make every candidate
    positive.) A candidate that is not positive and lies in an ignored region by more than
    ignore_iou_thresh is ignored.
    """

    def __init__(
        self,
        negative_iou_thresh: float,
        positive_iou_thresh: float,
        ignore_iou_thresh: float,
        allow_low_quality_match: bool,
        low_quality_thresh: float = 0.0,
        *,
        offset: int,
    ) -> None:
        if negative_iou_thresh > positive_iou_thresh:
            raise ValueError("negative_iou_thresh is at most positive_iou_thresh")
        self.negative, self.positive = negative_iou_thresh, positive_iou_thresh
        self.ignore, self.low_quality = ignore_iou_thresh, low_quality_thresh
        self.allow_low_quality = allow_low_quality_match
        self.offset = offset

    def match(self, candidates: Tensor, truth: Tensor, ignores: Tensor | None) -> Tensor:
        """int64 [N]: index into truth [M, >=4], or NEGATIVE, or IGNORED. ignores: [G, 4] or None."""
        count = candidates.shape[0]
        target = candidates.new_full((count,), IGNORED, dtype=torch.int64)
        if truth.shape[0] == 0:
            target.fill_(NEGATIVE if self.negative > 0 else IGNORED)
            positive = torch.zeros_like(target, dtype=torch.bool)
        else:
            overlaps = iou(candidates, truth, self.offset)
            greatest, which = overlaps.max(dim=1)
            target = torch.where(greatest < self.negative, NEGATIVE, target)
            positive = greatest > self.positive
            if self.allow_low_quality and count:
                best = overlaps >= overlaps.amax(dim=0) - BEST_MARGIN
                best &= overlaps > max(self.low_quality, 0.0)
                positive = positive | best.any(dim=1)
            target = torch.where(positive, which, target)
        if ignores is not None and ignores.shape[0] and count:
            inside = intersection_over_first(candidates, ignores, self.offset).amax(dim=1) > self.ignore
            target = torch.where(inside & ~positive, IGNORED, target)
        return target


MATCHERS = {"max_iou": MaxIouMatcher}
