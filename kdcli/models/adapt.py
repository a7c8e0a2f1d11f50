"""Trainable convolutions that bring a student's features to a teacher's widths."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import CountOrNone, Width


class Adapt(ViewModule):
    """One convolution (and ReLU) for each of the chosen features.

    Reads `features`, a list of maps; output `out_name`: maps of the widths in outplanes (one number
    for all, or a list as long as out_layers), sizes unchanged. out_layers: indices into `features`.
    do_init_weights: a standard normal wrapped at ±2, times 1e-4. Serves training alone.
    """

    training_only: ClassVar[bool] = True

    def __init__(
        self,
        inplanes: int | list[int],
        *,
        outplanes: Width | list[Width],
        out_layers: list[CountOrNone] | None = None,
        kernel_size: Literal[1, 3] = 3,
        with_relu: bool = False,
        do_init_weights: bool = False,
        out_name: Literal["adapt_neck_features", "adapt_bb_features"] = "adapt_neck_features",
    ) -> None:
        super().__init__()
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size is 1 or 3, not {kernel_size}")
        if out_name not in ("adapt_neck_features", "adapt_bb_features"):
            raise ValueError(f"out_name is adapt_neck_features or adapt_bb_features, not `{out_name}`")
        self.out_layers = out_layers if out_layers is not None else [0, 1, 2, 3, 4]
        self.out_name = out_name
        if isinstance(inplanes, list) and max(self.out_layers) >= len(inplanes):
            raise ValueError(f"out_layers asks for feature {max(self.out_layers)}, there are {len(inplanes)}")
        if isinstance(outplanes, list) and len(outplanes) != len(self.out_layers):
            raise ValueError(
                f"{len(self.out_layers)} out_layers need as many outplanes, not {len(outplanes)}"
            )
        self.conv = nn.ModuleList()
        for position, index in enumerate(self.out_layers):
            conv = nn.Conv2d(
                inplanes[index] if isinstance(inplanes, list) else inplanes,
                outplanes[position] if isinstance(outplanes, list) else outplanes,
                kernel_size,
                padding=kernel_size // 2,
            )
            if do_init_weights:
                nn.init.normal_(conv.weight)
                conv.weight.data.fmod_(2).mul_(1e-4)
            self.conv.append(nn.Sequential(conv, nn.ReLU()) if with_relu else nn.Sequential(conv))

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        features = outputs["features"]
        adapted = [layer(features[index]) for layer, index in zip(self.conv, self.out_layers, strict=True)]
        return {self.out_name: adapted}
