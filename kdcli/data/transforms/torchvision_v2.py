"""torchvision's own transforms, each sample under a generator state of its own.

torchvision is imported when the first image needs it: that takes as long as torch itself.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.data.draws import Draws
from kdcli.errors import SpecError, SpecPath, did_you_mean

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


def names() -> list[str]:
    """Every `torchvision.<Name>` that may stand in a transformer list."""
    v2, found = transforms(), []
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
    if type not in names():
        raise SpecError.at(
            (*path, "type"), "KD503", f"torchvision has no transform `{name}`", did_you_mean(type, names())
        )
    made: Any = getattr(transforms(), name)
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
        return Foreign(made(**{key: _value(key, value) for key, value in kwargs.items()}))
    except (TypeError, ValueError, AttributeError, KeyError) as reason:
        raise SpecError.at(path, "KD505", f"`{type}` can't be built: {reason}") from reason


def _value(key: str, value: Any) -> Any:
    """A YAML scalar as the object that torchvision expects."""
    if key == "interpolation" and isinstance(value, str):
        return transforms().InterpolationMode(value)
    if key == "policy" and isinstance(value, str):
        return transforms().AutoAugmentPolicy(value.lower())
    if key == "dtype" and isinstance(value, str):
        return getattr(torch, value)
    return value


@cache
def functional() -> Any:
    """The functions of torchvision.transforms.v2."""
    return import_module("torchvision.transforms.v2.functional")


@cache
def transforms() -> Any:
    """The classes of torchvision.transforms.v2."""
    return import_module("torchvision.transforms.v2")
