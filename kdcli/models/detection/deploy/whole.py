"""torchvision's Faster R-CNN and RetinaNet in fixed sizes, from their own networks and thresholds."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.ops
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList

from kdcli.models.detection.boxes import boxes_at, decode, quadruples
from kdcli.models.detection.deploy.candidates import ABSENT, PRESENT, Candidates, clipped, joined
from kdcli.models.detection.few_waits.found import SMALLEST_SIDE
from kdcli.models.detection.whole import TorchvisionDetector


def is_known(module: nn.Module) -> bool:
    """Whether a detector of torchvision can be put in fixed sizes."""
    if not isinstance(module, TorchvisionDetector):
        return False
    kind = type(module.detector)
    return kind in (FasterRCNN, RetinaNet)


def whole_boxes(module: TorchvisionDetector, image: Tensor, sizes: Tensor) -> Candidates:
    """What the detector finds, labels from -1 (torchvision's column 0), in one group, best first."""
    detector: Any = module.detector
    features = detector.backbone(image)
    maps = [features] if isinstance(features, Tensor) else list(features.values())
    if isinstance(detector, RetinaNet):
        return _retina(detector, image, maps, sizes)
    return _second_stage(detector, features, _proposals(detector, image, maps, sizes), sizes)


def eager_rows(module: TorchvisionDetector, image: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """torchvision's own answer on images padded to this size: [N, 7] as `dt_bboxes`, x2 and y2 edges."""
    detector: Any = module.detector
    padded = ImageList(image, sizes)
    features = detector.backbone(image)
    if isinstance(detector, RetinaNet):
        maps = list(features.values())
        outputs = detector.head(maps)
        anchors = detector.anchor_generator(padded, maps)
        counts = _anchor_counts(detector, maps)
        split = {name: list(value.split(counts, dim=1)) for name, value in outputs.items()}
        found = detector.postprocess_detections(split, [list(one.split(counts)) for one in anchors], sizes)
    else:
        proposals, _ = detector.rpn(padded, features)
        found, _ = detector.roi_heads(features, proposals, sizes)
    rows = []
    for number, one in enumerate(found):
        ends = torch.stack([one["scores"].float(), one["labels"].float()], dim=1)
        boxes = one["boxes"].float()
        rows.append(torch.cat([boxes.new_full((len(boxes), 1), number), boxes, ends], dim=1))
    return torch.cat(rows)


def _anchors(generator: Any, image: Tensor, maps: list[Tensor]) -> Tensor:
    """[sum of K, 4], the same for every image."""
    one = ImageList(image[:1], [(int(image.shape[2]), int(image.shape[3]))])
    anchors: Tensor = generator(one, [level[:1] for level in maps])[0]
    return anchors


def _anchor_counts(detector: Any, maps: list[Tensor]) -> list[int]:
    per_place = detector.anchor_generator.num_anchors_per_location()
    return [int(m.shape[2]) * int(m.shape[3]) * own for m, own in zip(maps, per_place, strict=True)]


def _moved(anchors: Tensor, deltas: Tensor, weights: Any) -> Tensor:
    """anchors [B, k, 4] moved by deltas [B, k, 4]."""
    flat = decode(anchors.flatten(0, 1), deltas.flatten(0, 1) / deltas.new_tensor(list(weights)), 0)
    return flat.view_as(anchors)


def _sides_at_least(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)


def _proposals(detector: Any, image: Tensor, maps: list[Tensor], sizes: Tensor) -> Candidates:
    rpn = detector.rpn
    logits, deltas = rpn.head(maps)
    anchors = _anchors(rpn.anchor_generator, image, maps)
    found, first = [], 0
    for own, moves in zip(logits, deltas, strict=True):
        own = own.permute(0, 2, 3, 1).flatten(1)
        count = own.shape[1]
        moves = moves.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, count, 4)
        best, order = own.topk(min(rpn.pre_nms_top_n(), count), dim=1)
        level = anchors[first : first + count].expand(own.shape[0], -1, -1)
        boxes = _moved(boxes_at(level, order), boxes_at(moves, order), rpn.box_coder.weights)
        boxes = clipped(boxes, sizes, 0)
        scores = best.sigmoid()
        there = _sides_at_least(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        candidates = Candidates(
            boxes=boxes[:, None],
            scores=torch.where(there, scores, ABSENT)[:, None],
            labels=torch.zeros_like(order)[:, None],
            classes=1,
        )
        found.append(candidates.thinned(rpn.nms_thresh, 0))
        first += count
    return joined(found).best(rpn.post_nms_top_n())


def _second_stage(detector: Any, features: Any, found: Candidates, sizes: Tensor) -> Candidates:
    heads = detector.roi_heads
    rois, count = found.rois(), found.scores.flatten(1).shape[1]
    logits, deltas = heads.box_predictor(heads.box_head(_pooled(heads.box_roi_pool, features, rois)))
    columns = logits.shape[1]
    weights = deltas.new_tensor(list(heads.box_coder.weights))
    moved = quadruples(decode(rois[:, 1:], (quadruples(deltas) / weights).flatten(1), 0))
    moved = moved[:, 1:].reshape(-1, count, columns - 1, 4).transpose(1, 2)
    scores = logits.softmax(-1)[:, 1:].reshape(-1, count, columns - 1).transpose(1, 2)
    moved = clipped(moved, sizes, 0)
    proposed = found.scores.flatten(1, 2)[:, None] > PRESENT
    there = proposed & (scores > heads.score_thresh) & _sides_at_least(moved, SMALLEST_SIDE)
    answer = Candidates(
        boxes=moved,
        scores=torch.where(there, scores, ABSENT),
        labels=torch.arange(columns - 1, device=scores.device)[:, None].expand_as(scores),
        classes=columns - 1,
    )
    return answer.thinned(heads.nms_thresh, 0).together().best(heads.detections_per_img)


def _pooled(pool: Any, features: Any, rois: Tensor) -> Tensor:
    """MultiScaleRoIAlign [R, C, p, p]; its scales are known once it has run."""
    maps = [features[name] for name in pool.featmap_names if name in features]
    mapper = pool.map_levels
    scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
    level = torch.floor(mapper.lvl0 + torch.log2(scale / mapper.s0) + mapper.eps)
    level = level.clamp(mapper.k_min, mapper.k_max) - mapper.k_min
    result = rois.new_zeros(rois.shape[0], maps[0].shape[1], *pool.output_size)
    for number, (feature, own_scale) in enumerate(zip(maps, pool.scales, strict=True)):
        own = torch.nonzero(level == number).flatten()
        part = torchvision.ops.roi_align(feature, rois[own], pool.output_size, own_scale, pool.sampling_ratio)
        result = result.index_copy(0, own, part)
    return result


def _retina(detector: Any, image: Tensor, maps: list[Tensor], sizes: Tensor) -> Candidates:
    outputs = detector.head(maps)
    anchors = _anchors(detector.anchor_generator, image, maps)
    found, first = [], 0
    for count in _anchor_counts(detector, maps):
        part = slice(first, first + count)
        logits, moves = outputs["cls_logits"][:, part], outputs["bbox_regression"][:, part]
        columns = logits.shape[2]
        scores = logits.sigmoid().flatten(1)
        scores = torch.where(scores > detector.score_thresh, scores, ABSENT)
        best, order = scores.topk(min(detector.topk_candidates, count * columns), dim=1)
        places = torch.div(order, columns, rounding_mode="floor")
        level = anchors[part].expand(logits.shape[0], -1, -1)
        boxes = _moved(boxes_at(level, places), boxes_at(moves, places), detector.box_coder.weights)
        found.append(
            Candidates(
                boxes=clipped(boxes, sizes, 0)[:, None],
                scores=best[:, None],
                labels=(order % columns)[:, None],
                classes=columns,
            )
        )
        first += count
    answer = joined(found).thinned(detector.nms_thresh, 0).best(detector.detections_per_img)
    # torchvision's column 0 is the background.
    return Candidates(
        boxes=answer.boxes, scores=answer.scores, labels=answer.labels - 1, classes=answer.classes
    )
