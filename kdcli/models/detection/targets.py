"""Targets: what anchors and proposals are trained towards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from kdcli.models.detection.blocks import build_block, means_and_stds
from kdcli.models.detection.boxes import (
    clip,
    encode,
    host_counts,
    intersection_over_first,
    iou,
    large_enough,
    normalized,
    true_places,
)
from kdcli.models.detection.losses import IGNORED_TARGET
from kdcli.spec.ranges import Count, Range, Share

SomeShare = Annotated[float, Range(more_than=0, at_most=1)]
Outside = Annotated[float, Range(at_least=-65536, at_most=65536)]

SMALLEST_TRUTH = 1.0
"""Ground truth whose sides are not greater than this many pixels trains nothing."""


@dataclass(frozen=True, slots=True)
class AnchorTargets:
    """Of every anchor of every image: classes [B, K] (IGNORED_TARGET where not sampled), deltas [B, K, 4].

    positive: bool [B, K], whose deltas count. quality: [P] in 0..1, the target of an IoU branch at each
    positive, image by image; None without.
    """

    classes: Tensor
    deltas: Tensor
    positive: Tensor
    quality: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What a dense head says of every anchor: logits [B, K, C], deltas [B, K, 4], IoU logits [B, K] or None."""

    logits: Tensor
    deltas: Tensor
    iou: Tensor | None = None


class AnchorSupervisor:
    """Matches and samples anchors.

    allowed_border: anchors further outside the image than this are left out; negative: none is.
    filter_outside_before_match false leaves them out of the sample only. foreground: every class is 1.
    """

    def __init__(
        self,
        allowed_border: Outside,
        matcher: Mapping[str, Any],
        sampler: Mapping[str, Any],
        filter_outside_before_match: bool = True,
        *,
        foreground: bool,
        offset: int,
    ) -> None:
        where = "cfg.roi_supervisor.kwargs"
        self.border, self.foreground, self.offset = allowed_border, foreground, offset
        self.outside_first = filter_outside_before_match
        self.matcher = build_block(matcher, f"{where}.matcher", MATCHERS, offset=offset)
        self.sampler = build_block(sampler, f"{where}.sampler", SAMPLERS)

    @torch.no_grad()
    def targets(
        self, levels: Sequence[Tensor], batch: Mapping[str, Any], answers: Answers | None = None
    ) -> AnchorTargets:
        """levels: anchors [K_i, 4] of each; reads `boxes`, `ignores`, `image_info`; answers play no part."""
        anchors = torch.cat(list(levels))
        truths: Sequence[Tensor] = batch["boxes"]
        images, count = len(truths), len(anchors)
        classes = anchors.new_full((images, count), IGNORED_TARGET, dtype=torch.int64)
        deltas = anchors.new_zeros((images, count, 4))
        positive = torch.zeros_like(classes, dtype=torch.bool)
        for image, truth in enumerate(truths):
            wide = large_enough(truth, SMALLEST_TRUTH, self.offset)
            truth = truth.to(anchors.dtype)
            inside = self._inside(anchors, batch["image_info"][image])
            matched = inside[:, None] if inside is not None and self.outside_first else None
            target = self.matcher.match(anchors, truth, ignores_of(batch, image), wide, matched)
            if inside is not None:
                target = torch.where(inside, target, IGNORED)
            taken, negative = self.sampler.sample(target)
            classes[image] = torch.where(negative, 0, classes[image])
            if len(truth):
                own = truth[target.clamp(min=0)]
                labels = own[:, 4].to(torch.int64)
                labels = labels.clamp(max=1) if self.foreground else labels
                classes[image] = torch.where(taken, labels, classes[image])
                deltas[image] = torch.where(taken[:, None], encode(anchors, own, self.offset), deltas[image])
                positive[image] = taken
        return AnchorTargets(classes, deltas, positive)

    def _inside(self, anchors: Tensor, image_info: Sequence[float]) -> Tensor | None:
        if self.border < 0:
            return None
        height, width = float(image_info[0]), float(image_info[1])
        return (
            (anchors[:, 0] > -self.border)
            & (anchors[:, 1] > -self.border)
            & (anchors[:, 2] < width + self.border)
            & (anchors[:, 3] < height + self.border)
        )


