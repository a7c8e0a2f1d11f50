"""What a spec says in epochs, as the steps that a scheduler counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def in_steps(epochs: Any, steps_per_epoch: int) -> Any:
    """A number of epochs, or a tuple of some, in whole steps; at least one."""
    if isinstance(epochs, tuple):
        return [in_steps(epoch, steps_per_epoch) for epoch in epochs]
    return max(1, round(epochs * steps_per_epoch))


def epochs_in_steps(
    scheduler: Callable[..., Any], names: Sequence[str], kwargs: Mapping[str, Any], steps_per_epoch: int
) -> dict[str, Any]:
    """These arguments of a scheduler in steps: those that are given, and the scheduler's own defaults.

    A default means what it means where it is written: `total_iters: 5` of LinearLR is five epochs either way.
    """
    own = {name: one.default for name, one in inspect.signature(scheduler).parameters.items()}
    # A length of 0 stands for one that has to be given.
    defaults = {name: own[name] for name in names if isinstance(own.get(name), int | float) and own[name] > 0}
    given = {name: kwargs[name] for name in names if name in kwargs}
    return {name: in_steps(epochs, steps_per_epoch) for name, epochs in {**defaults, **given}.items()}
