"""A module that reads a network's outputs so far, then returns new named outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

Outputs = Mapping[str, Any]
"""Batch fields and the named outputs of the modules before, read-only."""


class ViewModule(nn.Module):
    """One entry of a `net` list.

    forward(outputs) returns only what is new; it never writes into `outputs` nor changes a tensor of
    it in place. Outputs named `loss` or `*_loss` are the task's own losses. `outplanes` and
    `out_strides`, where a module has them, size the modules after it (`inplanes`). `training_only`
    modules are left out of the exported network. `whole` modules are a complete model by themselves.
    `aliases` are other spellings of layer paths.
    """

    training_only: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    aliases: ClassVar[Mapping[str, str]] = {}
    outplanes: int | list[int] | None = None
    out_strides: list[int] | None = None

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """The new named outputs."""
        raise NotImplementedError(type(self).__name__)
