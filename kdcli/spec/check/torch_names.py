"""Optimizers and schedulers of torch that a spec can use, listed so that checking them needs no torch."""

from __future__ import annotations

OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SparseAdam",
)
"""LBFGS is not among them: it asks for the loss several times a step."""

SCHEDULERS = (
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "StepLR",
)
"""Those whose arguments are data: no functions, no schedulers of schedulers."""

HOOKS = ("auto_checkpoint", "auto_save_best", "train_val_logger")
"""United-Perception's hooks that kdcli serves."""
