"""How the small-image models begin."""

from __future__ import annotations

from torch import nn


def kaiming_fan_out(module: nn.Module) -> None:
    """Kaiming normal by fan out for convolutions, in place; their biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # Without the groups: the variance 2 / (k² · out) that the published models begin with.
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=(2.0 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_linear(module: nn.Module) -> None:
    """Normal with deviation 0.01 for linear layers, in place; their biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


def check_widths(widths: list[int], count: int) -> list[int]:
    """The widths themselves; raises ValueError if there are not `count` positive ones."""
    if len(widths) != count or min(widths) < 1:
        raise ValueError(f"widths is a list of {count} channel numbers, not {widths}")
    return widths
