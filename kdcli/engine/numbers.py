"""Numbers gone wrong: a NaN or Inf in a loss or a gradient never reaches the weights unseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.run import Run
from kdcli.engine.state import Progress
from kdcli.errors import RunError


class FiniteCheck:
    """Looks at the losses and gradients of every step before the optimizer uses them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.skipped = 0

    def passes(
        self,
        progress: Progress,
        parts: list[dict[str, Tensor]],
        parameters: list[nn.Parameter],
        group: list[Mapping[str, Any]],
    ) -> bool:
        """Whether the step may be taken; raises RunError KD730 where it may not and the spec says stop."""
        if self.run.scaler is not None:
            return True
        sums = torch.stack([torch.stack(list(part.values())).sum() for part in parts]).sum()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else sums
        good = bool(torch.isfinite(sums + norm))
        if self.run.processes.any(not good):
            return self._bad(progress, parts, group)
        return True

    def _bad(
        self, progress: Progress, parts: list[dict[str, Tensor]], group: list[Mapping[str, Any]]
    ) -> bool:
        trainer = self.run.spec.trainer
        self.skipped += 1
        if trainer.on_nonfinite == "skip" and self.skipped <= trainer.nonfinite_budget:
            return False
        wrong = sorted({name for part in parts for name, value in part.items() if not bool(value.isfinite())})
        what = f"the loss `{wrong[0]}`" if wrong else "a gradient"
        ids = [int(i) for batch in group for i in batch["indices"][:8].tolist()]
        raise RunError.of(
            "KD730",
            f"{what} is not finite at step {progress.step + 1} (samples {ids} ...)",
            "the last checkpoint is whole; lower the lr, clip gradients (`trainer.clip_grad_norm`) or look at these samples",
        )
