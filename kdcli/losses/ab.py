"""Activation boundaries: on which side of zero each neuron is, with a margin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdcli.losses.parts.inputs import as_map, full_precision, map_shape
from kdcli.losses.parts.stateful import ConvRegression, StatefulLoss
from kdcli.spec.ranges import NonNegative


class ActivationBoundaries(StatefulLoss):
    """Squared margin violations of the student's pre-activations, summed and ÷ B (AB), × 3/1000.

    Where the teacher's neuron is off (t ≤ 0) the student's is driven below −margin, elsewhere above
    margin. Layer i of n weighs 2^(i+1−n): list them in the order of the network. A student layer of
    unlike channels or height goes through a trained convolution and batch norm (`ConvRegression`
    without ReLU). The authors train the student by this alone first, then for the task.
    Maps [B, C, H, W], equally many tokens [B, N, D] or vectors [B, D].
    Taps: what goes into the last ReLU of each stage (`<relu>:in`), for both networks.
    Source: "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    arXiv:1811.03233.
    """

    def __init__(
        self,
        student_shape: Sequence[Sequence[int]],
        teacher_shape: Sequence[Sequence[int]],
        *,
        margin: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.connectors = nn.ModuleList(
            nn.Identity()
            if map_shape(s, "ab")[1:] == map_shape(t, "ab")[1:]
            else ConvRegression(s, t, method="ab", relu=False)
            for s, t in zip(student_shape, teacher_shape, strict=True)
        )

    @full_precision
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """A scalar."""
        batch, last = len(teacher[0]), len(teacher) - 1
        losses = [
            2.0 ** (index - last) * self._violation(connector(as_map(s, "ab")), as_map(t, "ab"))
            for index, (connector, s, t) in enumerate(zip(self.connectors, student, teacher, strict=True))
        ]
        return sum(losses[1:], start=losses[0]) / batch / 1000 * 3

    def _violation(self, student: Tensor, teacher: Tensor) -> Tensor:
        on = teacher > 0
        too_high = (student + self.margin) ** 2 * (~on & (student > -self.margin))
        too_low = (student - self.margin) ** 2 * (on & (student <= self.margin))
        return (too_high + too_low).sum()
