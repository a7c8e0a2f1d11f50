"""Transforms that move pixels: crop, pad, flip, resize.

Resampling gives the same bits whatever else is in the batch. Small uint8 images are resampled as two products with
matrices of filter weights, each sample its own, so that a batch of different crops is one call. The weights are
multiples of 2**-14: products with bytes and their sums are exact in float32, and no order of summation (batch size,
threads, library) shows. Large ones, where the products would cost more than they save, go image by image through
torchvision. Which way an image takes depends on its own size alone.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.draws import Draws, Ids
from kdcli.data.facts import shorter_side
from kdcli.data.jpeg import reduction_for
from kdcli.data.transforms.pixels import functional, torchvision_transforms
from kdcli.spec.ranges import Border, PixelValue, Portion, Positive, Share, Side

PaddingMode = Literal["constant", "edge", "reflect", "symmetric"]


def pair(size: int | list[int]) -> tuple[int, int]:
    """(height, width) of `size`, where one number is a square."""
    values = [size] if isinstance(size, int) else list(size)
    if len(values) not in (1, 2) or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"`size` must be one or two positive integers, got {size}")
    return values[0], values[-1]


def windows(images: Tensor, top: Ids, left: Ids, height: int, width: int) -> Tensor:
    """A window of each image [n, C, H, W] at its own corner: [n, C, height, width]."""
    if len(images) == 1:
        i, j = int(top[0]), int(left[0])
        return images[:, :, i : i + height, j : j + width]
    # numpy copies whole windows, ten times as fast as a gather of single pixels.
    every = np.lib.stride_tricks.sliding_window_view(images.numpy(), (height, width), axis=(2, 3))
    return torch.from_numpy(every[np.arange(len(images)), :, top, left])


class Pad:
    """Adds a border: padding is one number, [x, y] or [left, top, right, bottom]; fill in 0..255."""

    random = False

    def __init__(
        self,
        *,
        padding: Border | list[Border],
        fill: PixelValue | list[PixelValue] = 0,
        padding_mode: PaddingMode = "constant",
    ) -> None:
        self.padding, self.fill, self.mode = padding, fill, padding_mode

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the padded size."""
        padded: Tensor = functional().pad(images, self.padding, self.fill, self.mode)
        return padded


class RandomCrop:
    """Pads, then cuts a window of `size` at a uniform place.

    padding as in torch_pad; with pad_if_needed an image that is too small is padded on both sides.
    """

    random = True
    one_size = True

    def __init__(
        self,
        *,
        size: Side | list[Side],
        padding: Border | list[Border] = 0,
        fill: PixelValue | list[PixelValue] = 0,
        padding_mode: PaddingMode = "constant",
        pad_if_needed: bool = False,
    ) -> None:
        self.height, self.width = pair(size)
        self.padding, self.fill, self.mode = padding, fill, padding_mode
        self.pad_if_needed = pad_if_needed

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to [n, C, height, width]."""
        if self.padding:
            images = functional().pad(images, self.padding, self.fill, self.mode)
        if self.pad_if_needed:
            y, x = (
                max(0, want - have)
                for want, have in zip((self.height, self.width), images.shape[2:], strict=True)
            )
            if x or y:
                images = functional().pad(images, [x, y], self.fill, self.mode)
        rows, columns = images.shape[2] - self.height + 1, images.shape[3] - self.width + 1
        if rows < 1 or columns < 1:
            raise ValueError(
                f"`torch_random_crop` wants {self.height}x{self.width} and the image is "
                f"{images.shape[2]}x{images.shape[3]} after padding"
            )
        corner = (draws.uniform(2) * (rows, columns)).astype(np.int64)
        return windows(images, corner[:, 0], corner[:, 1], self.height, self.width)


class RandomHorizontalFlip:
    """Mirrors an image left to right with probability p."""

    random = True

    def __init__(self, *, p: Share = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must lie in 0..1, got {p}")
        self.p = p

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        flipped = draws.uniform(1)[:, 0] < self.p
        if len(images) == 1:
            return images.flip(-1) if flipped[0] else images
        mirrored = images.numpy().copy()
        mirrored[flipped] = mirrored[flipped, :, :, ::-1]
        return torch.from_numpy(mirrored)


class CenterCrop:
    """Cuts the central window of `size`; an image that is too small is padded with 0."""

    random = False
    one_size = True

    def __init__(self, *, size: Side | list[Side]) -> None:
        self.size = pair(size)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to [n, C, height, width]."""
        cropped: Tensor = functional().center_crop(images, list(self.size))
        return cropped


