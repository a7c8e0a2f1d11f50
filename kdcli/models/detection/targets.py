"""Targets: what anchors and proposals are trained towards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcli.models.detection.blocks import build_block, means_and_stds
from kdcli.models.detection.boxes import clip, encode, large_enough, normalized
from kdcli.models.detection.losses import IGNORED_TARGET
from kdcli.models.detection.matchers import IGNORED, MATCHERS
from kdcli.models.detection.samplers import SAMPLERS

SMALLEST_TRUTH = 1.0
"""Ground truth whose sides are not greater than this many pixels trains nothing."""


@dataclass(frozen=True, slots=True)
class AnchorTargets:
    """Of every anchor of every image: classes [B, K] (IGNORED_TARGET where not sampled), deltas [B, K, 4].

    positive: bool [B, K], whose deltas count.
    """

    classes: Tensor
    deltas: Tensor
    positive: Tensor


class AnchorSupervisor:
    """Matches and samples anchors.

    allowed_border: anchors further outside the image than this are left out; negative: none is.
    filter_outside_before_match false leaves them out of the sample only. foreground: every class is 1.
    """

    def __init__(
        self,
        allowed_border: float,
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
    def targets(self, anchors: Tensor, batch: Mapping[str, Any]) -> AnchorTargets:
        """anchors [K, 4]; reads `boxes`, `ignores`, `image_info`."""
        truths: Sequence[Tensor] = batch["boxes"]
        images, count = len(truths), len(anchors)
        classes = anchors.new_full((images, count), IGNORED_TARGET, dtype=torch.int64)
        deltas = anchors.new_zeros((images, count, 4))
        positive = torch.zeros_like(classes, dtype=torch.bool)
        for image, truth in enumerate(truths):
            truth = truth[large_enough(truth, SMALLEST_TRUTH, self.offset)].to(anchors.dtype)
            inside = self._inside(anchors, batch["image_info"][image])
            if inside is not None and self.outside_first:
                chosen = torch.nonzero(inside).flatten()
            else:
                chosen = torch.arange(count, device=anchors.device)
            target = self.matcher.match(anchors[chosen], truth, ignores_of(batch, image))
            if inside is not None and not self.outside_first:
                target = torch.where(inside, target, IGNORED)
            taken, negative = self.sampler.sample(target)
            where = chosen[taken]
            classes[image, chosen[negative]] = 0
            if len(taken):
                matched = truth[target[taken]]
                labels = matched[:, 4].to(torch.int64)
                classes[image, where] = labels.clamp(max=1) if self.foreground else labels
                deltas[image, where] = encode(anchors[where], matched, self.offset)
                positive[image, where] = True
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
        allowed_border: float,
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


ANCHOR_SUPERVISORS = {"rpn": anchor_supervisor(True), "retina": anchor_supervisor(False)}


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
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        records = []
        for image, truth in enumerate(batch["boxes"]):
            truth = truth[large_enough(truth, SMALLEST_TRUTH, self.offset)].to(proposals.dtype)
            own = proposals[proposals[:, 0] == image, 1:5]
            candidates = clip(torch.cat([own, truth[:, :4]]), batch["image_info"][image], self.offset)
            target = self.matcher.match(candidates, truth, ignores_of(batch, image))
            taken, negative = self.sampler.sample(target)
            matched = truth[target[taken]]
            boxes = candidates[torch.cat([taken, negative])]
            labels = matched[:, 4].to(torch.int64)
            classes = torch.cat([labels, labels.new_zeros(len(negative))])
            deltas = boxes.new_zeros((len(boxes), 4))
            weights = boxes.new_zeros((len(boxes), 4))
            if len(taken):
                encoded = encode(boxes[: len(taken)], matched, self.offset)
                deltas[: len(taken)] = normalized(encoded, self.means, self.stds)
                weights[: len(taken)] = 1.0
            numbers = boxes.new_full((len(boxes), 1), image)
            parts.append((torch.cat([numbers, boxes], dim=1), classes, deltas, weights))
            records.append((taken, target[taken], boxes[: len(taken)], labels))
        rois, classes, deltas, weights = (torch.cat(column) for column in zip(*parts, strict=True))
        return RoiTargets(rois, classes, deltas, weights, records)


ROI_SUPERVISORS = {"faster": RoiSupervisor}


def ignores_of(batch: Mapping[str, Any], image: int) -> Tensor | None:
    """The ignored regions of an image [G, 4]; None where the batch has none."""
    ignores = batch.get("ignores")
    return None if ignores is None else ignores[image]
