"""Two processes compute the loss and the gradient that one would on the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from kdcli.losses.bce import bce_loss
from kdcli.losses.dist import dist as dist_loss
from kdcli.losses.kd import gkd_loss, kd_loss
from kdcli.losses.l2 import l2_loss
from kdcli.losses.mlkd import mlkd
from kdcli.losses.parts.reduce import gather_rows, global_count, global_mean
from kdcli.losses.uskd import USKD

WORLD = 2
BATCH = 8


def _uskd(student: Tensor, teacher: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    torch.manual_seed(0)
    loss = USKD((1, 5), 5).double()
    value: Tensor = loss(student, student, labels)
    return value


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "l2": lambda s, t, mask, labels: l2_loss(s, t, mask),
    "bce": lambda s, t, mask, labels: bce_loss(s, t, mask, from_logits=True),
    "kd": lambda s, t, mask, labels: kd_loss(s, t, mask, T=2.0),
    "kd nothing": lambda s, t, mask, labels: kd_loss(s, t, mask & False),
    "gkd": lambda s, t, mask, labels: gkd_loss(s, t, labels),
    "dist": lambda s, t, mask, labels: dist_loss(s, t, gather=True),
    "mlkd": lambda s, t, mask, labels: mlkd(s, t, gather=True),
    "uskd": _uskd,
}


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 5, generator=random, dtype=torch.float64)
    x = torch.randn(BATCH, 5, generator=random, dtype=torch.float64)
    teacher = torch.randn(BATCH, 5, generator=random, dtype=torch.float64)
    mask = torch.tensor([True, True, True, False, False, False, True, False])
    labels = torch.where(mask, teacher.argmax(1), (teacher.argmax(1) + 1) % 5)
    return weight, x, teacher, mask, labels


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    weight, *batch = _inputs()
    part = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    x, teacher, mask, labels = (value[part] for value in batch)
    found = {}
    for name, loss in LOSSES.items():
        w = weight.clone().requires_grad_()
        value = loss(x @ w, teacher, mask, labels)
        value.backward()
        assert w.grad is not None
        both = torch.cat((value.detach().reshape(1), w.grad.flatten()))
        dist.all_reduce(both)
        found[name] = both / WORLD
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(_run, (str(tmp_path),), nprocs=WORLD)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    weight, x, teacher, mask, labels = _inputs()
    for name, loss in LOSSES.items():
        w = weight.clone().requires_grad_()
        value = loss(x @ w, teacher, mask, labels)
        value.backward()
        assert w.grad is not None
        whole = torch.cat((value.detach().reshape(1), w.grad.flatten()))
        torch.testing.assert_close(found[name], whole, msg=lambda text, name=name: f"{name}: {text}")


def test_one_process_counts_and_gathers_nothing() -> None:
    count = torch.tensor(3.0)
    assert global_count(count) == 3 and global_mean(count) == 3
    rows = torch.randn(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
