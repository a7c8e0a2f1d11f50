"""Resampling of images, the same bits whatever else is in the batch.

Small uint8 images are resampled as two products with matrices of filter weights, each sample its own, so
that a batch of different crops is one call. The weights are multiples of 2**-14: products with bytes and
their sums are exact in float32, and no order of summation (batch size, threads, library) shows. Large
ones, where the products would cost more than they save, go image by image through torchvision. Which way an
image takes depends on its own size alone.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.draws import Ids
from kdcli.data.transforms.vision import functional, transforms

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

SMALL = 128
"""Up to this many pixels a side the matrices are used."""

PIECE = 64
"""So many images are resampled at once."""

_UNIT = 2.0**14


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
    tvf, mode = functional(), transforms().InterpolationMode(interpolation)
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
