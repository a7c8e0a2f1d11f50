"""Torch modes to run a network under: fake tensors, for its shapes alone, and a count of its operations (FLOPs)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop

_TORCHS_LOG = logging.getLogger("torch._subclasses.fake_tensor")

NOT_FAKE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""Errors of code that needs the values themselves, which fake tensors lack."""


class Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """torch's FakeTensorMode without the import of its compiler, which takes as long as torch itself.

    device: where `to_fake` puts a network; None leaves it where it is.
    """

    device: torch.device | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The fake result of one operation. One that fails raises, which is told; torch would log it as well."""
        before, _TORCHS_LOG.disabled = _TORCHS_LOG.disabled, True
        try:
            return self.dispatch(func, types, args, kwargs or {})
        finally:
            _TORCHS_LOG.disabled = before


def fake_mode() -> FakeTensorMode:
    """A fake mode for one check. Tensors that a module holds beside its parameters and buffers may stay real."""
    return Shapes(allow_non_fake_inputs=True)


class Arrays(TorchFunctionMode):
    """While it is entered, a NumPy array of a fake tensor is refused as what else needs values is (NOT_FAKE).

    asked: hears of the tensor first.
    """

    def __init__(self, asked: Callable[[Tensor], None] = lambda _: None) -> None:
        super().__init__()
        self.asked = asked

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function."""
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], FakeTensor):
            self.asked(args[0])
            raise UnsupportedOperatorException(func)
        return func(*args, **(kwargs or {}))


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
    device = mode.device if isinstance(mode, Shapes) else None
    made: dict[int, Tensor] = {}
    kept: list[Tensor] = []  # so that no id is given out twice

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            kept.append(tensor)
            # As `mode.from_tensor` does at many times the cost, which minds views and symbols too.
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            copy = FakeTensor(mode, meta, device or tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return made[id(tensor)]

    for module in net.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if not isinstance(tensor, FakeTensor) or (device is not None and tensor.device != device):
                    held[name] = fake(tensor)


FLASH_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class TooMuch(Exception):
    """A network computes more than its caller allowed."""


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; `total` so far, a multiply-add being two operations.

    Matrix products, convolutions and attention are counted, by torch's own formulas; what else a network
    does is too little to matter. Works on real and on fake tensors. most: raises TooMuch beyond.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.most = most

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: what torch wraps for that purpose imports its compiler, which takes as long as torch itself."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **kwargs, out_val=result))
        elif packet is FLASH_ON_CPU:
            self.total += int(sdpa_flop(args[0].shape, args[1].shape, args[2].shape))
        if self.most is not None and self.total > self.most:
            raise TooMuch
        return result


@contextmanager
def every_layer_runs() -> Iterator[None]:
    """Without torch's fused paths, which skip the layers (and the operations) that they replace."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Without formats that torch may use inside float32 operations (TF32 in cuDNN's convolutions is its default)."""
    backends: Any = torch.backends
    places = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.rnn,
    )
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def flops_of(net: nn.Module, batch: Mapping[str, Any]) -> int:
    """Floating point operations of one sample's forward in evaluation mode; a multiply-add counts as two.

    batch: real or fake; its size is divided out.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad(), every_layer_runs(), FlopCount() as counter:
            net(batch)
    finally:
        for module, mode in modes:
            module.training = mode
    return int(counter.total) // len(batch["image"])
