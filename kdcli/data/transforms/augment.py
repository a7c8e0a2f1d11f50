"""Augmentations that draw for each image alone: AutoAugment, two RandAugments, erased rectangles.

Each sample has a generator of its own, seeded by its draws, so that an image depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from kdcli.data.draws import Draws
from kdcli.data.transforms.pixels import as_float
from kdcli.spec.ranges import Count, CountOrNone, NonNegative, Positive, Range, Share, Side

Magnitude = Annotated[float, Range(at_least=0, at_most=10)]


class RandomErasing:
    """Fills random rectangles of an image with noise, in the values that the image has by then.

    With `probability`, min_count to max_count rectangles (max_count: as many as min_count): each of an area drawn
    from min_area to max_area of the image's, shared by all of them, and of an aspect ratio from min_aspect to
    max_aspect (1 / min_aspect), both uniform, the ratio in its logarithm. mode: `pixel` draws each value from a normal
    distribution, `rand` one for each channel, `const` is 0. num_splits and device change nothing, as in
    United-Perception.
    Source: "Random Erasing Data Augmentation", arXiv:1708.04896.
    """

    random = True

    def __init__(
        self,
        *,
        probability: Share = 0.5,
        min_area: Share = 0.02,
        max_area: Share = 1 / 3,
        min_aspect: Positive = 0.3,
        max_aspect: Positive | None = None,
        mode: Literal["pixel", "rand", "const"] = "pixel",
        min_count: Count = 1,
        max_count: Count | None = None,
        num_splits: CountOrNone = 0,
        device: str = "cpu",
    ) -> None:
        max_aspect, max_count = max_aspect or 1 / min_aspect, max_count or min_count
        for name, low, high in (
            ("area", min_area, max_area),
            ("aspect", min_aspect, max_aspect),
            ("count", min_count, max_count),
        ):
            if low > high:
                raise ValueError(f"`min_{name}` is {low:g}, more than `max_{name}`, {high:g}")
        self.probability, self.mode = probability, mode
        self.areas, self.counts = (min_area, max_area), (min_count, max_count)
        self.aspects = (math.log(min_aspect), math.log(max_aspect))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to float32 of the same shape."""
        erased = as_float(images).clone()
        for image, seed in zip(erased, draws.seeds(), strict=True):
            generator = Random(seed)
            if generator.random() <= self.probability:
                self._erase(image, generator, torch.Generator().manual_seed(seed))
        return erased

    def _erase(self, image: Tensor, generator: Random, noise: torch.Generator) -> None:
        channels, height, width = image.shape
        least, most = self.counts
        count = least if least == most else generator.randint(least, most)
        for _ in range(count):
            # A rectangle larger than the image is drawn anew, ten times at most.
            for _attempt in range(10):
                area = generator.uniform(*self.areas) * height * width / count
                aspect = math.exp(generator.uniform(*self.aspects))
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if h < height and w < width:
                    top, left = generator.randint(0, height - h), generator.randint(0, width - w)
                    shape = (channels, h, w) if self.mode == "pixel" else (channels, 1, 1)
                    fill = torch.zeros(shape) if self.mode == "const" else torch.randn(shape, generator=noise)
                    image[:, top : top + h, left : left + w] = fill
                    break


class PillowAugmentation:
    """A transform of single Pillow images that draws from a generator of Python's; subclasses have `augment`."""

    random = True

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 [n, 1 or 3, H, W] to the same shape; raises ValueError for floats."""
        if images.dtype != torch.uint8:
            raise ValueError("it takes bytes: it stands before `to_tensor` and `normalize`")
        made = []
        for image, seed in zip(images, draws.seeds(), strict=True):
            pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
            array = np.array(self.augment(Image.fromarray(pixels), Random(seed)))
            made.append(torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).permute(2, 0, 1))
        return torch.stack(made)

    def augment(self, image: Image.Image, generator: Random) -> Image.Image:
        """One image to one of the same size and mode."""
        raise NotImplementedError


Operation = Callable[[Image.Image, float, Random], Image.Image]


def _sign(generator: Random) -> float:
    return -1.0 if generator.random() > 0.5 else 1.0


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    array = np.clip(np.asarray(image) + addition, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(array), 128)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """The upper bits of each value; black where none is kept, which newer Pillows refuse."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _around_one(value: float, generator: Random) -> float:
    """A factor of 0.1..1.9 as the strength of a change: up to 0.9 more or less than 1."""
    return max(0.1, 1.0 + _sign(generator) * (value - 0.1) / 1.8 * 0.9)


