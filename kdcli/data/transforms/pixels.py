"""Transforms of pixel values: to floats, normalised, cut out, colour jitter, grey, RGB."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.draws import Draws, Floats
from kdcli.spec.ranges import PixelValue, Range, Share, Side

Spread = Annotated[float, Range(more_than=0, at_most=1000000)]
Factor = Annotated[float, Range(at_least=0, at_most=100)]
HueShift = Annotated[float, Range(at_least=0, at_most=0.5)]
HueChange = Annotated[float, Range(at_least=-0.5, at_most=0.5)]


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1; floats stay."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


class ToTensor:
    """uint8 0..255 to float32 0..1."""

    random = False

    def __init__(self) -> None:
        pass

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to float32 of the same shape."""
        return as_float(images)


class CustomToTensor:
    """uint8 0..255 to float32 of the same values; norm_image: divided by 255.

    What `normalize` behind it subtracts is then on the 0..255 scale.
    """

    random = False

    def __init__(self, *, norm_image: bool = False) -> None:
        self.norm_image = norm_image

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to float32 of the same shape."""
        return as_float(images) if self.norm_image else images.to(torch.float32)


class Normalize:
    """(image - mean) / std per channel, on the 0..1 scale."""

    random = False

    def __init__(self, *, mean: list[PixelValue], std: list[Spread]) -> None:
        if len(mean) != len(std):
            raise ValueError(f"`mean` has {len(mean)} channels and `std` {len(std)}")
        if any(s <= 0 for s in std):
            raise ValueError(f"`std` must be positive, got {std}")
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to float32 of the same shape."""
        if images.shape[1] != len(self.mean) and len(self.mean) != 1:
            raise ValueError(f"`normalize` has {len(self.mean)} channels and the image {images.shape[1]}")
        floats = as_float(images)
        # What `as_float` has made of bytes is nobody else's.
        centred = floats.sub(self.mean) if floats is images else floats.sub_(self.mean)
        return centred.div_(self.std)


