"""Boxes [N, 4] as (x1, y1, x2, y2) in pixels, in either of two geometries.

offset 0: x2 and y2 are edges, a width is x2 - x1. offset 1: they are the last pixels inside, a width is
x2 - x1 + 1 (`aligned: false`). Boxes of the second kind become the first by moving x2 and y2 by 1, which
is how torchvision's kernels serve both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision.ops
from torch import Tensor

LARGEST_GROWTH = math.log(1000.0 / 16.0)
"""Decoded sides grow by at most this factor (in logs), so that no exponential overflows."""


def offset_of(aligned: bool) -> int:
    """0 for the modern geometry, 1 for the one that counts last pixels."""
    return 0 if aligned else 1


def beyond_last_pixel(info: Sequence[float], offset: int, like: Tensor | None = None) -> Tensor:
    """[0, 0, dx, dy]: what an image's x2 and y2 lack to be edges, in pixels of the resized image.

    info: (h, w, scale_h, scale_w, ...) as in `image_info`. The last pixel is one of the original image, as
    in United-Perception, so that resized boxes lack a pixel times the scale. Of the device and dtype of
    `like`; None: float32 on the CPU.
    """
    lacking = [0.0, 0.0, offset * info[3], offset * info[2]]
    return torch.tensor(lacking) if like is None else numbers(lacking, like)


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers of the host as a tensor of the device and dtype of `like`, [N].

    On a GPU each is filled in there: a copy from the host would wait until the GPU has done all before it.
    """
    if like.device.type == "cpu":
        return like.new_tensor(values)
    return torch.stack([like.new_full((), value) for value in values])


