"""Networks too big for one device: parameters spread over processes by FSDP2 (`fully_shard`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from kdcli.parallel.distributed import Processes


def mesh_of(processes: Processes) -> DeviceMesh:
    """The device mesh of all processes in one dimension."""
    return init_device_mesh(processes.device.type, (processes.world_size,))


def shard_network(net: nn.Module, mesh: DeviceMesh, tapped: Iterable[str] = ()) -> None:
    """Shard a network block by block; taps must be in place already.

    tapped: paths of tapped layers. A block with one inside keeps its parameters until the backward
    pass: FSDP2 frees them by the block's own output, which no loss may use.
    """
    taps = set(tapped)
    for path, block in _blocks(net):
        inside = any(tap == path or tap.startswith(path + ".") for tap in taps)
        fully_shard(block, mesh=mesh, reshard_after_forward=not inside)
    fully_shard(net, mesh=mesh, reshard_after_forward=not taps)


def shard_rest(trainee: nn.Module, mesh: DeviceMesh) -> None:
    """Shard what is left around networks that are sharded already; this module becomes the root."""
    fully_shard(trainee, mesh=mesh, reshard_after_forward=False)


def _blocks(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children two levels down that have parameters and a forward of their own."""
    found = []
    for name, child in net.named_children():
        for inner, block in child.named_children():
            if isinstance(block, (nn.ModuleList, nn.ModuleDict)):
                continue
            if any(True for _ in block.parameters()):
                found.append((f"{name}.{inner}", block))
    return found


def whole(value: Any) -> Any:
    """The same nested values with every sharded tensor gathered; all processes take part."""
    if isinstance(value, DTensor):
        return DTensor.full_tensor(value).detach()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def distributed_like(value: Any, reference: Any) -> Any:
    """The same nested values, each tensor sharded as its counterpart in `reference`."""
    if isinstance(reference, DTensor) and isinstance(value, Tensor) and not isinstance(value, DTensor):
        value = value.to(reference.device, reference.dtype)
        return distribute_tensor(value, reference.device_mesh, reference.placements)
    if isinstance(reference, dict) and isinstance(value, dict):
        return {key: distributed_like(item, reference.get(key)) for key, item in value.items()}
    return value


def local_part(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds, without gradient; all of one that is not sharded."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def plain(value: Tensor) -> Tensor:
    """A scalar as an ordinary tensor; all processes take part where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def watched(gradients: list[Tensor], one: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A scalar that is above 0 where a gradient is not finite, by one pass over all of them; None for sharded ones.

    Of those it gives, second, the norm of all together, for which all processes take part. one: 1.0 on their device,
    which torch's pass for gradient scalers multiplies by: the gradients keep their bits.
    """
    if not gradients:
        return None, None
    if DTensor in set(map(type, gradients)):
        return None, plain(torch.nn.utils.get_total_norm(gradients))
    found = torch.zeros_like(one)
    for alike in _by_dtype(gradients):
        torch._amp_foreach_non_finite_check_and_unscale_(alike, found, one)
    return found, None


def _by_dtype(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of one dtype, as torch's operations on many take them fastest."""
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors)
    if len(dtypes) == 1:
        return [tensors]
    return [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in dtypes]
