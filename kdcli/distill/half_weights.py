"""Weights of a half precision teacher, rounded once and held so, where autocast would round them at each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.taps import View, tensors_in
from kdcli.distill.teacher import Teacher

ROUNDED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
"""Layers whose weights and biases autocast rounds; subclasses may do something of their own with them."""


def hold_half(teacher: Teacher, sample: Mapping[str, Any]) -> bool:
    """Hold the weights of a teacher's convolutions and linear layers in the format of its autocast.

    Its answers stay the same bits, which is looked at on the sample; where they would not (a network reads its weights
    in another way too), all is undone and False is returned.
    """
    if teacher.autocast is None:
        return True
    dtype = teacher.autocast.fast_dtype
    uses = Counter(id(one) for module in teacher.net.modules() for one in module._parameters.values())
    before = [
        (module, name, one)
        for module in teacher.net.modules()
        if type(module) in ROUNDED
        for name, one in module._parameters.items()
        if type(one) is nn.Parameter and one.dtype == torch.float32 and uses[id(one)] == 1
    ]
    answers = teacher.learn(sample)
    for module, name, one in before:
        setattr(module, name, nn.Parameter(one.detach().to(dtype), requires_grad=False))
    try:
        same = _equal(answers, teacher.learn(sample))
    except RuntimeError:  # code of the user's that asks for one dtype
        same = False
    if not same:
        for module, name, one in before:
            setattr(module, name, one)
        teacher.learn(sample)
    return same


def _equal(one: View, other: View) -> bool:
    mine, others = _tensors(one), _tensors(other)
    return len(mine) == len(others) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(mine, others, strict=True)
    )


def _tensors(view: View) -> list[Tensor]:
    return [*tensors_in(list(view.features.values())), *tensors_in(dict(view.outputs))]
