"""Norm layers: statistics over processes on the CPU, channels last for LayerNorm."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from kdcli.models.layers import build_norm, synchronise, synchronises


def test_layer_norm_is_over_channels() -> None:
    x = torch.randn(2, 5, 3, 3)
    out = build_norm(5, {"type": "ln"})(x)
    assert torch.allclose(out.mean(1), torch.zeros(2, 3, 3), atol=1e-6)
    assert torch.allclose(out, nn.functional.layer_norm(x.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2))


def test_sync_bn_alone_is_batch_norm() -> None:
    x = torch.randn(4, 3, 2, 2)
    synced, solo = (
        build_norm(3, {"type": "sync_bn", "kwargs": {"group_size": 8}}),
        build_norm(3, {"type": "solo_bn"}),
    )
    assert torch.allclose(synced(x), solo(x))
    assert torch.equal(synced.running_var, solo.running_var)
    assert type(build_norm(3, {"type": "sync_bn", "kwargs": {"group_size": 1}})) is nn.BatchNorm2d


def rank(index: int, port: int, x: torch.Tensor, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=index, world_size=2)
    warnings.simplefilter("error")
    norm = build_norm(3, {"type": "sync_bn"})
    part = x[index * 3 : index * 3 + 3].clone().requires_grad_()
    out = norm(part)
    (out.pow(3).sum() + out[0].sum()).backward()
    torch.save([out.detach(), part.grad, norm.running_mean, norm.running_var], folder / f"{index}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sync_bn_of_two_processes_is_batch_norm_of_the_whole_batch(tmp_path: Path) -> None:
    x = torch.randn(6, 3, 2, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank, (port, x, tmp_path), nprocs=2)
    norm = nn.BatchNorm2d(3)
    whole = x.clone().requires_grad_()
    out = norm(whole)
    (out.pow(3).sum() + out[0].sum() + out[3].sum()).backward()
    parts = [torch.load(tmp_path / f"{index}.pt") for index in range(2)]
    assert whole.grad is not None
    assert torch.allclose(torch.cat([p[0] for p in parts]), out, atol=1e-5)
    assert torch.allclose(torch.cat([p[1] for p in parts]), whole.grad, atol=1e-5)
    for part in parts:
        assert torch.allclose(part[2], norm.running_mean, atol=1e-6)
        assert torch.allclose(part[3], norm.running_var, atol=1e-6)


def test_batch_norms_are_synchronised_in_place_but_frozen_and_foreign_ones_stay() -> None:
    shown, frozen = nn.Sequential(nn.BatchNorm2d(2)), nn.BatchNorm2d(2).eval()
    method = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), shown, frozen)
    method.append(nn.BatchNorm1d(3, affine=False))
    before = dict(method.named_parameters())
    state = {name: value.clone() for name, value in method.state_dict().items()}
    synchronise(method, but=[shown])
    assert [type(m).__name__ for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [
        "SyncBatchNorm2d",
        "BatchNorm2d",
        "BatchNorm2d",
        "SyncBatchNorm2d",
    ]
    assert all(parameter is before[name] for name, parameter in method.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert synchronises(method) and not synchronises(shown)
