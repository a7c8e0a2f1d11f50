"""Specs of a few steps for the methods: fake images of 8 by 8, a student of half the teacher's width."""

from __future__ import annotations

from typing import Any

import yaml

from kdcli.spec.parse import ParsedSpec
from tests.training.runs import spec_of

TEACHER = {"allow_random": True, "allow_weak_teacher": True}
STEPS = 4


def network(widths: list[int], type: str = "cifar_resnet8", **kwargs: Any) -> dict[str, Any]:
    return {
        "name": "model",
        "type": type,
        "kwargs": {"num_classes": 4, "in_channels": 1, "widths": widths, **kwargs},
    }


def data(samples: int) -> dict[str, Any]:
    kwargs = {"num_samples": samples, "num_classes": 4, "shape": [1, 8, 8]}
    return {"dataset": {"type": "fake", "kwargs": {**kwargs, "transformer": [{"type": "to_tensor"}]}}}


def spec_with(mimic: dict[str, Any], *assignments: str, **more: Any) -> ParsedSpec:
    """A spec with this `mimic`, and other top-level keys where given."""
    spec = {
        "runtime": {"runner": {"type": "kd"}, "random_seed": 5},
        "net": network([2, 2, 4, 6]),
        "teacher0": network([4, 4, 6, 8]),
        "mimic": mimic,
        "dataset": {
            "train": data(32),
            "test": data(16),
            "batch_sampler": {"type": "base", "kwargs": {"batch_size": 8}},
        },
        "trainer": {
            "max_iter": STEPS,
            "log_freq": 2,
            "clip_grad_norm": 5.0,
            "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9}},
        },
        **more,
    }
    return spec_of(yaml.safe_dump(spec, sort_keys=False), *assignments)
