"""Adapters: the trainable map from a student feature to a teacher feature, sized from the real shapes.

An adapter is made with the shapes of both features (batch first; the batch size is not looked at)
and turns [B, *student] into [B, *teacher]. Maps are [B, C, H, W], tokens [B, N, D], vectors [B, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.errors import SpecError, SpecPath
from kdcli.losses.parts.inputs import places_in
from kdcli.spec.plugins import lookup
from kdcli.spec.ranges import Count, Width
from kdcli.spec.schema import AdapterSpec

Shape = Sequence[int]


def build_adapter(
    spec: AdapterSpec,
    student: Shape,
    teacher: Shape,
    path: SpecPath,
    help: str | None = None,
    *,
    normed: bool = True,
) -> nn.Module:
    """Build the adapter that `spec` names; raises SpecError where it can't join these shapes.

    help: what to do where no adapter can, KD426. normed: whether `auto` puts a norm behind its convolution, where the
    spec doesn't say.
    """
    from kdcli.distill import ADAPTERS

    why = unjoinable(student, teacher) if spec.type in ("auto", "mlp") else None
    if why is not None:
        raise SpecError.at(
            path, "KD426", f"no adapter joins {shown(student)} and {shown(teacher)}: {why}", help, on_key=True
        )
    kwargs = spec.kwargs
    if spec.type == "auto" and not normed:
        kwargs = {"norm": "none", **kwargs}
    try:
        module = lookup(ADAPTERS, spec.type, path=path, code="KD432").load()(student, teacher, **kwargs)
    except ValueError as error:
        raise SpecError.at(path, "KD432", f"adapter `{spec.type}`: {error}") from None
    assert isinstance(module, nn.Module)
    return module


class ConvAdapter(nn.Module):
    """Convolution, norm and, where height and width differ, a resize: maps to maps.

    kernel_size: 1 or 3. norm: `bn`, `none`. relu: whether the result passes a ReLU.
    """

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        *,
        kernel_size: Literal[1, 3] = 1,
        norm: Literal["bn", "none"] = "bn",
        relu: bool = False,
    ) -> None:
        super().__init__()
        if len(student) != 4 or len(teacher) != 4:
            raise ValueError(f"joins maps [B, C, H, W], not {shown(student)} and {shown(teacher)}")
        self.conv = nn.Conv2d(
            student[1], teacher[1], kernel_size, padding=kernel_size // 2, bias=norm == "none"
        )
        self.norm = nn.BatchNorm2d(teacher[1]) if norm == "bn" else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.resized = tuple(student[2:]) != tuple(teacher[2:])
        self.ratio = (teacher[2] / student[2], teacher[3] / student[3])
        self.size = (teacher[2], teacher[3])
        self.student_size = (student[2], student[3])

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C, H, W] -> [B, teacher's C, teacher's H, teacher's W]."""
        if self.resized:
            feature = resize_map(feature, self.size, self.student_size)
        result: Tensor = self.relu(self.norm(self.conv(feature)))
        return result


class LinearAdapter(nn.Module):
    """One linear layer over the last axis: vectors to vectors, tokens to as many tokens."""

    def __init__(self, student: Shape, teacher: Shape, *, bias: bool = True) -> None:
        super().__init__()
        if len(student) != len(teacher) or len(student) not in (2, 3) or student[1:-1] != teacher[1:-1]:
            raise ValueError(
                f"joins vectors [B, D] or equally many tokens, not {shown(student)} and {shown(teacher)}"
            )
        self.linear = nn.Linear(student[-1], teacher[-1], bias=bias)

    def forward(self, feature: Tensor) -> Tensor:
        """feature [..., D] -> [..., teacher's D]."""
        result: Tensor = self.linear(feature)
        return result


class ResizeAdapter(nn.Module):
    """Resize of height and width, nothing trained: maps with equal channels."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        if len(student) != 4 or len(teacher) != 4 or student[1] != teacher[1]:
            raise ValueError(f"joins maps of equal channels, not {shown(student)} and {shown(teacher)}")
        self.size = (teacher[2], teacher[3])
        self.student_size = (student[2], student[3])

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C, H, W] -> [B, C, teacher's H, teacher's W]."""
        return resize_map(feature, self.size, self.student_size)


