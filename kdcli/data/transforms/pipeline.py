"""A list of transforms, built from the spec and run in turn."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from kdcli.data import TRANSFORMS
from kdcli.data.draws import Draws
from kdcli.data.transforms.pixels import Normalize, ToTensor, as_float
from kdcli.data.transforms.torchvision_v2 import PREFIX, Foreign, build_foreign
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.plugins import constructed, is_own, lookup
from kdcli.spec.schema import Component


class Transform(Protocol):
    """Images [n, C, H, W] of one size to new images; each sample's result depends on it alone.

    random: whether `draws` is read. uint8 images are 0..255, float32 ones 0..1 or normalised. The input
    is never changed in place. A transform of one's own (`mine:Blur`) is one of these, or takes one image alone, uint8
    or float32 [C, H, W]: that is run image by image with the global generators seeded, as torchvision's are.
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
    if component.type.startswith(PREFIX) and not is_own(component.type):
        return build_foreign(component.type, component.kwargs, path)
    target = lookup(TRANSFORMS, component.type, path=(*path, "type"), code="KD503", what="transform")
    made = constructed(target, component.kwargs, component.type, path)
    return _own(made, component.type, path) if target.own else made


def _own(transform: Any, name: str, path: SpecPath) -> Any:
    """A transform of one's own: a Transform, or whatever takes one image alone, run as torchvision's are."""
    if not callable(transform):
        message = f"`{name}` gives a `{type(transform).__name__}`, which can't be called on images"
        raise SpecError.at((*path, "type"), "KD505", message, "name a class with `__call__(images, draws)`")
    called = getattr(transform, "forward", transform)  # an nn.Module's own call takes anything
    if "draws" not in inspect.signature(called).parameters:
        return Foreign(transform)
    if not hasattr(transform, "random"):
        message = f"`{name}` does not say whether it is random"
        help = "give the class `random = True`, or False where it never reads `draws`"
        raise SpecError.at((*path, "type"), "KD505", message, help)
    return transform
