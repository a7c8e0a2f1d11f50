"""Fake tensors: networks that compute shapes and nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)

NOT_FAKE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What code raises that needs the values themselves."""


def fake_mode() -> FakeTensorMode:
    """The mode of one check. Tensors that a module holds beside its parameters and buffers may stay real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def to_fake(net: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer by a fake one, in place; what was shared stays shared.

    The network was made for real: many constructors look at the values they initialise.
    """
    made: dict[int, Tensor] = {}
    kept: list[Tensor] = []  # so that no id is given out twice

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            kept.append(tensor)
            copy = mode.from_tensor(tensor.detach())
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return made[id(tensor)]

    for module in net.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and not isinstance(tensor, FakeTensor):
                    held[name] = fake(tensor)
