"""A made-up batch, as large as a check needs it: the shapes of the data and none of its values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kdcli.data.facts import DataFacts
from kdcli.engine.build import task_kind
from kdcli.spec.schema import DataPart, ModuleSpec, Spec

BATCH = 2
USUAL_SIZE = 224
"""Height and width where neither the spec nor the user says."""

DETECTION_SIZE = 128
"""Five halvings leave a map of 4x4."""

SSD_SIZE = 320
"""torchvision's SSDs halve so often that they need as much."""


def sample_of(spec: Spec, facts: DataFacts, channels: int = 3) -> dict[str, Any]:
    """A batch as the training data of a spec gives it; channels: where the data does not say."""
    if task_kind(spec) == "detection":
        modules = [*spec.net, *(module for teacher in spec.teachers.values() for module in teacher)]
        return detection_sample(modules, aligned=spec.runtime.aligned)
    return classification_sample(spec.dataset.train, facts, channels)


def channels_of(net: nn.Module) -> int:
    """How many channels the network's first convolution reads; 3 without one."""
    return next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 3)


def detection_sample(modules: Iterable[ModuleSpec] = (), *, aligned: bool = False) -> dict[str, Any]:
    """Two tiny real images with a box each, as the `coco` dataset would give them.

    Boxes decide what a detector computes, so nothing is fake. modules: what is to run on them. aligned: as
    `runtime.aligned` says.
    """
    side = SSD_SIZE if any(m.type.startswith("torchvision.ssd") for m in modules) else DETECTION_SIZE
    box = torch.tensor([[side / 8, side / 8, side / 2, side / 2, 1.0]])
    return {
        "image": torch.rand(BATCH, 3, side, side),
        "boxes": [box.clone() for _ in range(BATCH)],
        "ignores": [torch.zeros(0, 4) for _ in range(BATCH)],
        "image_info": [(float(side), float(side), 1.0, 1.0, float(side), float(side))] * BATCH,
        "indices": torch.arange(BATCH),
        "image_ids": list(range(BATCH)),
        "annotations": {
            "file": "",
            "samples": BATCH,
            "categories": (1,),
            "box_offset": 0 if aligned else 1,
        },
    }


def classification_sample(part: DataPart | None, facts: DataFacts, channels: int = 3) -> dict[str, Any]:
    """`image`, `labels`, `indices`; `mixed_labels` where the data is mixed.

    Fake under a fake mode, else real.
    """
    shape = facts.shape or (channels, USUAL_SIZE, USUAL_SIZE)
    batch: dict[str, Any] = {
        "image": torch.zeros(BATCH, *shape),
        "labels": torch.zeros(BATCH, dtype=torch.int64),
        "indices": torch.zeros(BATCH, dtype=torch.int64),
    }
    mixing = None if part is None else part.dataloader.kwargs.batch_fn
    if mixing is not None:
        classes = mixing.kwargs.get("num_classes", facts.num_classes or 1000)
        batch["mixed_labels"] = torch.full((BATCH, int(classes)), 1.0 / int(classes))
    return batch
