"""Transforms that move boxes with the pixels.

Each is also a plain transform of images. Boxes are float32 [n, >=4], (x1, y1, x2, y2) as edges in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdcli.data.draws import Draws
from kdcli.data.transforms.geometry import resized
from kdcli.spec.ranges import Range, Share, Side

Ratio = Annotated[float, Range(at_least=1, at_most=2)]
Steps = Annotated[int, Range(at_least=1, at_most=4096)]
Byte = Annotated[float, Range(at_least=0, at_most=255)]


@runtime_checkable
class BoxTransform(Protocol):
    """A transform of one image [1, C, H, W] with its boxes."""

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """The new image, each set of boxes on it, and the scale (of height, of width)."""
        ...


class Flip:
    """Mirrors left to right with probability flip_p."""

    random = True

    def __init__(self, *, flip_p: Share = 0.5) -> None:
        if not 0 <= flip_p <= 1:
            raise ValueError(f"`flip_p` must lie in 0..1, got {flip_p}")
        self.p = flip_p
        self.training_only = flip_p > 0

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        flipped = torch.from_numpy(draws.uniform(1)[:, 0] < self.p)
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """Image and boxes mirrored together."""
        if draws.uniform(1)[0, 0] >= self.p:
            return image, list(boxes), (1.0, 1.0)
        width = image.shape[-1]
        moved = []
        for own in boxes:
            left, right = width - own[:, 2:3], width - own[:, 0:1]
            moved.append(torch.cat([left, own[:, 1:2], right, own[:, 3:]], dim=1))
        return image.flip(-1), moved, (1.0, 1.0)


class KeepArResize:
    """Resizes to a shorter side drawn from `scales`, the longer at most max_size, aspect ratio kept.

    A scale of 0 or less keeps the size. separate_wh: boxes scale by the sizes' own ratios, which whole
    pixels make a little different in height and width; else by the one wanted. Bilinear.
    """

    random = True

    def __init__(
        self,
        *,
        scales: list[Side],
        max_size: Side | None = None,
        separate_wh: bool = False,
        antialias: bool = False,
    ) -> None:
        if not scales:
            raise ValueError("`scales` must hold at least one number")
        if max_size is not None and max_size < 1:
            raise ValueError(f"`max_size` must be positive, got {max_size}")
        self.scales, self.max_size = list(scales), max_size
        self.separate_wh, self.antialias = separate_wh, antialias
        self.random = len(self.scales) > 1

    def target(self, height: int, width: int, share: float) -> tuple[int, int, float]:
        """New height and width, and the wanted scale; share in [0, 1) picks one of the scales."""
        scale = self.scales[int(share * len(self.scales))]
        if scale <= 0:
            return height, width, 1.0
        most = math.inf if self.max_size is None else self.max_size
        factor = min(scale / min(height, width), most / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor)), factor

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to one new size; images of several sizes are not one tensor."""
        shares = draws.uniform(1)[:, 0]
        sizes = {self.target(images.shape[2], images.shape[3], float(share))[:2] for share in shares}
        if len(sizes) > 1:
            raise ValueError("`keep_ar_resize` draws a size for each image; give one scale")
        return resized(images, *sizes.pop(), "bilinear", self.antialias)

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """Image and boxes resized together."""
        height, width = image.shape[2:]
        new_height, new_width, factor = self.target(height, width, float(draws.uniform(1)[0, 0]))
        scale = (new_height / height, new_width / width) if self.separate_wh else (factor, factor)
        made = resized(image, new_height, new_width, "bilinear", self.antialias)
        return made, scaled(boxes, scale), scale


class BoxByBox:
    """A transform whose images are made one by one, since each may come out in a size of its own."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to one new size; images of several sizes are not one tensor."""
        made = [
            self.with_boxes(images[row : row + 1], [], draws.at([row]))[0]  # type: ignore[attr-defined]
            for row in range(len(images))
        ]
        if len({image.shape for image in made}) > 1:
            raise ValueError(f"`{type(self).__name__}` gives images of several sizes: resize behind it")
        return torch.cat(made)


