"""A loss's inputs: brought to full precision, read as maps, tokens or vectors, and refused where they don't fit.

Maps are [B, C, H, W], tokens [B, N, D], vectors [B, D].
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.errors import RunError

P = ParamSpec("P")
R = TypeVar("R")

LOW = (torch.float16, torch.bfloat16)


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """A loss function or `forward` that gets float32 for fp16 and bf16 tensors, outside autocast.

    float32 and float64 stay as they are. Tensors in lists and tuples are treated alike. Arguments whose
    name starts with `teacher` are detached: no loss trains its teacher.
    """
    names = tuple(inspect.signature(loss).parameters)
    targets = frozenset(name for name in names if name.startswith("teacher"))

    @wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
        ready = {name: _ready(value, name in targets) for name, value in given.items()}
        if not torch._C._is_any_autocast_enabled():
            return loss(**ready)  # type: ignore[call-arg]
        with _without_autocast(given.values()):
            return loss(**ready)  # type: ignore[call-arg]

    return computed


def _ready(value: Any, target: bool) -> Any:
    if value is None or isinstance(value, float | int):
        return value
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


def map_shape(shape: Sequence[int], method: str) -> tuple[int, int, int, int]:
    """The shape a feature has as a map: tokens are N×1 positions, a vector is one position."""
    if len(shape) == 4:
        batch, channels, height, width = shape
        return batch, channels, height, width
    if len(shape) == 3:
        batch, tokens, channels = shape
        return batch, channels, tokens, 1
    if len(shape) == 2:
        return shape[0], shape[1], 1, 1
    raise RunError.of(
        "KD450",
        f"`{method}` takes maps [B, C, H, W], tokens [B, N, D] or vectors [B, D], not {shown(shape)}",
        "name a layer whose output has one of these shapes (`kdcli inspect-features`)",
    )


def as_map(feature: Tensor, method: str) -> Tensor:
    """The feature as [B, C, H, W]; see `map_shape`."""
    shape = map_shape(feature.shape, method)
    return (feature.transpose(1, 2) if feature.dim() == 3 else feature).reshape(shape)


def as_vectors(feature: Tensor, method: str) -> Tensor:
    """The feature as [B, C], averaged over its positions."""
    return feature if feature.dim() == 2 else as_map(feature, method).flatten(2).mean(2)


def only_maps(shape: Sequence[int], method: str) -> tuple[int, int, int, int]:
    """The shape of a map [B, C, H, W]; anything else is refused."""
    if len(shape) != 4:
        raise RunError.of(
            "KD450",
            f"`{method}` takes feature maps [B, C, H, W], not {shown(shape)}",
            "name a convolutional layer, before pooling and flattening",
        )
    batch, channels, height, width = shape
    return batch, channels, height, width


def with_positions(student: Tensor, teacher: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Both as maps of one size, the larger averaged down to the smaller; vectors are refused.

    Channels may differ. Tokens have no grid, so their number must be equal.
    """
    for feature in (student, teacher):
        if feature.dim() == 2:
            raise RunError.of(
                "KD450",
                f"`{method}` compares positions, and {shown(feature.shape)} has none",
                "name a layer before pooling",
            )
    same_places(student.shape, teacher.shape, method)
    return same_size(as_map(student, method), as_map(teacher, method))


def same_places(
    student: Sequence[int], teacher: Sequence[int], method: str, *, averages: bool = False
) -> None:
    """Refuse two features whose positions can't be matched: those of maps, or of equally many tokens, can.

    Tokens have no grid that is known, and class tokens or registers may be among them, so that neither a map
    nor another number of tokens has the same places. What has a single place (a vector, a 1x1
    map, one token) fits its like, and everything where the method averages over the positions of the other.
    """
    single = (places_in(student) == 1, places_in(teacher) == 1)
    if all(single) or (averages and any(single)):
        return
    if len(student) != len(teacher) or (len(student) == 3 and student[1] != teacher[1]):
        raise RunError.of(
            "KD450",
            f"`{method}` cannot match the positions of {shown(student)} with those of {shown(teacher)}",
            "name maps in both networks, two layers with equally many tokens, or vectors in both",
        )


def places_in(shape: Sequence[int]) -> int:
    """How many positions a feature has: 1 for a vector, N for tokens, H·W for a map."""
    return int(shape[1]) if len(shape) == 3 else math.prod(int(size) for size in shape[2:])


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W], the larger averaged down to the smaller in each direction."""
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return pooled(student, height, width), pooled(teacher, height, width)


def pooled(feature: Tensor, height: int, width: int) -> Tensor:
    """A map averaged down to [B, C, height, width]; itself where it has that size."""
    if feature.shape[2:] == (height, width):
        return feature
    return F.adaptive_avg_pool2d(feature, (height, width))


def equal_shapes(student: Tensor, teacher: Tensor, method: str) -> None:
    """Refuse two features of different shape."""
    if student.shape != teacher.shape:
        raise RunError.of(
            "KD450",
            f"`{method}` compares equal shapes, not {shown(student.shape)} with {shown(teacher.shape)}",
            "add `adapter: auto` to the job, or name layers that fit",
        )


def enough_values(values: int, method: str) -> None:
    """Refuse a batch that leaves a channel with a single value to normalise over."""
    if values < 2:
        raise RunError.of(
            "KD450",
            f"`{method}` normalises each channel over the batch, and this one holds a single value",
            "use a batch of at least two samples and drop an incomplete last batch",
        )


def shown(shape: Sequence[int]) -> str:
    """[8, 64, 4, 4], as messages show a shape."""
    return str([int(size) for size in shape])


def check_logits(student: Tensor, teacher: Tensor, labels: Tensor | None, method: str) -> None:
    """Raise RunError KD450 unless both are [B, K] and labels, where given, [B]."""
    equal_shapes(student, teacher, method)
    check_labels(student, labels, method)


def check_labels(logits: Tensor, labels: Tensor | None, method: str) -> None:
    """Raise RunError KD450 unless logits are [B, K] and labels, where given, [B]."""
    if logits.dim() != 2:
        raise RunError.of(
            "KD450",
            f"`{method}` takes logits [B, K], not {shown(logits.shape)}",
            "name the classifier's output (`logits`)",
        )
    if labels is not None and labels.shape != logits.shape[:1]:
        raise RunError.of(
            "KD450",
            f"`{method}` takes one label a row, not {shown(labels.shape)} for logits {shown(logits.shape)}",
            "use a dataset of class labels, without mixing",
        )


def check_classifier(classifier: nn.Module, channels: int, method: str) -> None:
    """Raise RunError KD450 where a linear classifier takes another number of channels."""
    width = classifier.in_features if isinstance(classifier, nn.Linear) else channels
    if width != channels:
        raise RunError.of(
            "KD450",
            f"`{method}`: the teacher's classifier takes {width} channels, its tapped layer gives {channels}",
            "name the teacher's last layer before its classifier",
        )