class Cutout:
    """Sets a square of `size` pixels around a uniform centre to `fill`; it may hang over the border.

    Source: "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.
    """

    random = True

    def __init__(self, *, size: Side, p: Share = 1.0, fill: PixelValue = 0.0) -> None:
        if size < 1:
            raise ValueError(f"`size` must be positive, got {size}")
        self.size, self.p, self.fill = size, p, fill

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        height, width = images.shape[2:]
        u = draws.uniform(3)
        corner = np.floor(u[:, :2] * (height, width)).astype(int) - self.size // 2
        cut = images.numpy().copy()
        for row in np.flatnonzero(u[:, 2] < self.p):
            top, left = corner[row]
            bottom, right = top + self.size, left + self.size
            cut[row, :, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = self.fill
        return torch.from_numpy(cut)


class ColorJitter:
    """Changes brightness, contrast, saturation and hue by uniform factors, in a random order.

    A number b stands for [max(0, 1-b), 1+b], for hue for [-b, b]; a pair is the range itself.
    """

    random = True

    def __init__(
        self,
        *,
        brightness: Factor | list[Factor] = 0.0,
        contrast: Factor | list[Factor] = 0.0,
        saturation: Factor | list[Factor] = 0.0,
        hue: HueShift | list[HueChange] = 0.0,
    ) -> None:
        self.ranges = [
            _range("brightness", brightness, 1.0),
            _range("contrast", contrast, 1.0),
            _range("saturation", saturation, 1.0),
            _range("hue", hue, 0.0),
        ]
        if not -0.5 <= self.ranges[3][0] <= self.ranges[3][1] <= 0.5:
            raise ValueError(f"`hue` must lie in -0.5..0.5, got {hue}")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        return self.adjusted(images, draws.uniform(8), None)

    def adjusted(self, images: Tensor, u: Floats, chosen: NDArray[np.bool_] | None) -> Tensor:
        """[n, C, H, W] to the same shape. u [n, 8]: four factors and an order. chosen [n, 4]: which are changed."""
        tvf = functional()
        adjust: tuple[Callable[[Tensor, float], Tensor], ...] = (
            tvf.adjust_brightness,
            tvf.adjust_contrast,
            tvf.adjust_saturation,
            tvf.adjust_hue,
        )
        low, high = np.array(self.ranges).T
        factors, orders = low + (high - low) * u[:, :4], np.argsort(u[:, 4:], axis=1, kind="stable")
        jittered = []
        # Contiguous, since a mean depends on the order in memory in its last bit.
        for row, (image, factor, order) in enumerate(zip(images.contiguous(), factors, orders, strict=True)):
            for step in order:
                if chosen is not None and not chosen[row, step]:
                    continue
                if low[step] != high[step] or low[step] != (0.0 if step == 3 else 1.0):
                    image = adjust[step](image, float(factor[step]))
            jittered.append(image)
        return torch.stack(jittered)


Strength = Annotated[float, Range(at_least=0, at_most=1000000)]
Shift = Annotated[float, Range(at_least=-1000000, at_most=1000000)]


class DetectionColorJitter:
    """Changes brightness, contrast, saturation and hue, each with probability `prob`, in a random order.

    prob is 0 by default, as in United-Perception: then nothing is changed, and no other argument matters. A number b
    stands for [max(0, 1-b), 1+b], for hue for [-b, b]; a pair is the range itself.
    """

    random = True

    def __init__(
        self,
        *,
        brightness: Strength | list[Strength] = 0.0,
        contrast: Strength | list[Strength] = 0.0,
        saturation: Strength | list[Strength] = 0.0,
        hue: Shift | list[Shift] = 0.0,
        brightness_delta: Strength | list[Shift] = 0.0,
        hue_delta: Strength | list[Shift] = 0.0,
        channel_shuffle: bool = False,
        prob: Share = 0.0,
    ) -> None:
        self.p = prob
        self.random = prob > 0
        self.idle = (
            None
            if prob
            else ("`color_jitter` changes nothing: its `prob` is 0", "write `prob: 0.5`, or delete it")
        )
        if not prob:
            return
        if brightness_delta or hue_delta or channel_shuffle:
            named = (
                "brightness_delta" if brightness_delta else "hue_delta" if hue_delta else "channel_shuffle"
            )
            raise ValueError(f"`{named}` of `color_jitter` fails in United-Perception, and is not done here")
        self.jitter = ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        if not self.p:
            return images
        u = draws.uniform(12)
        return self.jitter.adjusted(images, u[:, :8], u[:, 8:] < self.p)


def _range(name: str, value: float | list[float], centre: float) -> tuple[float, float]:
    if isinstance(value, (int, float)):
        if value < 0:
            raise ValueError(f"`{name}` must not be negative, got {value}")
        return (max(0.0, centre - value), centre + value) if centre else (-float(value), float(value))
    if len(value) != 2 or value[0] > value[1] or (centre and value[0] < 0):
        raise ValueError(f"`{name}` must be a number or two ascending ones, got {value}")
    return float(value[0]), float(value[1])


class Grayscale:
    """The luma of an RGB image, on one or three channels."""

    random = False

    def __init__(self, *, num_output_channels: Literal[1, 3] = 1) -> None:
        if num_output_channels not in (1, 3):
            raise ValueError(f"`num_output_channels` must be 1 or 3, got {num_output_channels}")
        self.channels = num_output_channels

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, 1 or 3, H, W] to [n, num_output_channels, H, W]."""
        grey: Tensor = functional().rgb_to_grayscale(images, self.channels)
        return grey


class ToRgb:
    """A grey image on three channels; an RGB image stays."""

    random = False

    def __init__(self) -> None:
        pass

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, 1 or 3, H, W] to [n, 3, H, W]."""
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@cache
def functional() -> Any:
    """The functions of torchvision.transforms.v2, imported on first use: that takes as long as torch itself."""
    return import_module("torchvision.transforms.v2.functional")


@cache
def torchvision_transforms() -> Any:
    """The classes of torchvision.transforms.v2, imported on first use."""
    return import_module("torchvision.transforms.v2")