class KeepArResizeMax(BoxByBox):
    """Resizes to a longer side of max_size, or of a random multiple of scale_step; aspect ratio kept, bilinear.

    random_size: least and most of that multiple, drawn for each image. padding_type `left_top` pads right and below to
    a square with padding_val (0 to 255). Boxes that are not wider and higher than min_size pixels are left out.
    separate_wh: as in KeepArResize.
    """

    random = True

    def __init__(
        self,
        *,
        max_size: Side | None = None,
        separate_wh: bool = False,
        min_size: Annotated[float, Range(at_least=0, at_most=65536)] = 1,
        padding_type: Literal["left_top"] | None = None,
        padding_val: Byte = 0,
        random_size: list[Steps] = [],  # noqa: B006
        scale_step: Side = 32,
    ) -> None:
        if not random_size and max_size is None:
            raise ValueError("`max_size`, or `random_size` with `scale_step`, says how large images become")
        if random_size and (len(random_size) != 2 or random_size[0] > random_size[1]):
            raise ValueError(f"`random_size` is two ascending numbers, got {random_size}")
        self.max_size, self.steps, self.step = max_size, list(random_size), scale_step
        self.separate_wh, self.min_size = separate_wh, min_size
        self.padding, self.padding_value = padding_type, padding_val
        self.random = bool(random_size)

    def longer(self, share: float) -> int:
        """The longer side; share in [0, 1) picks one of the multiples."""
        if not self.steps:
            assert self.max_size is not None
            return self.max_size
        least, most = self.steps
        return (least + int(share * (most - least + 1))) * self.step

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """Image and boxes resized together; of the first boxes the small ones are left out."""
        height, width = image.shape[2:]
        longer = self.longer(float(draws.uniform(1)[0, 0]))
        factor = longer / max(height, width)
        new = max(1, round(height * factor)), max(1, round(width * factor))
        scale = (new[0] / height, new[1] / width) if self.separate_wh else (factor, factor)
        made = resized(image, *new, "bilinear", False)
        if self.padding is not None and new != (longer, longer):
            value = self.padding_value / (1 if image.dtype == torch.uint8 else 255)
            canvas = made.new_full((*made.shape[:2], longer, longer), value)
            canvas[..., : new[0], : new[1]] = made
            made = canvas
        moved = scaled(boxes, scale)
        if moved:
            sides = moved[0][:, 2:4] - moved[0][:, :2]
            moved[0] = moved[0][(sides > self.min_size).all(dim=1)]
        return made, moved, scale


