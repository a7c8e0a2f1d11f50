"""The axis of a feature that holds its channels, known from the operations that make and read it.

A convolution, a batch norm or a pooling reads [B, C, ...]; a layer norm or a linear layer reads [..., C].
What they say is carried through all that keeps axes, moves them or joins them, forwards and backwards: the
sum at the end of a Swin block is known by the norm of the next block, whichever library it is from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from operator import index
from typing import Any, Literal

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Axis = Literal["first", "last"]
"""Channels right behind the batch, [B, C, ...], or in the last axis, [B, ..., C]."""

Turn = Mapping[Axis, Axis]
"""Where one tensor has its channels, by where another has them."""

KEPT: Turn = {"first": "first", "last": "last"}

POOLINGS = frozenset(
    f"{how}{what}_pool{n}d" for how in ("", "adaptive_") for what in ("avg", "max") for n in (1, 2)
)
CHANNELS_FIRST = POOLINGS | {
    *("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "pixel_shuffle", "pixel_unshuffle"),
    *("batch_norm", "group_norm", "instance_norm", "interpolate", "upsample"),
}
NORMS = frozenset({"layer_norm", "rms_norm"})
MOVES = frozenset({"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"})
RESHAPES = frozenset({"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"})
RESIZES = frozenset({"pad", "cat", "concat", "concatenate", "chunk", "split", "tensor_split", "narrow"})
"""They keep every axis, and change how long it is."""

MIXES = frozenset({"matmul", "rmatmul", "bmm", "baddbmm", "einsum", "tensordot", "rot90", "view_as", "get"})
"""Their result may have the shape of what they are given, and other axes."""


class ChannelTrace(TorchFunctionMode):
    """Watches a forward pass; then knows the channel axis of the tensors that it made.

    Tensors are not kept alive. What code makes that can't be watched, such as a scripted module's, is known
    by what reads it, or not at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self._ties: list[list[tuple[int, Turn]]] = []
        self._sure: list[tuple[int, Axis]] = []
        self._normed: list[tuple[int, Axis]] = []
        self._likely: list[tuple[int, Axis]] = []
        self._found: dict[int, Axis] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, and note what it tells."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = _with_places(result)
        given = _with_places([*args, *kwargs.values()]) if made else []
        if given:
            try:
                self._note(getattr(func, "__name__", "").strip("_"), given, made, args, kwargs)
            except (TypeError, ValueError, IndexError, KeyError, AttributeError):
                pass  # an operation written in a way that isn't understood tells nothing
        return result

    def axis(self, feature: Tensor) -> Axis | None:
        """The channel axis of a tensor made in the watched pass; None where no operation shows it."""
        if self._found is None:
            self._found = self._spread()
        number = self._numbers.get(feature)
        return None if number is None else self._found.get(number)

    def _note(
        self,
        name: str,
        given: Sequence[Tensor],
        made: Sequence[Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        first = given[0]
        if name in CHANNELS_FIRST:
            self._sure += [(self._number(one), "first") for one in (first, *made)]
        elif name in NORMS and len(kwargs.get("normalized_shape") or args[1]) == 1:
            self._normed.append((self._number(first), "last"))
            self._tie(first, made[0], KEPT)
        elif name == "linear":
            # Only likely: a mixer turns its axes round to let a linear layer work on positions.
            self._likely += [(self._number(one), "last") for one in (first, *made)]
            self._tie(first, made[0], KEPT)
        elif name in MOVES:
            self._tie(first, made[0], _turn(_order(name, first.dim(), args, kwargs)))
        elif name in RESHAPES:
            for one in made:
                self._tie(first, one, _of_reshape(first.shape, one.shape))
        elif name not in MIXES:
            resizes = name in RESIZES or (name == "getitem" and _slices(args[1]))
            for one in given:
                for other in made:
                    if one.shape == other.shape or (resizes and one.dim() == other.dim()):
                        self._tie(one, other, KEPT)

    def _number(self, tensor: Tensor) -> int:
        number = self._numbers.get(tensor)
        if number is None:
            number = self._numbers[tensor] = len(self._ties)
            self._ties.append([])
        return number

    def _tie(self, one: Tensor, other: Tensor, turn: Turn) -> None:
        if one is not other and turn:
            a, b = self._number(one), self._number(other)
            self._ties[a].append((b, turn))
            self._ties[b].append((a, {after: before for before, after in turn.items()}))

    def _spread(self) -> dict[int, Axis]:
        """The channels' axis by number; what is sure goes first, and the nearest word counts.

        Of one and the same tensor a convolution knows better than a norm, which may be one over the width.
        """
        found: dict[int, Axis] = {}
        for words in ([*self._sure, *self._normed], self._likely):
            due: deque[int] = deque()
            for number, axis in words:
                if found.setdefault(number, axis) == axis:
                    due.append(number)
            while due:
                number = due.popleft()
                for other, turn in self._ties[number]:
                    axis_there = turn.get(found[number])
                    if axis_there is not None and other not in found:
                        found[other] = axis_there
                        due.append(other)
        return found


def image_size(batch: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of a batch's images."""
    image = batch.get("image")
    if not isinstance(image, Tensor) or image.dim() != 4:
        return None
    height, width = image.shape[2:]
    return height, width


def _with_places(values: Any) -> list[Tensor]:
    """The tensors among the arguments or results of an operation that are more than vectors."""
    return [tensor for tensor in _tensors(values) if tensor.dim() > 2]


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _slices(given: Any) -> bool:
    parts = given if isinstance(given, tuple) else (given,)
    return all(isinstance(part, slice) or part is Ellipsis for part in parts)


def _order(name: str, rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """For each axis of the result the axis that it was."""
    given = [value for value in (*args, *kwargs.values()) if not isinstance(value, Tensor) or not value.dim()]
    if name in ("movedim", "moveaxis") and "destination" in kwargs:
        given = [kwargs.get("source", given[0]), kwargs["destination"]]
    if name == "permute":
        return [axis % rank for axis in _numbers(given)]
    if name in ("movedim", "moveaxis"):
        source, target = ([axis % rank for axis in _numbers(side)] for side in given)
        order = [axis for axis in range(rank) if axis not in source]
        for to, axis in sorted(zip(target, source, strict=True)):
            order.insert(to, axis)
        return order
    order = list(range(rank))
    one, other = (axis % rank for axis in _numbers(given))
    order[one], order[other] = other, one
    return order


def _numbers(values: Any) -> Iterable[int]:
    try:
        return [index(values)]
    except TypeError:
        return [number for value in values for number in _numbers(value)]


def _turn(order: Sequence[int]) -> Turn:
    ends: dict[int, Axis] = {1: "first", len(order) - 1: "last"}
    return {ends[was]: ends[now] for now, was in enumerate(order) if was in ends and now in ends}


def _of_reshape(before: Sequence[int], after: Sequence[int]) -> Turn:
    turn: dict[Axis, Axis] = {}
    if before[:2] == after[:2]:
        turn["first"] = "first"
    if before[-1] == after[-1]:
        turn["last"] = "last"
    return turn
