"""Fake tensors: networks that compute shapes and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode

NOT_FAKE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What code raises that needs the values themselves."""


class Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """torch's own mode, without the import of its compiler, which takes as long as torch itself."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What one operation gives."""
        return self.dispatch(func, types, args, kwargs or {})


def fake_mode() -> FakeTensorMode:
    """The mode of one check. Tensors that a module holds beside its parameters and buffers may stay real."""
    return Shapes(allow_non_fake_inputs=True)


class Unfilled(TorchFunctionMode):
    """While it is entered, layers are made without torch's default initial weights: no shape depends on them.

    Random numbers that other code draws stay real: some is drawn again until it is within bounds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave a tensor that would be initialised as it is."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@torch.no_grad()
def to_zero(net: nn.Module) -> None:
    """Fill what was made unfilled: what lies in memory by chance may be slow to compute with."""
    for parameter in net.parameters():
        parameter.zero_()


def to_fake(net: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer by a fake one, in place; what was shared stays shared.

    The network was made for real: many constructors look at the values they initialise.
    """
    made: dict[int, Tensor] = {}
    kept: list[Tensor] = []  # so that no id is given out twice

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            kept.append(tensor)
            # As `mode.from_tensor` does at many times the cost, which minds views and symbols too.
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            copy = FakeTensor(mode, meta, tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return made[id(tensor)]

    for module in net.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and not isinstance(tensor, FakeTensor):
                    held[name] = fake(tensor)
