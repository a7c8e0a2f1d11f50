"""What every loss that is a module shares: the hooks that a run calls beside `forward`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


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

    def student_end(self) -> nn.Module | None:
        """The student's new end, from its tapped map to logits; None: the student keeps its own."""
        return None
