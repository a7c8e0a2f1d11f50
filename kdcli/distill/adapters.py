"""The trainable map from a student feature to a teacher feature, sized from the real shapes.

An adapter is made with the shapes of both features (batch first; the batch size is not looked at)
and turns [B, *student] into [B, *teacher]. Maps are [B, C, H, W], tokens [B, N, D], vectors [B, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.errors import SpecError, SpecPath
from kdcli.spec.schema import AdapterSpec

Shape = Sequence[int]


def build_adapter(spec: AdapterSpec, student: Shape, teacher: Shape, path: SpecPath) -> nn.Module:
    """The adapter that `spec` names; raises SpecError where it can't join these shapes."""
    from kdcli.distill import ADAPTERS

    try:
        module = ADAPTERS[spec.type].load()(student, teacher, **spec.kwargs)
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
    """Height and width only, nothing trained: maps with equal channels."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        if len(student) != 4 or len(teacher) != 4 or student[1] != teacher[1]:
            raise ValueError(f"joins maps of equal channels, not {shown(student)} and {shown(teacher)}")
        self.size = (teacher[2], teacher[3])
        self.student_size = (student[2], student[3])

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C, H, W] -> [B, C, teacher's H, teacher's W]."""
        return resize_map(feature, self.size, self.student_size)


class TokenAdapter(nn.Module):
    """Between unlike layouts or counts of tokens: linear over D, then resampled over positions.

    A map [B, C, H, W] counts as H*W tokens of width C; towards a map the tokens are laid out in the
    teacher's H*W grid. Positions are resampled linearly along the sequence.
    """

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.linear = nn.Linear(_width(student), _width(teacher))
        self.tokens = _tokens(teacher)
        self.as_map = (teacher[2], teacher[3]) if len(teacher) == 4 else None
        self.as_vector = len(teacher) == 2

    def forward(self, feature: Tensor) -> Tensor:
        """feature of the student's layout -> the teacher's layout."""
        if feature.dim() == 4:
            feature = feature.flatten(2).transpose(1, 2)
        elif feature.dim() == 2:
            feature = feature.unsqueeze(1)
        result: Tensor = self.linear(feature)
        if result.shape[1] != self.tokens:
            result = F.adaptive_avg_pool1d(result.transpose(1, 2), self.tokens).transpose(1, 2)
        if self.as_vector:
            return result.squeeze(1)
        if self.as_map is not None:
            return result.transpose(1, 2).reshape(len(result), -1, *self.as_map)
        return result


class AutoAdapter(nn.Module):
    """What fits: conv for two maps, linear for vectors and tokens, tokens for unlike layouts."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.adapter: nn.Module
        if len(student) == len(teacher) == 4:
            self.adapter = ConvAdapter(student, teacher)
        elif len(student) == len(teacher) and student[1:-1] == teacher[1:-1]:
            self.adapter = LinearAdapter(student, teacher)
        elif {len(student), len(teacher)} <= {2, 3, 4}:
            self.adapter = TokenAdapter(student, teacher)
        else:
            raise ValueError(f"no map joins {shown(student)} and {shown(teacher)}")

    def forward(self, feature: Tensor) -> Tensor:
        """The student's feature in the teacher's shape."""
        result: Tensor = self.adapter(feature)
        return result


def adapter_that_fits(student: Shape, teacher: Shape) -> str:
    """A help line: the line to paste into the job, and what it makes of these shapes."""
    if len(student) == len(teacher) == 4:
        what = f"a 1x1 convolution {student[1]} to {teacher[1]}"
        if tuple(student[2:]) != tuple(teacher[2:]):
            what += f" and a resize {student[2]}x{student[3]} to {teacher[2]}x{teacher[3]}"
    elif len(student) == len(teacher) and tuple(student[1:-1]) == tuple(teacher[1:-1]):
        what = f"a linear layer {student[-1]} to {teacher[-1]}"
    elif {len(student), len(teacher)} <= {2, 3, 4}:
        what = f"a linear layer {_width(student)} to {_width(teacher)}, then positions resampled"
    else:
        return "no adapter joins them: name other layers (`kdcli inspect-features SPEC --pairs`)"
    return f"add this line to the job ({what})\nadapter: auto"


def resize_map(feature: Tensor, size: tuple[int, int], expected: tuple[int, int]) -> Tensor:
    """Average down, interpolate up; an input of another size than expected keeps the ratio."""
    height, width = feature.shape[-2:]
    if (height, width) != expected:
        size = (round(height * size[0] / expected[0]), round(width * size[1] / expected[1]))
    if size[0] <= height and size[1] <= width:
        return F.adaptive_avg_pool2d(feature, size)
    return F.interpolate(feature, size, mode="bilinear", align_corners=False)


def shown(shape: Shape) -> str:
    """A shape as the user reads it: [B, 64, 8, 8]."""
    return "[" + ", ".join(["B", *(str(n) for n in shape[1:])]) + "]"


def _width(shape: Shape) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _tokens(shape: Shape) -> int:
    return {2: 1, 3: shape[1]}.get(len(shape)) or shape[2] * shape[3]
