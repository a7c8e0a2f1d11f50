"""A trial run without traces: random state, buffers and modes are restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restored_state(*modules: nn.Module) -> Iterator[None]:
    """Restore the generators of torch, and every buffer and training mode of the modules, at the end."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    buffers = [(buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers()]
    modes = [(child, child.training) for module in modules for child in module.modules()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for child, mode in modes:
                child.training = mode
