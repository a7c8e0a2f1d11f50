"""Transforms that move boxes: a box drawn as pixels stays on its pixels; sizes are computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcli.data.draws import Draws
from kdcli.data.transforms.boxes import (
    Crop,
    FixOutputResize,
    Flip,
    KeepArResize,
    KeepArResizeMax,
    StitchExpand,
    holds_one,
    in_window,
)


def draws(sample: int, epoch: int = 0) -> Draws:
    return Draws(5, epoch, np.array([sample], dtype=np.int64))


def drawn(height: int, width: int, boxes: list[list[int]]) -> tuple[Tensor, Tensor]:
    """A dark image on which box i lights channel i, and the boxes with classes 1, 2, ..."""
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    for channel, (left, top, right, bottom) in enumerate(boxes):
        image[:, channel, top:bottom, left:right] = 200
    rows = [[*map(float, box), float(number)] for number, box in enumerate(boxes, 1)]
    return image, torch.tensor(rows)


def lit(image: Tensor, label: float) -> list[float]:
    """Edges of what the box of a class has lit, by half of its light or more."""
    ys, xs = torch.nonzero(image[0, int(label) - 1] >= 100, as_tuple=True)
    return [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


BOXES = [[4, 6, 20, 16], [30, 10, 44, 30], [10, 34, 26, 46]]
MOVING: dict[str, Any] = {
    "flip": Flip(flip_p=1.0),
    "crop": Crop(crop_prob=0.7),
    "keep_ar_resize": KeepArResize(scales=[96]),
    "keep_ar_resize_max": KeepArResizeMax(max_size=128, padding_type="left_top"),
    "fix_output_resize": FixOutputResize(scales=[100, 150]),
}


@pytest.mark.parametrize("name", sorted(MOVING))
def test_a_box_moves_with_its_pixels(name: str) -> None:
    image, boxes = drawn(50, 64, BOXES)
    kept = 0
    for sample in range(12):
        new, (moved,), scale = MOVING[name].with_boxes(image, [boxes], draws(sample))
        slack = 0.0 if scale == (1.0, 1.0) else 0.75  # where pixels are interpolated, an edge lies within one
        for row in moved.tolist():
            assert lit(new, row[4]) == pytest.approx(row[:4], abs=slack), (name, sample)
            kept += 1
        assert new.shape[2] >= moved[:, 3].max() and new.shape[3] >= moved[:, 2].max()
    assert kept >= 12


def test_every_box_of_a_stitched_image_lies_on_its_pixels() -> None:
    image, boxes = drawn(50, 64, BOXES)
    sizes = set()
    for sample in range(20):
        new, (moved,), scale = StitchExpand(expand_prob=1.0).with_boxes(image, [boxes], draws(sample))
        assert scale == (1.0, 1.0) and len(moved)
        sizes.add(tuple(new.shape[2:]))
        assert 50 <= new.shape[2] <= 100 and 64 <= new.shape[3] <= 128
        uncovered = new[0].clone()
        for row in moved.tolist():
            left, top, right, bottom = map(int, row[:4])
            part = new[0, int(row[4]) - 1, top:bottom, left:right]
            assert part.numel() and (part == 200).all()
            uncovered[int(row[4]) - 1, top:bottom, left:right] = 0
        # What is lit without a box has its centre beyond the border: at most half a box is seen.
        for _, y, x in uncovered.nonzero().tolist():
            assert min(y, x, new.shape[2] - 1 - y, new.shape[3] - 1 - x) < 10
    assert len(sizes) > 10


def test_a_window_keeps_the_boxes_whose_centre_it_holds() -> None:
    boxes = torch.tensor([[2.0, 2, 6, 6, 1], [0, 0, 8, 4, 2], [8, 8, 14, 14, 3]])
    # The window from (4, 1), 8 wide and 8 high: centres (4, 4) on its edge, (4, 2) too, (11, 11) beyond.
    assert in_window(boxes, (4, 1, 8, 8)).tolist() == []
    # From (3, 1): the first box from -1 to 3 across is cut to 0 to 3, the second from -3 to 5 and -1 to 3.
    assert in_window(boxes, (3, 1, 8, 8)).tolist() == [[0, 1, 3, 5, 1], [0, 0, 5, 3, 2]]
    assert not holds_one(boxes, (3, 1, 8, 8)) and holds_one(boxes, (2, 2, 4, 4))
    assert not holds_one(torch.tensor([[1.0, 1, 1.5, 2]]), (0, 0, 8, 8))  # half a pixel


def test_sizes_are_united_perceptions() -> None:
    image, boxes = drawn(60, 100, BOXES)
    # The longer side 100 to 1333: times 13.33, and 60 becomes round(799.8) = 800.
    wide, (moved,), scale = KeepArResizeMax(max_size=1333).with_boxes(image, [boxes], draws(0))
    assert wide.shape[2:] == (800, 1333) and scale == (13.33, 13.33)
    assert moved[0].tolist() == pytest.approx([4 * 13.33, 6 * 13.33, 20 * 13.33, 16 * 13.33, 1])
    square = KeepArResizeMax(max_size=50, padding_type="left_top", padding_val=7, separate_wh=True)
    padded, _, scale = square.with_boxes(image, [boxes], draws(0))
    assert padded.shape[2:] == (50, 50) and (padded[..., 30:, :] == 7).all() and scale == (0.5, 0.5)
    # Boxes of 16 x 10, 14 x 20 and 16 x 12 pixels at a tenth: the first is not higher than 1.1.
    small = KeepArResizeMax(max_size=10, min_size=1.1).with_boxes(image, [boxes, boxes[:, :4]], draws(0))[1]
    assert small[0][:, 4].tolist() == [2, 3] and len(small[1]) == 3
    drawn_sizes = {KeepArResizeMax(random_size=[2, 4]).longer(share / 100) for share in range(100)}
    assert drawn_sizes == {64, 96, 128}
    fixed, (moved,), scale = FixOutputResize(scales=[30, 200]).with_boxes(image, [boxes], draws(0))
    assert fixed.shape[2:] == (30, 200) and scale == (0.5, 2.0)
    assert moved[0].tolist() == [8, 3, 40, 8, 1]


def test_a_crop_is_a_square_of_half_to_the_whole_shorter_side() -> None:
    image, boxes = drawn(50, 64, BOXES)
    sides = [Crop(crop_prob=0.2).with_boxes(image, [boxes], draws(n))[0].shape[2:] for n in range(60)]
    assert all(height == width and 25 <= height <= 50 for height, width in sides)
    assert 38 < sum(side == (50, 50) for side in sides) < 58
    whole, far = drawn(20, 60, [[0, 0, 58, 20]])  # no square holds it: padded
    made, (kept,), _ = Crop(means=[10, 20, 30]).with_boxes(whole, [far], draws(1))
    assert made.shape[2:] == (60, 60) and kept.equal(far)
    assert made[0, :, 40, 5].tolist() == [10, 20, 30] and made[..., :20, :].equal(whole)


@pytest.mark.parametrize("transform", [Crop(), StitchExpand(), KeepArResizeMax(random_size=[1, 9])])
def test_draws_are_the_samples_own(transform: Any) -> None:
    image, boxes = drawn(50, 64, BOXES)

    def result(sample: int, epoch: int) -> tuple[Any, ...]:
        new, (moved,), _ = transform.with_boxes(image, [boxes], draws(sample, epoch))
        return new.shape, moved.tolist()

    assert result(3, 1) == result(3, 1)
    assert len({str(result(sample, 0)) for sample in range(12)}) > 4
    assert len({str(result(3, epoch)) for epoch in range(12)}) > 4


def test_images_without_boxes() -> None:
    image, _ = drawn(50, 64, [])
    none = torch.zeros(0, 5)
    made, (kept,), _ = Crop().with_boxes(image, [none], draws(0))
    assert made.shape[2:] == (50, 50) and kept.shape == (0, 5)
    assert StitchExpand(expand_prob=1.0).with_boxes(image, [none], draws(0))[0] is image
    assert FixOutputResize(scales=[8, 9])(image.repeat(2, 1, 1, 1), draws(0)).shape == (2, 3, 8, 9)
    with pytest.raises(ValueError, match="several sizes"):
        KeepArResizeMax(random_size=[1, 9])(image.repeat(9, 1, 1, 1), Draws(5, 0, np.arange(9)))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="random_size"):
        KeepArResizeMax(random_size=[5, 3])
    with pytest.raises(ValueError, match="max_size"):
        KeepArResizeMax()
    with pytest.raises(ValueError, match="scales"):
        FixOutputResize(scales=[5])