class FixOutputResize:
    """Resizes to `scales`, [height, width], whatever the aspect ratio; bilinear.

    max_size and separate_wh are accepted for United-Perception's sake and change nothing there either.
    """

    random = False

    def __init__(
        self, *, scales: list[Side], max_size: Side | None = None, separate_wh: bool = False
    ) -> None:
        if len(scales) != 2:
            raise ValueError(f"`scales` is [height, width], got {scales}")
        self.size = (scales[0], scales[1])

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to [n, C, height, width]."""
        return resized(images, *self.size, "bilinear", False)

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """Image and boxes resized together."""
        scale = self.size[0] / image.shape[2], self.size[1] / image.shape[3]
        return self(image, draws), scaled(boxes, scale), scale


class Crop(BoxByBox):
    """Cuts a random square that holds at least one box whole; boxes whose centre lies in it stay, cut to it.

    Its side is the image's shorter one; with probability crop_prob a random half to whole of that. Where 100 tries hold
    no box, the image is padded right and below to a square with `means` (0 to 255, one for all channels or each).
    An image without boxes is cut anywhere. scale is accepted for United-Perception's sake.
    """

    random = True
    training_only = True
    tries = 100

    def __init__(
        self, *, means: Byte | list[Byte] = 127.5, scale: Side = 600, crop_prob: Share = 0.5
    ) -> None:
        self.means = [float(mean) for mean in (means if isinstance(means, list) else [means])]
        self.p = crop_prob

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """The window of the image, and the boxes in it."""
        height, width = image.shape[2:]
        short = min(height, width)
        for whether, size, x, y in draws.uniform(4 * self.tries).reshape(self.tries, 4).tolist():
            without = not boxes or not len(boxes[0])
            side = short if without or whether >= self.p else max(1, int((0.5 + 0.5 * size) * short))
            window = (int(x * max(1, width - side)), int(y * max(1, height - side)), side, side)
            if without or holds_one(boxes[0], window):
                left, top = window[:2]
                part = image[..., top : top + side, left : left + side].clone()
                return part, [in_window(own, window) for own in boxes], (1.0, 1.0)
        side, channels = max(height, width), image.shape[1]
        if len(self.means) not in (1, channels):
            raise ValueError(f"`means` of `crop` has {len(self.means)} channels and the image {channels}")
        fill = torch.tensor(self.means).expand(channels) / (1 if image.dtype == torch.uint8 else 255)
        canvas = fill.to(image.dtype).view(1, -1, 1, 1).repeat(1, 1, side, side)
        canvas[..., :height, :width] = image
        return canvas, list(boxes), (1.0, 1.0)


class StitchExpand(BoxByBox):
    """With probability expand_prob the image stands four times side by side, and a larger window is cut of that.

    The window is a random 1 to expand_ratios times the image, and holds at least one box whole; boxes whose centre lies
    in it stay, cut to it. After ten tries, or for an image without boxes, the image stays as it is.
    """

    random = True
    training_only = True
    tries = 10

    def __init__(self, *, expand_ratios: Ratio = 2.0, expand_prob: Share = 0.5) -> None:
        self.most, self.p = expand_ratios, expand_prob

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """The window of the four images, and the boxes in it."""
        height, width = image.shape[2:]
        numbers = draws.uniform(2 + 2 * self.tries)[0]
        ratio = 1 + (self.most - 1) * float(numbers[1])
        stays = image, list(boxes), (1.0, 1.0)
        if numbers[0] >= self.p or ratio - 1 <= 0.01 or not boxes or not len(boxes[0]):
            return stays
        shifts = [(x, y) for y in (0, height) for x in (0, width)]
        four = [torch.cat([moved_by(own, x, y) for x, y in shifts]) for own in boxes]
        w, h = int(ratio * width), int(ratio * height)
        for x, y in numbers[2:].reshape(self.tries, 2).tolist():
            window = (int(x * max(1, 2 * width - w)), int(y * max(1, 2 * height - h)), w, h)
            if holds_one(four[0], window):
                left, top = window[:2]
                part = image.repeat(1, 1, 2, 2)[..., top : top + h, left : left + w].clone()
                return part, [in_window(own, window) for own in four], (1.0, 1.0)
        return stays


Window = tuple[int, int, int, int]
"""left, top, width, height in pixels."""


def holds_one(boxes: Tensor, window: Window) -> bool:
    """Whether a box of at least one pixel lies whole in the window."""
    left, top, width, height = window
    x1, y1, x2, y2 = boxes[:, :4].unbind(1)
    whole = (x1 >= left) & (y1 >= top) & (x2 <= left + width) & (y2 <= top + height)
    return bool((whole & ((x2 - x1) * (y2 - y1) >= 1)).any())


def in_window(boxes: Tensor, window: Window) -> Tensor:
    """The boxes whose centre lies in the window, cut to it, in its own pixels."""
    left, top, width, height = window
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2 - torch.tensor([left, top])
    inside = ((centre > 0) & (centre < torch.tensor([width, height]))).all(dim=1)
    kept = moved_by(boxes[inside], -left, -top)
    most = torch.tensor([width, height, width, height], dtype=kept.dtype)
    return torch.cat([torch.minimum(kept[:, :4].clamp(min=0), most), kept[:, 4:]], dim=1)


def moved_by(boxes: Tensor, x: int, y: int) -> Tensor:
    """The boxes, so many pixels to the right and down."""
    return torch.cat([boxes[:, :4] + torch.tensor([x, y, x, y]), boxes[:, 4:]], dim=1)


def scaled(boxes: Sequence[Tensor], scale: tuple[float, float]) -> list[Tensor]:
    """Each set of boxes times the scale (of height, of width)."""
    ratio = torch.tensor([scale[1], scale[0], scale[1], scale[0]])
    return [torch.cat([own[:, :4] * ratio, own[:, 4:]], dim=1) for own in boxes]
