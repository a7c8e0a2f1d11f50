"""Layers of student and teacher that fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdcli.analysis.layers import Layer
from kdcli.distill.adapters import unjoinable, what_joins
from kdcli.distill.layouts import shape_as

QUARTERS = (0.25, 0.5, 0.75, 1.0)
"""Where layers are taken in a network whose features all have one size."""

MANY = 4
"""So many blocks of one size are a network of one size rather than a stage."""

FAR = 0.5
"""Layers whose shares of the work differ by more are no pair: a patch embedding and the last stage."""

Grid = tuple[str, tuple[int, ...]]
"""Maps, and tokens in a grid that is known, by height and width; other tokens by their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingPair:
    """A student layer and a teacher layer at the same relative depth.

    adapter: what joins them, None where the shapes are equal.
    """

    student: Layer
    teacher: Layer
    adapter: str | None


def fitting_pairs(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[FittingPair]:
    """The last layers of the stages that have the same spatial size in both networks, in order of depth.

    Patch tokens have the size of their grid. What has no size in common is joined by relative depth alone. Tokens
    whose layout isn't known are paired with equally many tokens only, and maps whose channels' axis isn't known with
    nothing.
    """
    ours, theirs = _candidates(student), _candidates(teacher)
    common = [grid for grid in ours if grid in theirs]
    pairs: list[FittingPair] = []
    for grid in common:
        both = [*ours[grid], *theirs[grid]]
        even = min(len(ours[grid]), len(theirs[grid])) >= MANY and all(len(one.sizes[0]) == 3 for one in both)
        for share in QUARTERS if even else (1.0,):
            pairs.append(_pair(_at(ours[grid], share), _at(theirs[grid], share)))
    if not common:
        every_one = [layer for grid, layers in ours.items() if grid[0] == "map" for layer in layers]
        others = [layer for grid, layers in theirs.items() if grid[0] == "map" for layer in layers]
        if len(every_one) > 1 and len(others) > 1:
            pairs = [_pair(_at(every_one, share), _at(others, share)) for share in QUARTERS[1:]]
    unique = {(pair.student.path, pair.teacher.path): pair for pair in pairs if _apart(pair) <= FAR}
    return sorted(unique.values(), key=lambda pair: pair.student.order)


def _pair(student: Layer, teacher: Layer) -> FittingPair:
    ours, theirs = _read(student, teacher), _read(teacher, student)
    assert unjoinable(ours, theirs) is None, "only grids of one kind and size, or two maps, are paired"
    joined = what_joins(ours, theirs) if ours[1:] != theirs[1:] else None
    return FittingPair(student=student, teacher=teacher, adapter=joined)


def _apart(pair: FittingPair) -> float:
    return abs((pair.student.flops_share or 0.0) - (pair.teacher.flops_share or 0.0))


def _at(layers: Sequence[Layer], share: float) -> Layer:
    """The layer that ends nearest to a share of the work between the first and the last of them."""
    first, last = layers[0].flops_share or 0.0, layers[-1].flops_share or 0.0
    wanted = first + share * (last - first) if share < 1.0 else last
    return min(reversed(layers), key=lambda layer: abs((layer.flops_share or 0.0) - wanted))


def _candidates(layers: Sequence[Layer]) -> dict[Grid, list[Layer]]:
    """Layers by the height and width of their feature, each tensor under its shortest path, in order.

    Blocks where the network has any: their single operations are not meant to be mimicked.
    """
    named: dict[int, Layer] = {}
    for layer in sorted(layers, key=lambda layer: (layer.path.count("."), layer.order)):
        whole = layer.depth == 0 and not layer.leaf
        if layer.status == "once" and not whole and _grid(layer) is not None:
            named.setdefault(layer.made, layer)
    grids: dict[Grid, list[Layer]] = {}
    for layer in sorted(named.values(), key=lambda layer: layer.order):
        grid = _grid(layer)
        assert grid is not None
        grids.setdefault(grid, []).append(layer)
    blocks = {
        grid: [layer for layer in found if not layer.leaf and "Norm" not in layer.type]
        for grid, found in grids.items()
    }
    return {grid: found for grid, found in blocks.items() if found} or grids


def _grid(layer: Layer) -> Grid | None:
    size, layout = layer.sizes[0], layer.layouts[0]
    if layout.grid is not None and layout.kind in ("map", "tokens"):
        return ("map", layout.grid) if layout.grid != (1, 1) else None
    return ("tokens", (size[2 if layout.tokens_last else 1],)) if len(size) == 3 else None


def _read(layer: Layer, other: Layer) -> tuple[int, ...]:
    """The shape in which a layer's feature is compared with another's, as `adapter: auto` is given it."""
    size, layout = torch.Size(layer.sizes[0]), layer.layouts[0]
    if layout.channels_last:
        size = torch.Size((size[0], size[3], size[1], size[2]))
    if layout.tokens_last:
        size, layout = torch.Size((size[0], size[2], size[1])), layout.handed_on
    beside = other.layouts[0]
    if layout.in_grid and (beside.kind == "map" or (beside.in_grid and not layout.same_tokens(beside))):
        size = shape_as(size, layout, "grid")
    return tuple(size)
