"""A list of transforms, built from the spec (kdcli's, torchvision's, one's own) and run in turn."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdcli.data import TRANSFORMS
from kdcli.data.draws import Draws
from kdcli.data.transforms.pixels import (
    CustomToTensor,
    Normalize,
    ToTensor,
    as_float,
    torchvision_transforms,
)
from kdcli.errors import SpecError, SpecPath, did_you_mean
from kdcli.spec.plugins import constructed, is_own, lookup
from kdcli.spec.schema import Component


class Transform(Protocol):
    """Images [n, C, H, W] of one size to new images; each sample's result depends on it alone.

    random: whether `draws` is read. uint8 images are 0..255, float32 ones 0..1 or normalised. The input
    is never changed in place. one_size: whether images of any size come out in one; False where it is not said. A
    transform of one's own (`mine:Blur`) is one of these, or takes one image alone, uint8
    or float32 [C, H, W]: that is run image by image with the global generators seeded, as torchvision's are.
    """

    random: bool

    def __call__(self, images: Tensor, draws: Draws) -> Tensor: ...


class Pipeline:
    """Transforms in order; what comes out is float32, by an implied `to_tensor` at the end.

    `start` and `stop` pick a part of the list: the head that draws nothing may be run once and kept.
    as_bytes: images stay uint8 where nothing but pixel-wise transforms is left (`tail`), which `Normalizing` then does.
    """

    def __init__(self, transforms: Sequence[Transform], *, as_bytes: bool = False) -> None:
        self.transforms = tuple(transforms)
        self.as_bytes = as_bytes

    def __call__(self, images: Tensor, draws: Draws, *, start: int = 0) -> Tensor:
        """uint8 [n, C, H, W] to float32 [n, C', H', W']."""
        tail = self.tail()
        images = self.part(images, draws, start, max(start, tail))
        if self.as_bytes and start <= tail and images.dtype == torch.uint8:
            return images.contiguous()
        return as_float(self.part(images, draws, max(start, tail), len(self.transforms))).contiguous()

    def part(self, images: Tensor, draws: Draws, start: int, stop: int) -> Tensor:
        """What the transforms from `start` to before `stop` make of images."""
        for number in range(start, stop):
            images = self.transforms[number](images, draws.of(number))
        return images

    def alone(self) -> int:
        """How many transforms at the start it takes until images are of one size; all, where none makes them so."""
        fixed = (n + 1 for n, one in enumerate(self.transforms) if getattr(one, "one_size", False))
        return next(fixed, self.tail())

    def tail(self) -> int:
        """From which transform on each value is made of one value of the same place and channel, without draws."""
        number = len(self.transforms)
        while number and isinstance(self.transforms[number - 1], (Normalize, ToTensor, CustomToTensor)):
            number -= 1
        return number

    def run_tail(self, images: Tensor) -> Tensor:
        """The transforms of the tail on uint8 images [n, C, H, W]; float32."""
        nothing = Draws(0, 0, np.zeros(1, dtype=np.int64))
        return as_float(self.part(images, nothing, self.tail(), len(self.transforms)))

    def head(self) -> int:
        """How many transforms at the start draw nothing and keep uint8."""
        for number, transform in enumerate(self.transforms):
            if transform.random or isinstance(transform, (Normalize, ToTensor, CustomToTensor)):
                return number
        return len(self.transforms)

    def run_head(self, images: Tensor, draws: Draws) -> Tensor:
        """Only the transforms of the head."""
        return self.part(images, draws, 0, self.head())


def build_pipeline(components: Sequence[Component], path: SpecPath, *, as_bytes: bool = False) -> Pipeline:
    """Transforms by name; path is that of the list. as_bytes: see Pipeline. Raises SpecError at the transform."""
    made = [build_transform(part, (*path, i)) for i, part in enumerate(components)]
    return Pipeline(made, as_bytes=as_bytes)


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


PREFIX = "torchvision."

REFUSED: Mapping[str, str] = {
    "Compose": "the transformer is a list already",
    "CutMix": "mixing is the dataloader's: `batch_fn: {type: batch_cutmix}`",
    "FiveCrop": "it makes several images of one",
    "Lambda": "it takes code",
    "LinearTransformation": "it takes a matrix",
    "MixUp": "mixing is the dataloader's: `batch_fn: {type: batch_mixup}`",
    "RandomApply": "it takes other transforms",
    "RandomChoice": "it takes other transforms",
    "RandomOrder": "it takes other transforms",
    "TenCrop": "it makes several images of one",
    "ToPILImage": "images stay tensors here",
    "ToTensor": "write `to_tensor`",
}


def torchvision_names() -> list[str]:
    """Every `torchvision.<Name>` that may stand in a transformer list."""
    v2, found = torchvision_transforms(), []
    for name in dir(v2):
        kind = getattr(v2, name)
        if inspect.isclass(kind) and issubclass(kind, v2.Transform) and kind is not v2.Transform:
            if name not in REFUSED:
                found.append(PREFIX + name)
    return found


class Foreign:
    """A torchvision v2 transform, applied sample by sample.

    torch's, numpy's and Python's global generators are seeded for each sample and put back afterwards.
    """

    random = True

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to what the transform makes of it."""
        results = []
        with generators_kept():
            for image, seed in zip(images.contiguous(), draws.seeds(), strict=True):
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed & 0xFFFFFFFF)
                random.seed(seed)
                results.append(self.transform(image))
        return torch.stack([torch.as_tensor(result) for result in results])


@contextmanager
def generators_kept() -> Iterator[None]:
    """The state of the global CPU generators, put back on leaving."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def build_foreign(type: str, kwargs: Mapping[str, Any], path: SpecPath) -> Foreign:
    """`torchvision.<Name>` with its arguments checked against the class's own signature."""
    name = type.removeprefix(PREFIX)
    if name in REFUSED:
        raise SpecError.at((*path, "type"), "KD503", f"`{type}` can't be used here: {REFUSED[name]}")
    if type not in torchvision_names():
        raise SpecError.at(
            (*path, "type"),
            "KD503",
            f"torchvision has no transform `{name}`",
            did_you_mean(type, torchvision_names()),
        )
    made: Any = getattr(torchvision_transforms(), name)
    parameters = inspect.signature(made.__init__).parameters
    known = [p for p in parameters if p not in ("self", "inplace")]
    for key in kwargs:
        if key not in known:
            raise SpecError.at(
                (*path, "kwargs", key),
                "KD504",
                f"`{type}` has no argument `{key}`",
                did_you_mean(key, known),
                on_key=True,
            )
    try:
        return Foreign(made(**{key: _torchvision_value(key, value) for key, value in kwargs.items()}))
    except (TypeError, ValueError, AttributeError, KeyError) as reason:
        raise SpecError.at(path, "KD505", f"`{type}` can't be built: {reason}") from reason


def _torchvision_value(key: str, value: Any) -> Any:
    """A YAML scalar as the object that torchvision expects."""
    if key == "interpolation" and isinstance(value, str):
        return torchvision_transforms().InterpolationMode(value)
    if key == "policy" and isinstance(value, str):
        return torchvision_transforms().AutoAugmentPolicy(value.lower())
    if key == "dtype" and isinstance(value, str):
        return getattr(torch, value)
    return value