class MeanAdapter(nn.Module):
    """Mean over all positions, then a linear layer: to a vector, or to a feature with a single position.

    All tokens that it is given count alike: the patches alone where it is known which they are. A vector is never
    spread over positions: every one of them would be asked for the same.
    """

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        if len(student) not in (2, 3, 4) or len(teacher) not in (2, 3, 4) or places_in(teacher) != 1:
            raise ValueError(
                f"joins a map or tokens with a vector, not {shown(student)} and {shown(teacher)}"
            )
        self.linear = nn.Linear(_width(student), _width(teacher))
        self.shape = tuple(teacher[1:])

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C, H, W], [B, N, D] or [B, D] -> [B, teacher's D], as a 1x1 map or one token where that is it."""
        result: Tensor = self.linear(_mean(feature))
        return result.reshape(len(result), *self.shape)


class MlpAdapter(nn.Module):
    """A small MLP over the channels of each position, the same for all: maps, tokens and vectors, as `auto` joins them.

    `depth` linear layers, of `hidden` channels in between (the teacher's where nothing is said), with a LayerNorm
    over channels and a GELU behind each but the last, as AM-RADIO's heads have them. Maps of unlike size are resized
    first; towards a vector the mean over all positions comes first. what: it in words, for the plan.
    """

    def __init__(
        self, student: Shape, teacher: Shape, *, hidden: Width | None = None, depth: Count = 2
    ) -> None:
        super().__init__()
        why = unjoinable(student, teacher)
        if why is not None:
            raise ValueError(f"joins no {shown(student)} and {shown(teacher)}: {why}")
        inside = _width(teacher) if hidden is None else hidden
        widths = [_width(student), *[inside] * (depth - 1), _width(teacher)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.LayerNorm(before), nn.GELU()] if layers else []
            layers.append(nn.Linear(before, after))
        self.layers = nn.Sequential(*layers)
        self.what = f"an MLP {' to '.join(str(width) for width in widths)}"
        self.shape = tuple(teacher[1:])
        self.resize: ResizeAdapter | None = None
        self.averages = False
        if len(student) == len(teacher) == 4:
            if tuple(student[2:]) != tuple(teacher[2:]):
                self.resize = ResizeAdapter(student, (*student[:2], *teacher[2:]))
                self.what += f" after a resize {student[2]}x{student[3]} to {teacher[2]}x{teacher[3]}"
        elif not _alike(student, teacher):
            self.averages = True
            self.what += " of the mean over positions" if places_in(student) > 1 else ""

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C, H, W], [B, N, D] or [B, D] -> the teacher's channels, in the teacher's shape."""
        if self.averages:
            result: Tensor = self.layers(_mean(feature))
            return result.reshape(len(result), *self.shape)
        if self.resize is not None:
            feature = self.resize(feature)
        if feature.dim() == 4:
            result = self.layers(feature.permute(0, 2, 3, 1))
            return result.permute(0, 3, 1, 2)
        result = self.layers(feature)
        return result


class AutoAdapter(nn.Module):
    """The adapter that fits: conv for two maps, linear for vectors and equally many tokens, mean towards a vector.

    Patch tokens reach it as maps, in their grid, where the other side is a map or has another grid; a vector is joined
    with a vector only: see `unjoinable`. norm: behind the convolution; where the spec says nothing `none` for a loss
    that normalises features itself (a BatchNorm before it lets the student learn the teacher's mean and little more),
    else `bn`. what: it in words, for the plan.
    """

    def __init__(self, student: Shape, teacher: Shape, *, norm: Literal["bn", "none"] = "bn") -> None:
        super().__init__()
        self.adapter: nn.Module
        if len(student) == len(teacher) == 4:
            self.adapter = ConvAdapter(student, teacher, norm=norm)
        elif _alike(student, teacher):
            self.adapter = LinearAdapter(student, teacher)
        else:
            self.adapter = MeanAdapter(student, teacher)
        self.what = what_joins(student, teacher)

    def forward(self, feature: Tensor) -> Tensor:
        """The student's feature in the teacher's shape."""
        result: Tensor = self.adapter(feature)
        return result


def unjoinable(student: Shape, teacher: Shape) -> str | None:
    """Why `adapter: auto` can't join features of these shapes; None where it can.

    Tokens are here those whose prefix and grid aren't known: the others are read as maps where it needs that.
    Resampled along their sequence they would be compared with other places of the image.
    """
    ranks = (len(student), len(teacher))
    if not set(ranks) <= {2, 3, 4}:
        return "kdcli knows neither of them as map, tokens or vector"
    if places_in(teacher) == 1 or ranks == (4, 4):
        return None
    if places_in(student) == 1:
        return "a vector has no places: every place of the teacher's would get the same"
    if ranks in ((3, 4), (4, 3)):
        return "the grid of the tokens, or which of them are class tokens or registers, isn't known"
    if ranks == (3, 3) and student[1] != teacher[1]:
        return "their grids, or which tokens are class tokens or registers, aren't known"
    return None


def what_joins(student: Shape, teacher: Shape) -> str:
    """In words, what `adapter: auto` builds between two shapes."""
    if len(student) == len(teacher) == 4:
        what = f"a 1x1 convolution {student[1]} to {teacher[1]}"
        if tuple(student[2:]) != tuple(teacher[2:]):
            what += f" and a resize {student[2]}x{student[3]} to {teacher[2]}x{teacher[3]}"
        return what
    what = f"a linear layer {_width(student)} to {_width(teacher)}"
    if _alike(student, teacher) or places_in(student) == 1:
        return what
    every = "all tokens" if len(student) == 3 else "all positions"
    return f"the mean over {every}, then {what}"


def resize_map(feature: Tensor, size: tuple[int, int], expected: tuple[int, int]) -> Tensor:
    """Average down, interpolate up; an input of another size than expected keeps the ratio."""
    height, width = feature.shape[-2:]
    if (height, width) != expected:
        size = (round(height * size[0] / expected[0]), round(width * size[1] / expected[1]))
    if size[0] <= height and size[1] <= width:
        return F.adaptive_avg_pool2d(feature, size)
    return F.interpolate(feature, size, mode="bilinear", align_corners=False)


def shown(shape: Shape) -> str:
    """A shape as text: [B, 64, 8, 8]."""
    return "[" + ", ".join(["B", *(str(n) for n in shape[1:])]) + "]"


def _width(shape: Shape) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _mean(feature: Tensor) -> Tensor:
    """[B, C, H, W] or [B, N, D] averaged over its positions, a vector as it is."""
    if feature.dim() == 2:
        return feature
    return feature.mean((2, 3)) if feature.dim() == 4 else feature.mean(1)


def _alike(student: Shape, teacher: Shape) -> bool:
    """Two vectors, or equally many tokens."""
    return len(student) == len(teacher) < 4 and tuple(student[1:-1]) == tuple(teacher[1:-1])