def anchor_supervisor(foreground: bool) -> Any:
    """The constructor of one kind of supervisor, for a block."""

    def build(
        allowed_border: Outside,
        matcher: Mapping[str, Any],
        sampler: Mapping[str, Any],
        filter_outside_before_match: bool = True,
        bbox_encode: bool = True,
        *,
        offset: int,
    ) -> AnchorSupervisor:
        if not bbox_encode:
            raise ValueError("`bbox_encode` is true")
        return AnchorSupervisor(
            allowed_border,
            matcher,
            sampler,
            filter_outside_before_match,
            foreground=foreground,
            offset=offset,
        )

    return build


@dataclass(frozen=True, slots=True)
class RoiTargets:
    """Of every sampled roi of all images: rois [R, 5] (image, box), classes [R], deltas [R, 4].

    weights: [R, 4], 1 for a positive, else 0. records: per image (indices of the positives among its
    candidates, their ground truth, their boxes, their classes).
    """

    rois: Tensor
    classes: Tensor
    deltas: Tensor
    weights: Tensor
    records: list[tuple[Tensor, Tensor, Tensor, Tensor]]


class RoiSupervisor:
    """Matches and samples proposals; ground truth is among the candidates."""

    def __init__(
        self,
        bbox_normalize: Mapping[str, Any],
        matcher: Mapping[str, Any],
        sampler: Mapping[str, Any],
        *,
        offset: int,
    ) -> None:
        where = "cfg.bbox_supervisor.kwargs"
        self.offset = offset
        self.means, self.stds = means_and_stds(bbox_normalize, f"{where}.bbox_normalize")
        self.matcher = build_block(matcher, f"{where}.matcher", MATCHERS, offset=offset)
        self.sampler = build_block(sampler, f"{where}.sampler", SAMPLERS)

    @torch.no_grad()
    def targets(self, proposals: Tensor, batch: Mapping[str, Any]) -> RoiTargets:
        """proposals [N, >=5] (image, x1, y1, x2, y2, ...); reads `boxes`, `ignores`, `image_info`."""
        proposals = proposals.float()
        images = [self._image(proposals, truth, batch, image) for image, truth in enumerate(batch["boxes"])]
        # The only wait for the device: how many positives and negatives each image has.
        counts = iter(host_counts([mask for found in images for mask in (found.positive, found.negative)]))
        columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        records = []
        for image, found in enumerate(images):
            taken, negative = (true_places(m, next(counts)) for m in (found.positive, found.negative))
            target = found.target[taken]
            boxes = found.candidates[torch.cat([taken, negative])]
            labels = found.truth[target, 4].to(torch.int64)
            classes = torch.cat([labels, labels.new_zeros(len(negative))])
            deltas = boxes.new_zeros((len(boxes), 4))
            weights = boxes.new_zeros((len(boxes), 4))
            if len(taken):
                encoded = encode(boxes[: len(taken)], found.truth[target], self.offset)
                deltas[: len(taken)] = normalized(encoded, self.means, self.stds)
                weights[: len(taken)] = 1.0
            numbers = boxes.new_full((len(boxes), 1), image)
            columns.append((torch.cat([numbers, boxes], dim=1), classes, deltas, weights))
            # By number among the image's own candidates and among its truth that is large enough.
            places, truths = found.own.cumsum(0) - 1, found.wide.cumsum(0) - 1
            records.append((places[taken], truths[target], boxes[: len(taken)], labels))
        rois, classes, deltas, weights = (torch.cat(column) for column in zip(*columns, strict=True))
        return RoiTargets(rois, classes, deltas, weights, records)

    def _image(self, proposals: Tensor, truth: Tensor, batch: Mapping[str, Any], image: int) -> Matched:
        """The sample of one image; those of others are among its candidates, and take no part."""
        wide = large_enough(truth, SMALLEST_TRUTH, self.offset)
        truth = truth.to(proposals.dtype)
        own = torch.cat([proposals[:, 0] == image, wide])
        candidates = torch.cat([proposals[:, 1:5], truth[:, :4]])
        candidates = clip(candidates, batch["image_info"][image], self.offset)
        target = self.matcher.match(candidates, truth, ignores_of(batch, image), wide, own[:, None])
        target = torch.where(own, target, IGNORED)
        return Matched(candidates, truth, own, wide, target, *self.sampler.sample(target))