ENHANCERS: Mapping[str, Any] = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}

_Ranged = tuple[Operation, float, float]


def _operations(increasing: bool) -> tuple[_Ranged, ...]:
    """RandAugment's operations, each with its values at magnitude 0 and 10.

    increasing: posterize, solarize and the four factors change an image more with a greater magnitude; else their
    value is the bits, the threshold or the factor itself.
    """

    def enhance(name: str) -> _Ranged:
        def factor(image: Image.Image, value: float, generator: Random) -> Image.Image:
            changed: Image.Image = ENHANCERS[name](image).enhance(
                _around_one(value, generator) if increasing else value
            )
            return changed

        return factor, 0.1, 1.9

    return (
        (lambda image, _, __: ImageOps.autocontrast(image), 0, 1),
        (lambda image, _, __: ImageOps.equalize(image), 0, 1),
        (lambda image, _, __: ImageOps.invert(image), 0, 1),
        (lambda image, value, g: image.rotate(_sign(g) * value), 0, 30),
        (lambda image, v, _: _posterize(image, 4 - int(v) if increasing else max(1, int(v))), 0, 4),
        (lambda image, v, _: ImageOps.solarize(image, 256 - v if increasing else v), 0, 256),
        (lambda image, value, _: _solarize_add(image, value), 0, 110),
        enhance("color"),
        enhance("contrast"),
        enhance("brightness"),
        enhance("sharpness"),
        (lambda image, value, g: _affine(image, 1, _sign(g) * value, 0, 0, 1, 0), 0, 0.3),
        (lambda image, value, g: _affine(image, 1, 0, 0, _sign(g) * value, 1, 0), 0, 0.3),
        (lambda image, value, g: _affine(image, 1, 0, _sign(g) * value, 0, 1, 0), 0, 100),
        (lambda image, value, g: _affine(image, 1, 0, 0, 0, 1, _sign(g) * value), 0, 100),
    )


class RandAugment(PillowAugmentation):
    """n operations of 15, drawn with replacement, each applied with probability 1/2 at a magnitude of about m.

    The magnitude is drawn anew for each from a normal distribution around m (magnitude_std) and cut off at 0 and 10.
    Posterize, solarize and the factors of colour, contrast, brightness and sharpness take it as it is: they change
    an image most at 0 (bits, threshold) or at both ends (factors 0.1..1.9).
    Source: "RandAugment: Practical automated data augmentation with a reduced search space", arXiv:1909.13719, with
    the operations of United-Perception's `torch_random_augmentation`.
    """

    increasing = False

    def __init__(self, *, n: Count, m: Magnitude, magnitude_std: NonNegative = 0.0) -> None:
        self.n, self.m, self.std = n, m, magnitude_std
        self.operations = _operations(self.increasing)

    def augment(self, image: Image.Image, generator: Random) -> Image.Image:
        """One image to one of the same size and mode."""
        for operation, low, high in generator.choices(self.operations, k=self.n):
            if generator.random() > 0.5:
                continue
            magnitude = max(0.0, min(generator.gauss(self.m, self.std), 10.0))
            image = operation(image, magnitude / 10 * (high - low) + low, generator)
        return image

    def __reduce__(self) -> Any:
        # Data workers may be started afresh, and functions of a function can't be sent to them.
        return _rand_augment, (type(self), self.n, self.m, self.std)


