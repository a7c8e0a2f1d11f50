"""The precision that losses are computed in: float32 at least, whatever the networks run in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

LOW = (torch.float16, torch.bfloat16)


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """A loss function or `forward` that gets float32 for fp16 and bf16 tensors, outside autocast.

    float32 and float64 stay as they are. Tensors in lists and tuples are treated alike. Arguments whose
    name starts with `teacher` are detached: no loss trains its teacher.
    """
    names = tuple(inspect.signature(loss).parameters)

    @wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        ready = {name: _ready(value, name.startswith("teacher")) for name, value in given.items()}
        with _without_autocast(given.values()):
            return loss(**ready)  # type: ignore[call-arg]

    return computed


def _ready(value: Any, target: bool) -> Any:
    if isinstance(value, Tensor):
        if target:
            value = value.detach()
        return value.float() if value.dtype in LOW else value
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return [_ready(item, target) for item in value]
    return value


def _without_autocast(values: Any) -> AbstractContextManager[None]:
    for value in values:
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Tensor):
                kind = item.device.type
                if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                    return torch.autocast(kind, enabled=False)
    return nullcontext()