@dataclass(frozen=True, slots=True)
class Matched:
    """Candidates [N, 4] against the truth [M, 5] of one image.

    own: bool [N], those of the image. wide: bool [M], the truth that is large enough. target: int64 [N], as
    a matcher gives it. positive, negative: bool [N], the sample.
    """

    candidates: Tensor
    truth: Tensor
    own: Tensor
    wide: Tensor
    target: Tensor
    positive: Tensor
    negative: Tensor


ROI_SUPERVISORS = {"faster": RoiSupervisor}


def ignores_of(batch: Mapping[str, Any], image: int) -> Tensor | None:
    """The ignored regions of an image [G, 4]; None where the batch has none."""
    ignores = batch.get("ignores")
    return None if ignores is None else ignores[image]


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
        negative_iou_thresh: SomeShare,
        positive_iou_thresh: Share,
        ignore_iou_thresh: Share,
        allow_low_quality_match: bool,
        low_quality_thresh: Share = 0.0,
        *,
        offset: int,
    ) -> None:
        if negative_iou_thresh > positive_iou_thresh:
            raise ValueError("negative_iou_thresh is at most positive_iou_thresh")
        self.negative, self.positive = negative_iou_thresh, positive_iou_thresh
        self.ignore, self.low_quality = ignore_iou_thresh, low_quality_thresh
        self.allow_low_quality = allow_low_quality_match
        self.offset = offset

    def match(
        self,
        candidates: Tensor,
        truth: Tensor,
        ignores: Tensor | None,
        wide: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Tensor:
        """int64 [N]: index into truth [M, >=4], or NEGATIVE, or IGNORED. ignores: [G, 4] or None.

        wide: bool [M], the truth that can be matched; own: bool [N, 1], the candidates that can, the others'
        result means nothing; None: all.
        """
        count = candidates.shape[0]
        target = candidates.new_full((count,), IGNORED, dtype=torch.int64)
        if truth.shape[0] == 0:
            target.fill_(NEGATIVE if self.negative > 0 else IGNORED)
            positive = torch.zeros_like(target, dtype=torch.bool)
        else:
            overlaps = iou(candidates, truth, self.offset)
            for comparable in (wide, own):
                # Less than any overlap, so that such a pair decides nothing.
                overlaps = overlaps if comparable is None else torch.where(comparable, overlaps, -1.0)
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


class NaiveSampler:
    """At most batch_size·positive_percent positives, filled up to batch_size with negatives, at random."""

    def __init__(self, batch_size: Count, positive_percent: SomeShare) -> None:
        if batch_size < 1 or not 0 <= positive_percent <= 1:
            raise ValueError("batch_size is positive and positive_percent in 0..1")
        self.batch_size, self.positive_percent = batch_size, positive_percent

    def sample(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Which positives and which negatives are taken from a matcher's result [N]: two masks, bool [N].

        The candidates with the greatest of random numbers, which are drawn where the target lies: nothing
        waits for how many there are.
        """
        keys = torch.rand(len(target), device=target.device)
        most = int(self.batch_size * self.positive_percent)
        positive = self.choose(target >= 0, keys, most)
        return positive, self.choose(
            target == NEGATIVE, keys, self.batch_size, self.batch_size - positive.sum()
        )

    def choose(self, mask: Tensor, keys: Tensor, most: int, room: Tensor | int | None = None) -> Tensor:
        """Bool [N]: those of the mask with the greatest keys, at most so many, and at most `room` of them."""
        best, places = torch.where(mask, keys, -1.0).topk(min(most, len(mask)))
        chosen = best >= 0
        if room is not None:
            chosen = chosen & (torch.arange(len(best), device=mask.device) < room)
        return torch.zeros_like(mask).scatter(0, places, chosen)


class FirstSampler(NaiveSampler):
    """As NaiveSampler, but the first ones in place of random ones."""

    def sample(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Which positives and which negatives are taken from a matcher's result [N]: two masks, bool [N]."""
        positive, negative = target >= 0, target == NEGATIVE
        positive = positive & (positive.cumsum(0) <= int(self.batch_size * self.positive_percent))
        return positive, negative & (negative.cumsum(0) <= self.batch_size - positive.sum())


class AllSampler:
    """Every positive and every negative."""

    def __init__(self) -> None:
        pass

    def sample(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Which are positive and which negative in a matcher's result [N]: two masks, bool [N]."""
        return target >= 0, target == NEGATIVE


SAMPLERS = {
    "naive": NaiveSampler,
    "naive_a100": NaiveSampler,
    "no_random": FirstSampler,
    "keep_all": AllSampler,
}
