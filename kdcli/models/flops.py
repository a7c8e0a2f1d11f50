"""How much a forward pass computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop

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
