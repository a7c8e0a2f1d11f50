"""How the axes of a feature are read, known from the network or from evidence and never guessed; and the reading.

Maps are handed on channels first, [B, C, H, W]; tokens as they are, [B, N, D], their patches alone, or their
patches in the grid, as a map: what is compared decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from kdcli.distill.channels import ChannelTrace
from kdcli.errors import RunError
from kdcli.models.feature_layouts import FeatureLayout, Size
from kdcli.spec.schema import LayoutSpec

Source = Literal["module", "evidence", "spec"]

PREFIXES = (0, 1, 2, 4, 5, 8, 9, 16, 17)
"""Numbers of prefix tokens that are looked for where no module says: class, distillation, 4, 8 or 16 registers."""

Part = Literal["patches", "class", "prefix"]
"""Which tokens of a feature a tap names."""

Form = Literal["all", "patches", "grid"]
"""How a side of a pair is read: as it is; its patch tokens alone; these in their grid, as a map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the axes of one feature are read, as its network gives it.

    kind: `map` has four axes, `tokens` three, `vector` two; `logits` are a vector that holds the network's
    logits; anything else is `unknown`. channel_axis: the number of the axis, None where the kind is unknown.
    known_from: `module`, the operations that make the feature or read it, what its network says of itself, or that
    it is the network's `logits`; `evidence`, the proportions of its size; `spec`, `layout` or a loss on logits; None
    where nothing tells, and kdcli's own order holds: [B, C, H, W], [B, N, D], [B, D]. prefix: tokens before the
    patches, the first of them a class token or not (class_token); None where it isn't known. grid: rows and
    columns of a map, or of the patches among tokens; stride: pixels from one to the next. order: see FeatureLayout.
    """

    kind: Literal["map", "tokens", "vector", "logits", "unknown"]
    channel_axis: int | None
    known_from: Source | None = None
    prefix: int | None = None
    class_token: bool | None = None
    grid: Size | None = None
    stride: tuple[float, float] | None = None
    order: tuple[int, ...] | None = None

    @property
    def channels_last(self) -> bool:
        """Whether the network gives this map as [B, H, W, C]; it is handed on channels first."""
        return self.kind == "map" and self.channel_axis == 3

    @property
    def tokens_last(self) -> bool:
        """Whether the network gives these tokens as [B, D, N]; they are handed on as [B, N, D]."""
        return self.kind == "tokens" and self.channel_axis == 1

    @property
    def handed_on(self) -> Layout:
        """The same with the axes in the order in which features are handed on; a map says itself how it lay."""
        return replace(self, channel_axis=2) if self.tokens_last else self

    @property
    def in_grid(self) -> bool:
        """Whether these are tokens whose prefix and grid are known."""
        return self.kind == "tokens" and self.prefix is not None and self.grid is not None

    @property
    def text(self) -> str:
        """In words: `map`, `map, channels last`, `tokens 1+14x14`, `tokens`, `tokens, channels first`, `vector`."""
        if self.channels_last:
            return "map, channels last"
        last = ", channels first" if self.tokens_last else ""
        if self.in_grid:
            assert self.grid is not None
            return f"tokens {self.prefix}+{self.grid[0]}x{self.grid[1]}{last}"
        return f"{self.kind}{last}"

    def same_tokens(self, other: Layout) -> bool:
        """Whether each token of the one has its place in the other, by number."""
        return (self.prefix, self.grid, self.order) == (other.prefix, other.grid, other.order)


LOGITS = Layout(kind="logits", channel_axis=1, known_from="module")
"""Of the output that a network gives as `logits`."""


def layout_of(
    feature: Tensor,
    logits: object = None,
    trace: ChannelTrace | None = None,
    image: Sequence[int] | None = None,
    *,
    samples: int | None = None,
    said: FeatureLayout | None = None,
    spec: LayoutSpec | None = None,
) -> Layout:
    """How the axes of a feature are read.

    logits: what the network gives by that name. trace: watched the pass that made the feature. image: height
    and width of the images; samples: how many. said: what the network says of it. spec: what the spec says; it
    counts where it fits this feature.
    """
    rank = feature.dim()
    if rank == 2:
        return LOGITS if feature is logits else Layout(kind="vector", channel_axis=1)
    if rank not in (3, 4):
        return Layout(kind="unknown", channel_axis=None)
    axis = None if trace is None else trace.axis(feature)
    size = None if image is None else (int(image[0]), int(image[1]))
    windows = samples is not None and feature.shape[0] != samples
    if rank == 4:
        return _map_layout(feature.shape, axis, size, windows, said, spec)
    return _tokens_layout(feature.shape, axis, size, windows, said, spec)


def _map_layout(
    shape: torch.Size,
    axis: Literal["first", "last"] | None,
    image: Size | None,
    windows: bool,
    said: FeatureLayout | None,
    spec: LayoutSpec | None,
) -> Layout:
    def layout(axis: int, known_from: Source | None) -> Layout:
        rows, columns = (shape[1], shape[2]) if axis == 3 else (shape[2], shape[3])
        stride = None if image is None or not rows * columns else (image[0] / rows, image[1] / columns)
        return Layout(
            kind="map", channel_axis=axis, known_from=known_from, grid=(rows, columns), stride=stride
        )

    if spec is not None and spec.channels is not None:
        return layout(1 if spec.channels == "first" else 3, "spec")
    if axis == "first":
        return layout(1, "module")
    unknown = Layout(kind="unknown", channel_axis=None)
    first, last = (image is not None and fits(size, image) for size in (shape[2:], shape[1:3]))
    if axis == "last":
        if windows or (said is not None and said.maps == "none"):
            return unknown
        trusted = image is None or (said is not None and said.maps == "axes")
        return layout(3, "module") if trusted or last else unknown
    if first != last:
        return layout(1 if first else 3, "evidence")
    if first and last and shape[2:] != (1, 1):
        return replace(unknown, grid=(int(shape[2]), int(shape[3])))  # one of two: another size may show it
    return layout(1, None)


def _tokens_layout(
    shape: torch.Size,
    axis: Literal["first", "last"] | None,
    image: Size | None,
    windows: bool,
    said: FeatureLayout | None,
    spec: LayoutSpec | None,
) -> Layout:
    channels = 1 if axis == "first" else 2
    plain = Layout(kind="tokens", channel_axis=channels, known_from=None if axis is None else "module")
    count = int(shape[3 - channels])
    if spec is not None and spec.grid is not None:
        rows, columns = spec.grid
        if (spec.prefix or 0) + rows * columns == count:
            return _placed(plain, spec.prefix or 0, (rows, columns), image, "spec")
    if windows or image is None:
        return plain
    if said is not None and said.grid is not None and said.prefix is not None:
        for prefix in dict.fromkeys((said.prefix, 0)):
            if count == prefix + math.prod(said.grid):
                return _placed(plain, prefix, said.grid, image, "module", said)
    if said is not None and said.maps == "none":
        return plain
    prefixes = PREFIXES if said is None or said.prefix is None else tuple(dict.fromkeys((said.prefix, 0)))
    found = grids(count, image, prefixes)
    if len(found) != 1:
        return plain
    ((prefix, grid),) = found
    return _placed(plain, prefix, grid, image, "evidence", said)


def _placed(
    layout: Layout,
    prefix: int,
    grid: Size,
    image: Size | None,
    known_from: Source,
    said: FeatureLayout | None = None,
) -> Layout:
    stride = None if image is None else (image[0] / grid[0], image[1] / grid[1])
    return replace(
        layout,
        known_from=known_from,
        prefix=prefix,
        grid=grid,
        stride=stride,
        class_token=False if prefix == 0 else None if said is None else said.class_token,
        order=said.order if said is not None and known_from == "module" else None,
    )


def grids(tokens: int, image: Size, prefixes: Sequence[int] = PREFIXES) -> list[tuple[int, Size]]:
    """Every (prefix, grid) that so many tokens may have: the grid times a whole stride is the image.

    A grid of one place is none: a single token may as well be a class token.
    """
    found = []
    for stride in range(1, min(image) + 1):
        if image[0] % stride == 0 and image[1] % stride == 0:
            grid = image[0] // stride, image[1] // stride
            prefix = tokens - grid[0] * grid[1]
            if prefix in prefixes and grid != (1, 1):
                found.append((prefix, grid))
    return found


def checked_at_double_width(layout: Layout, shape: torch.Size, wide: torch.Size, image: Size) -> Layout:
    """What the size of a feature showed, held against its shape for an image of twice the width.

    Where more than one reading was left, the axis that has grown is the columns; where it is contradicted the layout
    isn't known.
    """
    if len(shape) != len(wide):
        return layout
    if layout.kind == "tokens":
        axis = 3 - (layout.channel_axis or 2)
        assert layout.prefix is not None and layout.grid is not None
        if int(wide[axis]) == layout.prefix + 2 * math.prod(layout.grid):
            return layout
        return Layout(kind="tokens", channel_axis=layout.channel_axis)
    grown = [number for number in (1, 2, 3) if wide[number] != shape[number]]
    if grown not in ([2], [3]):
        return Layout(kind="unknown", channel_axis=None)
    axis = 3 if grown == [2] else 1
    size = shape[1:3] if axis == 3 else shape[2:4]
    if not fits(size, image):
        return Layout(kind="unknown", channel_axis=None)
    grid = int(size[0]), int(size[1])
    stride = image[0] / grid[0], image[1] / grid[1]
    return Layout(kind="map", channel_axis=axis, known_from="evidence", grid=grid, stride=stride)


def fits(size: Sequence[int], image: Size) -> bool:
    """Whether height and width of a map are those of an image cut by one whole stride, rounded down or up."""
    rows, columns = int(size[0]), int(size[1])
    if (rows, columns) == (1, 1):
        return True
    if rows < 1 or columns < 1:
        return False
    strides = range(max(1, image[0] // (rows + 1)), image[0] // max(rows - 1, 1) + 1)
    height, width = image
    down = ((height // stride, width // stride) for stride in strides)
    up = ((-(-height // stride), -(-width // stride)) for stride in strides)
    return (rows, columns) in down or (rows, columns) in up


def in_order(feature: Tensor, layout: Layout) -> Tensor:
    """A map channels first and tokens channels last, as a view; anything else as it is."""
    if layout.tokens_last:
        return feature.transpose(1, 2)
    return feature.permute(0, 3, 1, 2) if layout.channels_last else feature


def part_of(feature: Tensor, layout: Layout, part: Part) -> Tensor:
    """Some of the tokens of a feature whose layout is known: [B, D] of the class token, else [B, n, D]."""
    tokens = feature.transpose(1, 2) if layout.channel_axis == 1 else feature
    assert layout.prefix is not None, "a part is taken of tokens that are known"
    if part == "class":
        return tokens[:, 0]
    return tokens[:, layout.prefix :] if part == "patches" else tokens[:, : layout.prefix]


def layout_of_part(layout: Layout, part: Part) -> Layout:
    """How a part of tokens is read."""
    if part == "class":
        return Layout(kind="vector", channel_axis=1, known_from=layout.known_from)
    bare = replace(layout, channel_axis=2, class_token=False)
    return (
        replace(bare, prefix=0)
        if part == "patches"
        else replace(bare, grid=None, prefix=None, order=None, stride=None)
    )


def read_as(feature: Tensor, layout: Layout, form: Form) -> Tensor:
    """A feature in the form that is compared; a grid follows an input of another size, in its proportions."""
    if form == "all" or feature.dim() != 3:
        return feature
    patches = part_of(feature, layout, "patches")
    if layout.order is not None:
        _grid_of(patches.shape[1], layout, exactly=True)
        patches = patches.index_select(1, _numbers(layout.order, patches))
    if form == "patches":
        return patches
    batch, count, width = patches.shape
    return patches.transpose(1, 2).reshape(batch, width, *_grid_of(count, layout))


_NUMBERS: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
"""Orders of tokens that have been copied to a device: each copy would wait for it."""


def _numbers(order: tuple[int, ...], beside: Tensor) -> Tensor:
    """The numbers of tokens, int64 on the device of `beside`; one copy for each order and device."""
    if isinstance(beside, FakeTensor):
        return torch.tensor(order, device=beside.device)
    key = order, beside.device
    if key not in _NUMBERS:
        _NUMBERS[key] = torch.tensor(order, device=beside.device)
    return _NUMBERS[key]


def shape_as(shape: torch.Size, layout: Layout, form: Form) -> torch.Size:
    """The shape that `read_as` gives."""
    if form == "all":
        return shape
    assert layout.prefix is not None and layout.grid is not None and layout.channel_axis is not None
    width = shape[layout.channel_axis]
    if form == "patches":
        return torch.Size((shape[0], math.prod(layout.grid), width))
    return torch.Size((shape[0], width, *layout.grid))


def _grid_of(patches: int, layout: Layout, *, exactly: bool = False) -> Size:
    assert layout.grid is not None
    rows, columns = layout.grid
    if patches == rows * columns:
        return rows, columns
    scale = math.sqrt(patches / (rows * columns))
    size = round(rows * scale), round(columns * scale)
    if exactly or size[0] * size[1] != patches:
        raise RunError.of(
            "KD667",
            f"{patches} patch tokens are no grid in the proportions of {rows}x{columns}, as it was at the start",
            "let all images have one size, or one proportion of height to width",
        )
    return size
