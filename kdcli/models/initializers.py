"""Initial weights: by the `initializer` of a spec, and those of the small-image models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def initialize(module: nn.Module, initializer: Mapping[str, Any]) -> None:
    """Set every convolution and linear layer, in place; biases become 0, BatchNorm 1 and 0.

    initializer: {method: msra} (kaiming normal, a=1), {method: xavier} (normal), {method: normal,
    std: 0.01} or {method: constant, val: 0}. Raises ValueError on another method or argument.
    """
    arguments = dict(initializer)
    method = arguments.pop("method", None)
    std, val = arguments.pop("std", 0.01), arguments.pop("val", 0.0)
    if arguments:
        raise ValueError(f"initializer takes method, std and val, not {', '.join(map(repr, arguments))}")
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        if not isinstance(layer, WEIGHTED):
            continue
        if method == "msra":
            nn.init.kaiming_normal_(layer.weight, a=1)
        elif method == "xavier":
            nn.init.xavier_normal_(layer.weight)
        elif method == "normal":
            nn.init.normal_(layer.weight, std=std)
        elif method == "constant":
            nn.init.constant_(layer.weight, val)
        else:
            raise ValueError(f"initializer.method is msra, xavier, normal or constant, not `{method}`")
        if layer.bias is not None:
            nn.init.constant_(layer.bias, val if method == "constant" else 0.0)


def kaiming_fan_out(module: nn.Module) -> None:
    """Set convolutions to Kaiming normal by fan out, in place; their biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # Without the groups: the variance 2 / (k² · out) that the published models begin with.
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=(2.0 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_linear(module: nn.Module) -> None:
    """Set linear layers to a normal of deviation 0.01, in place; their biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


def check_widths(widths: list[int], count: int) -> list[int]:
    """The widths themselves; raises ValueError if there are not `count` positive ones."""
    if len(widths) != count or min(widths) < 1:
        raise ValueError(f"widths is a list of {count} channel numbers, not {widths}")
    return widths
