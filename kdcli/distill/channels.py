"""The axis of a feature that holds its channels, known from the operations that make and read it.

A convolution, a batch norm or a pooling reads [B, C, ...]; a layer norm or a linear layer reads [..., C].
What they say is carried through all that keeps axes, moves them or joins them, forwards and backwards: the
sum at the end of a Swin block is known by the norm of the next block, whichever library it is from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the axes of one feature are read: as a map, tokens, a vector or logits, and where its channels are.

    kind: `map` has four axes, `tokens` three, `vector` two; `logits` are a vector that holds the network's
    logits; anything else is `unknown`. channel_axis: the number of the axis, None where the kind is unknown.
    known_from: `module`, the operations that make the feature or read it, or that it is the network's `logits`;
    `evidence`, the proportions of its size; `spec`, a loss on logits is told to read it; None where nothing
    tells, and kdcli's own order holds: [B, C, H, W], [B, N, D], [B, D].
    """

    kind: Literal["map", "tokens", "vector", "logits", "unknown"]
    channel_axis: int | None
    known_from: Literal["module", "evidence", "spec"] | None = None

    @property
    def channels_last(self) -> bool:
        """Whether this is a map [B, H, W, C], which no loss and no adapter reads."""
        return self.kind == "map" and self.channel_axis == 3


def layout_of(
    feature: Tensor,
    logits: Any = None,
    trace: ChannelTrace | None = None,
    image: Sequence[int] | None = None,
) -> Layout:
    """How the axes of a feature are read.

    logits: what the network gives by that name. trace: watched the pass that made the feature. image: height
    and width of the images.
    """
    rank = feature.dim()
    if rank == 2:
        return LOGITS if feature is logits else Layout(kind="vector", channel_axis=1)
    if rank not in (3, 4):
        return Layout(kind="unknown", channel_axis=None)
    kind: Literal["map", "tokens"] = "map" if rank == 4 else "tokens"
    axis = None if trace is None else trace.axis(feature)
    if axis is not None:
        return Layout(kind=kind, channel_axis=1 if axis == "first" else rank - 1, known_from="module")
    if kind == "map" and image is not None:
        size = feature.shape
        first, last = _proportional(size[2:4], image), _proportional(size[1:3], image)
        if first != last:
            return Layout(kind=kind, channel_axis=1 if first else 3, known_from="evidence")
    return Layout(kind=kind, channel_axis=1 if rank == 4 else 2)


LOGITS = Layout(kind="logits", channel_axis=1, known_from="module")
"""Of the output that a network gives as `logits`."""


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

    def channels_last(self, feature: Tensor, image: Sequence[int] | None) -> bool:
        """Whether a feature is a map [B, H, W, C], or has its channels last for another reason.

        image: height and width of the images. Where no operation tells, the two axes with these proportions
        are the positions.
        """
        return layout_of(feature, trace=self, image=image).channels_last

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


def _proportional(size: Sequence[int], image: Sequence[int]) -> bool:
    """Whether height and width of a map may be those of an image, but for rounding."""
    width = size[0] * image[1] / image[0]
    return int(width) <= size[1] <= -int(-width // 1)