class Resize:
    """Resamples to `size`: [height, width], or one number for the shorter side, aspect ratio kept.

    max_size bounds the longer side where `size` is one number.
    """

    random = False

    def __init__(
        self,
        *,
        size: Side | list[Side],
        interpolation: Interpolation = "bilinear",
        max_size: Side | None = None,
        antialias: bool = True,
    ) -> None:
        pair(size)
        self.size = [size] if isinstance(size, int) else list(size)
        if max_size is not None and (len(self.size) != 1 or max_size <= self.size[0]):
            raise ValueError("`max_size` must be greater than `size`, and `size` one number")
        self.interpolation, self.max_size, self.antialias = interpolation, max_size, antialias
        self.one_size = len(self.size) == 2

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The output size for an input size."""
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        return shorter_side(height, width, self.size[0], self.max_size)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to [n, C, *target(H, W)]."""
        height, width = self.target(*images.shape[2:])
        return resized(images, height, width, self.interpolation, self.antialias)

    def reduction(self, height: int, width: int, draws: Draws) -> int:
        """By how much an image of this size may be reduced before and still be made smaller here."""
        if not smooth(self.interpolation, self.antialias):
            return 1
        return reduction_for((height, width), self.target(height, width))

    def of_reduced(self, images: Tensor, whole: tuple[int, int], by: int, draws: Draws) -> Tensor:
        """Resize reduced images to the size that the whole ones, of the size `whole`, would get."""
        return resized(images, *self.target(*whole), self.interpolation, self.antialias)


