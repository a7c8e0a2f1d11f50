"""Made-up images with labels: the shapes of the data and none of its values."""

from __future__ import annotations

from typing import Any

import torch

from kdcli.data.facts import DataFacts
from kdcli.spec.plugins import mixes_labels
from kdcli.spec.schema import DataPart

BATCH = 2

USUAL_SIZE = 224
"""Height and width where neither the spec nor the user says."""


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
    if mixing is not None and mixes_labels(mixing):
        classes = mixing.kwargs.get("num_classes", facts.num_classes or 1000)
        batch["mixed_labels"] = torch.full((BATCH, int(classes)), 1.0 / int(classes))
    return batch
