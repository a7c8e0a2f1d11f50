"""Frozen BatchNorms folded into the convolutions before them: a cheaper teacher that shows the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.taps import View, tensors_in
from kdcli.distill.teacher import Teacher
from kdcli.models.torch_modes import whole_float32

RELATIVE = 1e-4
"""How far a feature may move, in parts of its largest value, before the folding is taken back."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A convolution and the BatchNorm that alone reads it, with what the convolution was before."""

    conv: nn.Conv2d
    parent: nn.Module
    name: str
    norm: _BatchNorm
    weight: nn.Parameter
    bias: Tensor | None


def fold(teacher: Teacher, sample: Mapping[str, Any]) -> int:
    """Fold every frozen BatchNorm that directly follows a convolution; returns how many.

    A pair with a tap on either side stays as it is. The BatchNorm's path stays, as an identity. Where
    the teacher then shows anything else on the sample (a convolution is read twice), all is undone; that is asked in
    float32, whatever precision the teacher runs in.
    """
    pairs = _pairs(teacher, sample)
    with whole_float32(), _in_float32(teacher):
        before = teacher.learn(sample)
        for pair in pairs:
            _fold(pair)
        same = _same(before, teacher.learn(sample))
    if not same:
        for pair in pairs:
            _undo(pair)
    # Once more where it does not run as it was just looked at.
    if not same or teacher.autocast is not None:
        teacher.learn(sample)
    return len(pairs) if same else 0


@contextmanager
def _in_float32(teacher: Teacher) -> Iterator[None]:
    """Without the teacher's autocast: bfloat16 rounds by more than a folding that is right moves a feature."""
    autocast, teacher.autocast = teacher.autocast, None
    try:
        yield
    finally:
        teacher.autocast = autocast


def _pairs(teacher: Teacher, sample: Mapping[str, Any]) -> list[_Pair]:
    net = teacher.net
    made: list[tuple[Tensor, nn.Conv2d]] = []
    read: list[tuple[Tensor, _BatchNorm]] = []
    handles = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda m, _args, out: made.append((out, m))))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(lambda m, args: read.append((args[0], m))))
    try:
        with torch.no_grad():
            net(teacher.pixels_of(sample))
    finally:
        for handle in handles:
            handle.remove()
    tapped = {id(module) for module in teacher.taps.modules.values()}
    homes = {id(child): (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    pairs = []
    for tensor, norm in read:
        conv = next((conv for out, conv in made if out is tensor), None)
        once = sum(m is conv for _, m in made) == 1 and sum(m is norm for _, m in read) == 1
        if conv is None or not once or id(conv) in tapped or id(norm) in tapped:
            continue
        if norm.training or norm.running_mean is None or not isinstance(conv.weight, nn.Parameter):
            continue
        pairs.append(_Pair(conv, *homes[id(norm)], norm, conv.weight, conv.bias))
    return pairs


@torch.no_grad()
def _fold(pair: _Pair) -> None:
    conv, norm = pair.conv, pair.norm
    assert norm.running_mean is not None and norm.running_var is not None
    # In float64: the product is rounded once, to the weights' own format.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    setattr(pair.parent, pair.name, nn.Identity())


def _undo(pair: _Pair) -> None:
    pair.conv.weight = pair.weight
    pair.conv.bias = pair.bias
    setattr(pair.parent, pair.name, pair.norm)


def _same(one: View, other: View) -> bool:
    before = [*tensors_in(list(one.features.values())), *tensors_in(dict(one.outputs))]
    after = [*tensors_in(list(other.features.values())), *tensors_in(dict(other.outputs))]
    return len(before) == len(after) and all(
        bool((a - b).abs().max() <= RELATIVE * a.abs().max().clamp_min(1e-6))
        for a, b in zip(before, after, strict=True)
        if a.is_floating_point() and a.numel()
    )
