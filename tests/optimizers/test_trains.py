"""Each of United-Perception's optimizers, schedules and augmentations in a run: it trains, with finite losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdcli.records import Step
from tests.training.runs import SPEC, spec_of, train_all

BYTES = "dataset.train.dataset.kwargs.transformer=[{type: %s}, {type: to_tensor}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "assignment",
    [
        "trainer.optimizer={type: LAMB, kwargs: {lr: 0.01}}",
        "trainer.optimizer={type: LARS, kwargs: {lr: 1.0, momentum: 0.9}}",
        "trainer.optimizer={type: FusedFP16AdamW, kwargs: {lr: 0.001}}",
        "trainer.lr_scheduler={type: polylr, kwargs: {max_epoch: 2}, warmup_register_type: no_scale_lr}",
        "trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_epoch: 2, max_lr: 0.1}}",
        "trainer.lr_scheduler={type: CosineLREpochScheduler, kwargs: {T_max: 2}, warmup_register_type: no_scale_lr}",
        "trainer.lr_scheduler={type: EpochBasedCosineAnnealingLR, kwargs: {T_max: 2}}",
        BYTES % "torch_auto_augmentation",
        BYTES % "torch_random_augmentationIncre, kwargs: {n: 2, m: 9}",
        BYTES % "torch_randerase",
        BYTES % "torch_cutmix_mixup, kwargs: {num_classes: 4}",
    ],
)
def test_it_trains(tmp_path: Path, assignment: str) -> None:
    spec = spec_of(
        SPEC, f"saver.save_dir={tmp_path / 'run'}", "trainer.max_iter=4", "trainer.log_freq=1", assignment
    )
    steps = [record for record in train_all(spec) if isinstance(record, Step)]
    assert steps and all(math.isfinite(value) for step in steps for value in step.losses.values())
