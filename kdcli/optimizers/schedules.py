"""Learning-rate schedules with United-Perception's arguments and counting.

Each is a scheduler of torch. `last_epoch` counts what `IN_EPOCHS` of kdcli/training/optim.py says: steps where its
arguments in epochs are turned into steps, else whole epochs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch.optim import Optimizer, lr_scheduler


class ShiftedCosine(lr_scheduler.CosineAnnealingLR):
    """torch's cosine, started `warmup_iter` steps late: base_lr at that step, eta_min at T_max as before.

    With w = warmup_iter: lr = eta_min + (base_lr - eta_min) * (1 + cos(pi * (i - w) / (T_max - w))) / 2 at
    step i. Before w, which a warm-up is meant to cover, that is the cosine's rising side.
    Source: United-Perception's up/utils/model/lr_helper.py.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
        warmup_iter: int = 0,
    ) -> None:
        self.warmup_iter = warmup_iter
        super().__init__(optimizer, T_max, eta_min, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rates of all parameter groups at this step."""
        if not self.warmup_iter:
            return super().get_lr()
        done = (self.last_epoch - self.warmup_iter) / (self.T_max - self.warmup_iter)
        share = (1 + math.cos(math.pi * done)) / 2
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_lrs]


class CosineByEpoch(lr_scheduler.LRScheduler):
    """A cosine that moves once an epoch and begins `warm_epoch` epochs late, without becoming steeper.

    lr = eta_min + (base_lr - eta_min) * (1 + cos(pi * (e - warm_epoch) / T_max)) / 2 in epoch e, from 0. So the end
    at eta_min lies T_max epochs after warm_epoch.
    Source: `CosineLREpochScheduler` of United-Perception's up/utils/model/lr_helper.py.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: float,
        eta_min: float = 0.0,
        warm_epoch: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_max, self.eta_min, self.warm_epoch = T_max, eta_min, warm_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rates of all parameter groups in this epoch."""
        share = (1 + math.cos(math.pi * (self.last_epoch - self.warm_epoch) / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_lrs]


class CosineToShare(lr_scheduler.LRScheduler):
    """A cosine that moves once an epoch, from base_lr to the share `eta_min` of it.

    lr = base_lr * (eta_min + (1 - eta_min) * (1 + cos(pi * (e + offset_epoch) / T_max)) / 2) in epoch e, from 0.
    Source: `EpochBasedCosineAnnealingLR` of United-Perception's yolov5 plugin.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: float,
        eta_min: float = 0.0,
        offset_epoch: int = 0,
        last_epoch: int = -1,
    ) -> None:
        self.T_max, self.eta_min, self.offset_epoch = T_max, eta_min, offset_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rates of all parameter groups in this epoch."""
        share = (1 + math.cos(math.pi * (self.last_epoch + self.offset_epoch) / self.T_max)) / 2
        return [base * (self.eta_min + (1 - self.eta_min) * share) for base in self.base_lrs]


class Poly(lr_scheduler.LRScheduler):
    """The learning rate falls with a power of what is left of the run, to min_lr; it moves at every step.

    lr = min_lr + (base_lr - min_lr) * (1 - i / n) ** power at step i, where n is max_iter steps, or max_epoch epochs
    where max_iter is -1; min_lr after them. Raises ValueError where neither is given.
    Source: `polylr` of United-Perception's up/utils/model/lr_helper.py.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_epoch: float = -1,
        max_iter: int = -1,
        power: float = 1.0,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        length = max_epoch if max_iter == -1 else max_iter
        if length <= 0:
            raise ValueError("give `max_epoch`, in epochs, or `max_iter`, in steps")
        self.length, self.power, self.min_lr = length, power, min_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rates of all parameter groups at this step."""
        share = max(0.0, 1 - self.last_epoch / self.length) ** self.power
        return [self.min_lr + (base - self.min_lr) * share for base in self.base_lrs]


class OneCycle(lr_scheduler.OneCycleLR):
    """torch's OneCycleLR, whose length may be given in epochs: max_epoch.

    Source of `max_epoch`: `OneCycleLR` of United-Perception's up/utils/model/lr_helper.py, which has torch's cosine
    form in two phases.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        max_epoch: float | None = None,
    ) -> None:
        if max_epoch is not None:
            if total_steps is not None or epochs is not None:
                raise ValueError("give `max_epoch`, `total_steps` or `epochs`, not two of them")
            total_steps = int(max_epoch)
        super().__init__(
            optimizer,
            max_lr,
            total_steps=total_steps,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            cycle_momentum=cycle_momentum,
            base_momentum=base_momentum,
            max_momentum=max_momentum,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            three_phase=three_phase,
            last_epoch=last_epoch,
        )
