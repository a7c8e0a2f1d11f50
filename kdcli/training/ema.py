"""A moving average of the student's weights, used for evaluation and export."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.spec.schema import Ema, Spec

VERSION = 2
"""Of the state. Before 2, which a state did not say, the decay had another formula and buffers were copied."""

EXP_STEPS = 2000
"""Steps in which the decay of `exp` comes to 63 % of its end."""


def average_of(spec: Spec) -> Ema | None:
    """The EMA settings that a run of this spec uses; None without EMA."""
    ema = spec.trainer.ema
    return ema if ema is not None and ema.enable else None


def decay_at(spec: Ema, step: int) -> float:
    """The decay of the moving average at a step, counted from 0.

    With d = decay ** inner_T, `linear`: min(d, (1 + step) / (warmup + step)); `exp`: d * (1 -
    exp(-step / 2000)). Source: United-Perception's up/utils/model/ema_helper.py.
    """
    decay = spec.kwargs.decay**spec.kwargs.inner_T
    if spec.ema_type == "exp":
        return decay * -math.expm1(-step / EXP_STEPS)
    return min(decay, (1 + step) / (spec.kwargs.warmup + step))


def same_meaning(state: Mapping[str, Any]) -> bool:
    """Whether a saved EMA state was made with the settings of this one."""
    return state.get("version") == VERSION


class MovingAverage:
    """Moving average of a network: average = decay * average + (1 - decay) * weight after each step.

    `linear` does so at step 0 and at every `inner_T`-th step from there, `exp` at every one. Buffers of
    real numbers are averaged like parameters; all others are copied at the same steps.
    """

    def __init__(self, net: nn.Module, spec: Ema) -> None:
        self.net = net
        self.spec = spec
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the current weights."""
        self.step = 0
        self.parameters = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.buffers = {name: b.detach().clone() for name, b in self.net.named_buffers()}
        # A constant like an attention mask's -inf would become nan: -inf - -inf.
        self._averaged = frozenset(
            name for name, b in self.buffers.items() if b.is_floating_point() and bool(b.isfinite().all())
        )

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after one optimizer step."""
        step = self.step
        self.step += 1
        if self.spec.ema_type == "linear" and step % self.spec.kwargs.inner_T:
            return
        share = 1.0 - decay_at(self.spec, step)
        torch._foreach_lerp_(
            list(self.parameters.values()), [p.detach() for p in self.net.parameters()], share
        )
        averages, current = [], []
        for name, buffer in self.net.named_buffers():
            if name in self._averaged:
                averages.append(self.buffers[name])
                current.append(buffer.detach())
            else:
                self.buffers[name].copy_(buffer)
        if averages:
            torch._foreach_lerp_(averages, current, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged weights into the network inside the block, its own weights back after it."""
        live = {name: t.detach().clone() for name, t in self._targets()}
        self._copy({**self.parameters, **self.buffers})
        try:
            yield
        finally:
            self._copy(live)

    def state_dict(self) -> dict[str, object]:
        """The averages and the number of updates."""
        return {
            "version": VERSION,
            "step": self.step,
            "parameters": self.parameters,
            "buffers": self.buffers,
            "averaged": sorted(self._averaged),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from what state_dict() returned."""
        self.step = int(state["step"])  # type: ignore[call-overload]
        for mine, theirs in ((self.parameters, state["parameters"]), (self.buffers, state["buffers"])):
            assert isinstance(theirs, dict)
            for name, value in theirs.items():
                mine[name].copy_(value)
        # As it was decided at the first step: a buffer that was infinite then may be finite now.
        averaged = state.get("averaged", sorted(self._averaged))
        assert isinstance(averaged, (list, tuple))
        self._averaged = frozenset(averaged)

    def _targets(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, target in self._targets():
            target.copy_(values[name])
