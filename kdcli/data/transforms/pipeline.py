"""A list of transforms, built from the spec and run in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from kdcli.data import TRANSFORMS
from kdcli.data.draws import Draws
from kdcli.data.transforms.pixels import Normalize, ToTensor, as_float
from kdcli.data.transforms.torchvision_v2 import PREFIX, build_foreign
from kdcli.errors import SpecError, SpecPath, did_you_mean
from kdcli.spec.schema import Component


class Transform(Protocol):
    """Images [n, C, H, W] of one size to new images; each sample's result depends on it alone.

    random: whether `draws` is read. uint8 images are 0..255, float32 ones 0..1 or normalised. The input
    is never changed in place.
    """

    random: bool

    def __call__(self, images: Tensor, draws: Draws) -> Tensor: ...


class Pipeline:
    """Transforms in order; what comes out is float32, by an implied `to_tensor` at the end.

    `start` and `stop` pick a part of the list: the head that draws nothing may be run once and kept.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, images: Tensor, draws: Draws, *, start: int = 0) -> Tensor:
        """uint8 [n, C, H, W] to float32 [n, C', H', W']."""
        for number in range(start, len(self.transforms)):
            images = self.transforms[number](images, draws.of(number))
        return as_float(images).contiguous()

    def head(self) -> int:
        """How many transforms at the start draw nothing and keep uint8."""
        for number, transform in enumerate(self.transforms):
            if transform.random or isinstance(transform, (Normalize, ToTensor)):
                return number
        return len(self.transforms)

    def run_head(self, images: Tensor, draws: Draws) -> Tensor:
        """Only the transforms of the head."""
        for transform in self.transforms[: self.head()]:
            images = transform(images, draws)
        return images


def build_pipeline(components: Sequence[Component], path: SpecPath) -> Pipeline:
    """Transforms by name; path is that of the list. Raises SpecError at the transform."""
    return Pipeline([build_transform(part, (*path, i)) for i, part in enumerate(components)])


def build_transform(component: Component, path: SpecPath) -> Any:
    """One transform by name."""
    if component.type.startswith(PREFIX):
        return build_foreign(component.type, component.kwargs, path)
    target = TRANSFORMS.get(component.type)
    if target is None:
        raise SpecError.at(
            (*path, "type"),
            "KD503",
            f"there is no transform `{component.type}`",
            did_you_mean(component.type, sorted(TRANSFORMS)),
        )
    try:
        return target.load()(**{**target.preset, **component.kwargs})
    except (TypeError, ValueError) as reason:
        message = re.sub(r"^[\w.<>]+\(\) ", "", str(reason))
        raise SpecError.at(path, "KD505", f"`{component.type}`: {message}") from reason
