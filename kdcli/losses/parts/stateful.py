"""What losses with parameters share: hooks that a run calls beside `forward`, a regression to the teacher's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.parts.inputs import as_map, enough_values, map_shape, places_in, same_places, shown


class StatefulLoss(nn.Module):
    """A loss with parameters or buffers; each hook does nothing unless a loss overrides it.

    A loss that does says so in its record: `prepares`, `takes_over`, `replaces_end`.
    """

    def prepare(self, teacher: Tensor, labels: Tensor) -> None:
        """Take in the teacher's feature and the labels [B] of one batch, in a pass over the data before training."""

    def prepared(self) -> None:
        """Use what `prepare` took in: the pass over the data is over."""

    def inherit(self, earlier: Iterable[nn.Module]) -> bool:
        """Start from what losses of earlier stages have trained on the same layer, in order; whether one fitted."""
        return False

    def of_answer(self, answer: Tensor, teacher: Tensor) -> Tensor:
        """The loss where what this loss trains on the student's feature gives `answer`, in the teacher's shape.

        Of losses whose record says `constant`.
        """
        raise NotImplementedError(type(self).__name__)

    def student_end(self) -> nn.Module | None:
        """The student's new end, from its tapped map to logits; None: the student keeps its own."""
        return None


class ConvRegression(nn.Module):
    """A convolution, batch norm and (relu) ReLU; its kernel follows from the two sizes.

    Twice the teacher's height: 3×3 with stride 2. Half of it: transposed 4×4 with stride 2. Otherwise at
    least as large: a kernel of 1 + difference, without padding, which is 1×1 for equal sizes. A vector is one
    position, so that towards it the kernel is as large as the student's map. Tokens fit equally many tokens,
    as N×1 positions. Output [B, C, H, W] of the teacher. method: named in errors.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        method: str,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.method = method
        self.relu = relu
        same_places(student_shape, teacher_shape, method, averages=places_in(teacher_shape) == 1)
        _, s_channels, s_height, s_width = map_shape(student_shape, method)
        _, t_channels, t_height, t_width = map_shape(teacher_shape, method)
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if s_height == 2 * t_height and s_width == 2 * t_width:
            self.conv = nn.Conv2d(s_channels, t_channels, 3, stride=2, padding=1)
        elif 2 * s_height == t_height and 2 * s_width == t_width:
            self.conv = nn.ConvTranspose2d(s_channels, t_channels, 4, stride=2, padding=1)
        elif s_height >= t_height and s_width >= t_width:
            kernel = (1 + s_height - t_height, 1 + s_width - t_width)
            self.conv = nn.Conv2d(s_channels, t_channels, kernel)
        else:
            raise RunError.of(
                "KD450",
                f"`{method}` cannot bring {shown(student_shape)} to the larger {shown(teacher_shape)}",
                "name a student layer that is at least as large, or exactly half as large",
            )
        self.bn = nn.BatchNorm2d(t_channels)

    def forward(self, student: Tensor) -> Tensor:
        """The student's feature in the teacher's shape, as a map."""
        x: Tensor = self.conv(as_map(student, self.method))
        if self.training:
            enough_values(x.numel() // x.shape[1], self.method)
        x = self.bn(x)
        return x.relu() if self.relu else x