def _rand_augment(kind: type[RandAugment], n: int, m: float, std: float) -> RandAugment:
    return kind(n=n, m=m, magnitude_std=std)


class IncreasingRandAugment(RandAugment):
    """RandAugment whose every operation changes an image more with a greater magnitude.

    Source: as RandAugment, with the operations of United-Perception's `torch_random_augmentationIncre`.
    """

    increasing = True


IMAGENET_POLICY = """
posterize 0.4 8 rotate 0.6 9; solarize 0.6 5 autocontrast 0.6 5; equalize 0.8 8 equalize 0.6 3
posterize 0.6 7 posterize 0.6 6; equalize 0.4 7 solarize 0.2 4; equalize 0.4 4 rotate 0.8 8
solarize 0.6 3 equalize 0.6 7; posterize 0.8 5 equalize 1.0 2; rotate 0.2 3 solarize 0.6 8
equalize 0.6 8 posterize 0.4 6; rotate 0.8 8 color 0.4 0; rotate 0.4 9 equalize 0.6 2
equalize 0.0 7 equalize 0.8 8; invert 0.6 4 equalize 1.0 8; color 0.6 4 contrast 1.0 8
rotate 0.8 8 color 1.0 2; color 0.8 8 solarize 0.8 7; sharpness 0.4 7 invert 0.6 8
shear_x 0.6 5 equalize 1.0 9; color 0.4 0 equalize 0.6 3; equalize 0.4 7 solarize 0.2 4
solarize 0.6 5 autocontrast 0.6 5; invert 0.6 4 equalize 1.0 8; color 0.6 4 contrast 1.0 8
"""
"""Two operations a policy, each with its probability and its magnitude of 0..9."""


class AutoAugment(PillowAugmentation):
    """One of 24 policies that were found on ImageNet, of two operations each.

    size, scale, ratio and interpolation change nothing, as in United-Perception: it does not resize.
    Source: "AutoAugment: Learning Augmentation Policies from Data", arXiv:1805.09501, with the policies of
    United-Perception's `torch_auto_augmentation` (the last of the paper's 25 is not among them).
    """

    def __init__(
        self,
        *,
        size: Side | list[Side] | None = None,
        scale: list[Positive] | None = None,
        ratio: list[Positive] | None = None,
        interpolation: str | None = None,
    ) -> None:
        rows = [row.split() for row in IMAGENET_POLICY.replace("\n", ";").split(";") if row.strip()]
        self.policies = [[(row[at], float(row[at + 1]), int(row[at + 2])) for at in (0, 3)] for row in rows]

    def augment(self, image: Image.Image, generator: Random) -> Image.Image:
        """One image to one of the same size and mode."""
        for name, probability, magnitude in self.policies[generator.randint(0, len(self.policies) - 1)]:
            if generator.random() < probability:
                image = self._apply(image, name, magnitude / 9, generator)
        return image

    def _apply(self, image: Image.Image, name: str, share: float, generator: Random) -> Image.Image:
        """One operation at a share of its greatest magnitude."""
        if name in ENHANCERS:
            factor = 1 + 0.9 * share * generator.choice([-1, 1])
            enhanced: Image.Image = ENHANCERS[name](image).enhance(factor)
            return enhanced
        if name == "shear_x":
            shear = 0.3 * share * generator.choice([-1, 1])
            grey: Any = 128 if image.mode == "L" else (128, 128, 128)
            return image.transform(
                image.size,
                Image.Transform.AFFINE,
                (1, shear, 0, 0, 1, 0),
                Image.Resampling.BICUBIC,
                fillcolor=grey,
            )
        if name == "rotate":
            turned = image.convert("RGBA").rotate(30 * share)
            return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert(
                image.mode
            )
        if name == "posterize":
            return ImageOps.posterize(image, round(8 - 4 * share))
        if name == "solarize":
            return ImageOps.solarize(image, 256 * (1 - share))  # type: ignore[arg-type]
        plain: Callable[[Image.Image], Image.Image] = getattr(ImageOps, name)
        return plain(image)
