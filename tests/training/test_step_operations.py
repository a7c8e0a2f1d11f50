"""How many operations of torch a step of the whole of kdcli asks for, beside a loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from tests.benchmarks.sides import hand_side, kdcli_side

STEPS = 5


class Counting(TorchDispatchMode):
    """Counts what is dispatched while it is entered, the backward pass too; not what an optimizer does in its step."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.counts = 0, True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.count += self.counts
        return func(*args, **(kwargs or {}))

    def optimizing(self, *_: object) -> None:
        """The optimizer begins or ends."""
        self.counts = not self.counts


def operations(go_on: Callable[[], float]) -> float:
    """Operations a step."""
    with ExitStack() as stack:
        counting = stack.enter_context(Counting())
        stack.callback(register_optimizer_step_pre_hook(counting.optimizing).remove)
        stack.callback(register_optimizer_step_post_hook(counting.optimizing).remove)
        go_on()
    return counting.count / STEPS


@pytest.mark.parametrize(("jobs", "more"), [("logits", 57), ("feature", 66)])
def test_a_step_asks_torch_for_little_more_than_a_loop_by_hand(jobs: str, more: int) -> None:
    """More are the draws, the checks of losses and gradients, the watch, and losses that divide by no row of length 0.

    Each costs a step 2 to 10 microseconds of the host: look for what can be left out before you raise this.
    """
    fields: dict[str, Any] = {"pair": "tiny", "jobs": jobs, "samples": 40 * STEPS, "batch": 4}
    with ExitStack() as stack:
        kdcli = stack.enter_context(kdcli_side(log_freq=STEPS, **fields))
        hand = stack.enter_context(hand_side(steps=STEPS, **fields))
        assert operations(kdcli) <= operations(hand) + more