class RandomResizedCrop:
    """Cuts a random share of the area in a random aspect ratio (width/height), resampled to `size`.

    Ten tries, each uniform in area and log-uniform in ratio; the first that fits is taken, else the
    largest central crop within the ratios.
    Source: "Going Deeper with Convolutions", arXiv:1409.4842.
    """

    random = True
    one_size = True
    tries = 10

    def __init__(
        self,
        *,
        size: Side | list[Side],
        scale: list[Portion] = [0.08, 1.0],  # noqa: B006
        ratio: list[Positive] = [3 / 4, 4 / 3],  # noqa: B006
        interpolation: Interpolation = "bilinear",
        antialias: bool = True,
    ) -> None:
        for name, bounds in (("scale", scale), ("ratio", ratio)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"`{name}` must be two ascending positive numbers, got {bounds}")
        self.size, self.scale, self.ratio = pair(size), tuple(scale), tuple(ratio)
        self.interpolation, self.antialias = interpolation, antialias

    def boxes(self, height: int, width: int, draws: Draws) -> Ids:
        """int64 [n, 4]: top, left, height, width of each sample's crop."""
        u = draws.uniform(2 * self.tries + 2)
        low, high = self.scale
        area = height * width * (low + (high - low) * u[:, : self.tries])
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(log_low + (log_high - log_low) * u[:, self.tries : -2])
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.argmax(axis=1)[:, None]
        h, w = (np.take_along_axis(side, first, axis=1)[:, 0] for side in (h, w))
        corner = u[:, -2:] * np.stack([height - h + 1, width - w + 1], axis=1)
        boxes = np.column_stack([corner.astype(np.int64), h, w])
        boxes[~fits.any(axis=1)] = self._central(height, width)
        return boxes

    def _central(self, height: int, width: int) -> tuple[int, int, int, int]:
        h, w = height, width
        if width / height < self.ratio[0]:
            h = min(height, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = min(width, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to [n, C, *size]."""
        boxes = self.boxes(images.shape[2], images.shape[3], draws)
        return resized_crops(images, boxes, *self.size, self.interpolation, self.antialias)

    def reduction(self, height: int, width: int, draws: Draws) -> int:
        """By how much an image of this size may be reduced before and its crop still be made smaller here."""
        if not smooth(self.interpolation, self.antialias):
            return 1
        box = self.boxes(height, width, draws)[0]
        return reduction_for((int(box[2]), int(box[3])), self.size)

    def of_reduced(self, images: Tensor, whole: tuple[int, int], by: int, draws: Draws) -> Tensor:
        """The crop of images of the size `whole` that were reduced, its sides rounded to their pixels."""
        corners, extents = np.split(self.boxes(*whole, draws), 2, axis=1)
        ends = np.minimum((corners + extents + by // 2) // by, images.shape[2:])
        corners = corners // by
        boxes = np.concatenate([corners, ends - corners], axis=1)
        return resized_crops(images, boxes, *self.size, self.interpolation, self.antialias)


Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

SMALL = 128
"""Up to this many pixels a side the matrices are used."""

PIECE = 64
"""So many images are resampled at once."""

_UNIT = 2.0**14


def smooth(interpolation: Interpolation, antialias: bool) -> bool:
    """Whether all pixels count where an image is made smaller, so that those of a reduced one may stand for them."""
    return antialias and interpolation in ("bilinear", "bicubic")


def resized(images: Tensor, height: int, width: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    """Whole images [n, C, H, W] to [n, C, height, width]."""
    if images.shape[2:] == (height, width):
        return images
    box = np.array([[0, 0, images.shape[2], images.shape[3]]], dtype=np.int64)
    return resized_crops(images, np.repeat(box, len(images), axis=0), height, width, interpolation, antialias)


def resized_crops(
    images: Tensor, boxes: Ids, height: int, width: int, interpolation: Interpolation, antialias: bool
) -> Tensor:
    """Each image's box (top, left, height, width) [n, 4] resampled to [n, C, height, width]."""
    small = max(height, width, *images.shape[2:]) <= SMALL and images.dtype == torch.uint8
    if small and antialias and interpolation in ("bilinear", "bicubic"):
        # In pieces that the caches hold.
        pieces = [
            _products(images[i : i + PIECE], boxes[i : i + PIECE], height, width, interpolation)
            for i in range(0, len(images), PIECE)
        ]
        return torch.cat(pieces)
    tvf, mode = functional(), torchvision_transforms().InterpolationMode(interpolation)
    return torch.stack(
        [
            tvf.resized_crop(image, *(int(v) for v in box), [height, width], mode, antialias)
            for image, box in zip(images, boxes, strict=True)
        ]
    )


def _products(images: Tensor, boxes: Ids, height: int, width: int, interpolation: str) -> Tensor:
    n, channels, rows, columns = images.shape
    vertical = filter_weights(boxes[:, 0], boxes[:, 2], rows, height, interpolation)
    horizontal = filter_weights(boxes[:, 1], boxes[:, 3], columns, width, interpolation)
    across = torch.bmm(images.reshape(n, channels * rows, columns).float(), horizontal.transpose(1, 2))
    across = _bytes(across).view(n, channels, rows, width)
    return _bytes(torch.matmul(vertical[:, None], across)).to(torch.uint8)


def _bytes(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def filter_weights(start: Ids, extent: Ids, size: int, out_size: int, interpolation: str) -> Tensor:
    """float32 [n, out_size, size]: what each output pixel takes of each input pixel; rows sum to 1.

    start, extent [n]: the part of the line that is seen; nothing outside of it is read.
    """
    table = _filter_table(size, out_size, interpolation)
    shifted = np.lib.stride_tricks.sliding_window_view(table, size, axis=2)
    return torch.from_numpy(shifted[extent - 1, :, size - start])


@cache
def _filter_table(size: int, out_size: int, interpolation: str) -> NDArray[np.float32]:
    """float32 [size, out_size, 2 * size]: the weights of each extent 1..size, from column `size` on.

    The filter is widened by the scale when shrinking, as Pillow does.
    """
    extent = np.arange(1, size + 1)[:, None, None]
    scale = extent / out_size
    centre = (np.arange(out_size)[None, :, None] + 0.5) * scale
    pixel = np.arange(size)[None, None, :]
    distance = np.abs((pixel + 0.5 - centre) / np.maximum(scale, 1.0))
    kernel = np.clip(1.0 - distance, 0.0, None) if interpolation == "bilinear" else _cubic(distance)
    weights = _exact(np.where(pixel < extent, kernel, 0.0))
    return np.concatenate([np.zeros_like(weights), weights], axis=2)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5 at distance x."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _exact(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows scaled to sum 1 and rounded to multiples of 2**-14, the rest going to the largest."""
    units = np.rint(weights / weights.sum(axis=2, keepdims=True) * _UNIT)
    rest = _UNIT - units.sum(axis=2, keepdims=True)
    largest = units.argmax(axis=2)[:, :, None]
    np.put_along_axis(units, largest, np.take_along_axis(units, largest, 2) + rest, 2)
    exact: NDArray[np.float32] = (units / _UNIT).astype(np.float32)
    return exact
