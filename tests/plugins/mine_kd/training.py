"""An optimizer, a scheduler and a metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from kdcli.data.facts import DataFacts


class Signs(Optimizer):
    """Steps of one size, in the direction of a running mean of the gradient."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.001, *, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["beta"])
                    p.add_(mean.sign(), alpha=-group["lr"])


class Halving(lr_scheduler.LRScheduler):
    """Half the lr every few epochs."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1, *, every: int = 1) -> None:
        self.every = every
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [base * 0.5 ** (self.last_epoch // self.every) for base in self.base_lrs]


class Recall:
    """Mean recall over the classes, in percent."""

    primary = "recall"

    def __init__(self, facts: DataFacts, *, smooth: float = 0.0) -> None:
        self.classes, self.smooth = facts.num_classes or 1, smooth
        self.right = torch.zeros(2, self.classes, dtype=torch.float64)

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        for label, answer in zip(batch["labels"].tolist(), outputs["logits"].argmax(1).tolist(), strict=True):
            self.right[:, label] += torch.tensor([float(label == answer), 1.0])

    def sums(self) -> Tensor:
        return self.right.flatten()

    def result(self, sums: Tensor) -> dict[str, float]:
        right, seen = sums.reshape(2, -1)
        return {"recall": 100.0 * float(((right + self.smooth) / (seen + self.smooth).clamp_min(1)).mean())}