def quadruples(deltas: Tensor) -> Tensor:
    """[N, 4·k] as [N, k, 4]."""
    return deltas.reshape(deltas.shape[0], deltas.shape[1] // 4, 4)


def sides(boxes: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Width and height, each [N]."""
    return boxes[:, 2] - boxes[:, 0] + offset, boxes[:, 3] - boxes[:, 1] + offset


def edges(boxes: Tensor, offset: int) -> Tensor:
    """The first four columns in the modern geometry, float32 at least."""
    boxes = boxes[:, :4] if boxes.dtype == torch.float64 else boxes[:, :4].float()
    return torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1) if offset else boxes


def iou(a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Intersection over union of every pair, [N, M]; 0 where both are empty."""
    overlaps: Tensor = torchvision.ops.box_iou(edges(a, offset), edges(b, offset))
    return overlaps.nan_to_num(0.0)


def paired_iou(a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Intersection over union of each box with the one in its row, [N]; 0 where both are empty."""
    a, b = edges(a, offset), edges(b, offset)
    shared = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return shared / union.clamp(min=1e-6)


def intersection_over_first(a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Share of each box of `a` that lies in each of `b`, [N, M]; 0 for an empty one."""
    a, b = edges(a, offset), edges(b, offset)
    low = torch.max(a[:, None, :2], b[None, :, :2])
    high = torch.min(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area: Tensor = torchvision.ops.box_area(a)
    return shared / area[:, None].clamp(min=1e-6)


def encode(boxes: Tensor, targets: Tensor, offset: int) -> Tensor:
    """What moves each box to its target, [N, 4]: centre shifts in sides of the box, log ratios of sides."""
    width, height = sides(boxes, offset)
    target_width, target_height = sides(targets, offset)
    shift_x = targets[:, 0] + 0.5 * target_width - boxes[:, 0] - 0.5 * width
    shift_y = targets[:, 1] + 0.5 * target_height - boxes[:, 1] - 0.5 * height
    return torch.stack(
        [
            shift_x / width,
            shift_y / height,
            torch.log(target_width / width),
            torch.log(target_height / height),
        ],
        dim=1,
    )


def decode(boxes: Tensor, deltas: Tensor, offset: int) -> Tensor:
    """Boxes [N, 4] moved by deltas [N, 4·k]: [N, 4·k]."""
    width, height = (side[:, None] for side in sides(boxes, offset))
    moves = quadruples(deltas)
    x = moves[..., 0] * width + boxes[:, 0, None] + 0.5 * width
    y = moves[..., 1] * height + boxes[:, 1, None] + 0.5 * height
    half_width = 0.5 * width * moves[..., 2].clamp(max=LARGEST_GROWTH).exp()
    half_height = 0.5 * height * moves[..., 3].clamp(max=LARGEST_GROWTH).exp()
    corners = (x - half_width, y - half_height, x + half_width - offset, y + half_height - offset)
    return torch.stack(corners, dim=-1).flatten(1)


def normalized(deltas: Tensor, means: Sequence[float], stds: Sequence[float]) -> Tensor:
    """Deltas [N, 4] with the means taken off, over the standard deviations."""
    return (deltas - numbers(means, deltas)) / numbers(stds, deltas)


def denormalized(deltas: Tensor, means: Sequence[float], stds: Sequence[float]) -> Tensor:
    """The inverse of `normalized` for [N, 4·k]."""
    quads = quadruples(deltas)
    return (quads * numbers(stds, deltas) + numbers(means, deltas)).flatten(1)


def clip(boxes: Tensor, image_info: Sequence[float], offset: int) -> Tensor:
    """Boxes [N, >=4] cut to the image; image_info begins with height and width."""
    cut = torch.minimum(boxes[:, :4].clamp(min=0), clip_limit(image_info, offset, boxes))
    return torch.cat([cut, boxes[:, 4:]], dim=1) if boxes.shape[1] > 4 else cut


def clip_limit(image_info: Sequence[float], offset: int, like: Tensor) -> Tensor:
    """The greatest x1, y1, x2, y2 of a box in an image, [4]; image_info begins with height and width."""
    height, width = float(image_info[0]), float(image_info[1])
    return numbers([width, height, width, height], like) - offset


def large_enough(boxes: Tensor, min_size: float, offset: int) -> Tensor:
    """Bool [N]: both sides greater than min_size."""
    width, height = sides(boxes, offset)
    return (width > min_size) & (height > min_size)


def nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are kept, best first."""
    kept: Tensor = torchvision.ops.nms(edges(boxes, offset), scores.float(), threshold)
    return kept


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, offset: int) -> Tensor:
    """Like `nms`, where only boxes of one group (class, level) suppress each other."""
    kept: Tensor = torchvision.ops.batched_nms(edges(boxes, offset), scores.float(), groups, threshold)
    return kept


ROUNDS = 32
"""Rounds of `suppressed` before the host looks whether the last one changed anything."""

PAIRS = 2**24
"""Pairs of boxes that a GPU compares at once, in about 300 MB."""


def kept_in_groups(
    boxes: Tensor, there: Tensor, labels: Tensor | None, threshold: float, offset: int
) -> Tensor:
    """Bool [G, m]: what NMS within each group keeps of boxes [G, m, 4], which stand best first in each group.

    there: bool [G, m], the places that hold a box. labels: [G, m], only boxes of one label suppress each
    other; None: all of a group. On a GPU all groups are thinned together, at one wait for it in all (more
    only where a chain of boxes that suppress each other has over ROUNDS links); one by one on the CPU, and
    where the pairs of a group are more than PAIRS.
    """
    if boxes.device.type == "cpu" or there.shape[1] ** 2 > PAIRS:
        kept = torch.zeros_like(there)
        for group, places in enumerate(there):
            rows = torch.nonzero(places).flatten()
            own, ranks = boxes[group, rows], torch.arange(len(rows), 0, -1, device=boxes.device)
            chosen = (
                nms(own, ranks, threshold, offset)
                if labels is None
                else nms_by_group(own, ranks, labels[group, rows], threshold, offset)
            )
            kept[group, rows[chosen]] = True
        return kept
    size, rounds = max(1, PAIRS // max(1, there.shape[1] ** 2)), ROUNDS
    corners = edges(boxes.flatten(0, 1), offset).view(boxes.shape)
    while True:
        parts = [
            suppressed(
                corners[at : at + size],
                there[at : at + size],
                None if labels is None else labels[at : at + size],
                threshold,
                rounds,
            )
            for at in range(0, len(there), size)
        ]
        if not parts or rounds >= there.shape[1] or bool(torch.stack([part[1] for part in parts]).all()):
            return torch.cat([part[0] for part in parts]) if parts else there
        rounds *= 4


def suppressed(
    corners: Tensor, there: Tensor, labels: Tensor | None, threshold: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """What `kept_in_groups` keeps after so many rounds, and whether the last one changed nothing.

    Each round keeps what no kept box before it overlaps; from the first box on, at least one more place a
    round is final, most often many. Once a round changes nothing, that is what greedy NMS keeps.
    """
    sides = corners[..., 2:] - corners[..., :2]
    area = sides[..., 0] * sides[..., 1]
    low = torch.maximum(corners[:, :, None, :2], corners[:, None, :, :2])
    shared = (torch.minimum(corners[:, :, None, 2:], corners[:, None, :, 2:]) - low).clamp(min=0).prod(-1)
    over = (shared / (area[:, :, None] + area[:, None] - shared) > threshold).triu(1)
    if labels is not None:
        over &= labels[:, :, None] == labels[:, None]
    kept = before = there
    for _ in range(min(rounds, there.shape[1])):
        before, kept = kept, there & ~(over & kept[:, :, None]).any(1)
    return kept, (kept == before).all()


def levels_of(boxes: Tensor, levels: Sequence[int], base_scale: float, offset: int) -> Tensor:
    """int64 [N]: floor(log2(sqrt(w·h) / base_scale + 1e-6)), clamped to the levels; boxes [N, >=4]."""
    width, height = sides(boxes, offset)
    scale = (width * height).clamp(min=0).sqrt()
    level = (scale / base_scale + 1e-6).log2().floor().to(torch.int64)
    return level.clamp(min(levels), max(levels))


def by_level(rois: Tensor, levels: Sequence[int], base_scale: float, offset: int) -> list[Tensor]:
    """For each level the indices of its rois [R, >=5] (image, x1, y1, x2, y2, ...), ascending.

    levels: ascending. One wait for the device, whatever their number.
    """
    target = levels_of(rois[:, 1:5], levels, base_scale, offset)
    return by_group(target, levels)


def by_group(groups: Tensor, names: Sequence[int]) -> list[Tensor]:
    """For each name the indices of the elements of groups int64 [N] that are it, ascending; one wait.

    names: ascending; all that groups holds.
    """
    counts = host_counts([groups == name for name in names])
    return list(torch.split(groups.sort(stable=True).indices, counts))


def host_counts(masks: Sequence[Tensor]) -> list[int]:
    """How many elements of each mask are true, as numbers of the host: one wait for the device for all masks."""
    counts: list[int] = torch.stack([mask.sum() for mask in masks]).tolist()
    return counts


def true_places(mask: Tensor, count: int) -> Tensor:
    """int64 [count]: where a mask [N] is true, ascending; count: what `host_counts` gave, so that nothing waits."""
    return torch.nonzero_static(mask, size=count).flatten()


def places_of(masks: Sequence[Tensor]) -> list[Tensor]:
    """Where each mask [N] is true, ascending, int64; one wait for the device for all masks."""
    return [true_places(mask, count) for mask, count in zip(masks, host_counts(masks), strict=True)]


def boxes_at(boxes: Tensor, order: Tensor) -> Tensor:
    """Of each image the boxes [B, K, 4] at places order [B, ...]: [B, ..., 4]."""
    places = order.flatten(1)[..., None].expand(-1, -1, 4)
    return boxes.gather(1, places).view(*order.shape, 4)


def inverse(order: Tensor) -> Tensor:
    """What puts rows that were taken in this order back."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back
