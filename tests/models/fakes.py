"""Running a network on fake tensors: shapes without arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec


def network(*modules: Mapping[str, Any], **options: Any) -> Network:
    """A network from the mappings a spec would hold."""
    return build_network([ModuleSpec(**module) for module in modules], path=("net",), **options)


def run_fake(net: Network, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The outputs of a real network as fake tensors."""
    mode = FakeTensorMode()
    state = {key: mode.from_tensor(value) for key, value in net.state_dict(keep_vars=True).items()}
    fields = {key: mode.from_tensor(value) for key, value in batch.items()}
    with mode:
        outputs: dict[str, Any] = torch.func.functional_call(net, state, (fields,))
    return outputs


def batch_of(size: int, classes: int = 10, count: int = 2) -> dict[str, Tensor]:
    """Random images with labels."""
    return {"image": torch.randn(count, 3, size, size), "labels": torch.arange(count) % classes}
