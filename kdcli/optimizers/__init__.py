"""Optimizers and learning-rate schedules that a spec may name and torch does not have; torch-free here."""

from __future__ import annotations

from kdcli.spec.tables import Target

OPTIMIZER_TARGETS = {
    "LAMB": Target("kdcli.optimizers.layer_wise:Lamb"),
    "LARS": Target("kdcli.optimizers.layer_wise:Lars"),
}
"""Of the names in `OPTIMIZERS` those that are no classes of torch.optim."""

SCHEDULER_TARGETS = {
    "CosineAnnealingLR": Target("kdcli.optimizers.schedules:ShiftedCosine"),
    "CosineLREpochScheduler": Target("kdcli.optimizers.schedules:CosineByEpoch"),
    "EpochBasedCosineAnnealingLR": Target("kdcli.optimizers.schedules:CosineToShare"),
    "OneCycleLR": Target("kdcli.optimizers.schedules:OneCycle"),
    "polylr": Target("kdcli.optimizers.schedules:Poly"),
}
"""Of the names in `SCHEDULERS` those that are not torch's, or are torch's with United-Perception's arguments."""
