"""A moving average of the student's weights, used for evaluation and export."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdcli.spec.schema import Ema


class MovingAverage:
    """Follows a network: average = d * average + (1 - d) * weight after each step.

    `linear`: d = decay. `exp`: d = decay * (1 - exp(-step / inner_T)). During the first `warmup` steps
    the average simply equals the weights. Buffers are copied.
    """

    def __init__(self, net: nn.Module, spec: Ema) -> None:
        self.net = net
        self.spec = spec
        self.step = 0
        self.parameters = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.buffers = {name: b.detach().clone() for name, b in net.named_buffers()}

    @torch.no_grad()
    def restart(self) -> None:
        """Begin at the weights as they are now."""
        self.step = 0
        for name, parameter in self.net.named_parameters():
            self.parameters[name] = parameter.detach().clone()
        for name, buffer in self.net.named_buffers():
            self.buffers[name] = buffer.detach().clone()

    @torch.no_grad()
    def update(self) -> None:
        """One optimizer step is done."""
        self.step += 1
        current = [p.detach() for p in self.net.parameters()]
        averages = list(self.parameters.values())
        torch._foreach_lerp_(averages, current, 1.0 - self._decay())
        for name, buffer in self.net.named_buffers():
            self.buffers[name].copy_(buffer)

    def _decay(self) -> float:
        kwargs = self.spec.kwargs
        if self.step <= kwargs.warmup:
            return 0.0
        if self.spec.ema_type == "linear":
            return kwargs.decay
        return kwargs.decay * (1.0 - math.exp(-self.step / kwargs.inner_T))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the averaged weights inside the block, its own ones after it."""
        live = {name: t.detach().clone() for name, t in self._targets()}
        self._copy({**self.parameters, **self.buffers})
        try:
            yield
        finally:
            self._copy(live)

    def state_dict(self) -> dict[str, object]:
        """The averages and the count."""
        return {"step": self.step, "parameters": self.parameters, "buffers": self.buffers}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue where state_dict() was taken."""
        self.step = int(state["step"])  # type: ignore[call-overload]
        for mine, theirs in ((self.parameters, state["parameters"]), (self.buffers, state["buffers"])):
            assert isinstance(theirs, dict)
            for name, value in theirs.items():
                mine[name].copy_(value)

    def _targets(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, target in self._targets():
            target.copy_(values[name])
