"""How much a forward pass computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops_of(net: nn.Module, batch: Mapping[str, Any]) -> int:
    """Floating point operations of one sample's forward in evaluation mode; a multiply-add counts as two.

    batch: real or fake; its size is divided out.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(batch)
    finally:
        for module, mode in modes:
            module.training = mode
    return int(counter.get_total_flops()) // len(batch["image"])
