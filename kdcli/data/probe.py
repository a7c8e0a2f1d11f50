"""A few pixels of a few samples as a training sees them: what data is known again by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.data.loaders import Loader

PROBED = 8
"""So many samples are looked at, evenly spread."""

PIXELS = 256
"""So many numbers of each."""

TOLERANCE = 1e-3


def probe_of(loader: Loader) -> Tensor | None:
    """float32 [n, pixels], the samples in their first view; None where they can't be read."""
    batch = loader.some(probed_ids(loader.facts.num_samples or 0))
    if not batch:
        return None
    pixels = batch["image"].flatten(1).float()
    places = torch.linspace(0, pixels.shape[1] - 1, min(PIXELS, pixels.shape[1])).long()
    return torch.as_tensor(pixels[:, places])


def probed_ids(samples: int) -> list[int]:
    """Which of so many samples are looked at."""
    ids: list[int] = np.unique(np.linspace(0, samples - 1, PROBED).astype(np.int64)).tolist()
    return ids


def other_pixels(kept: Any, probe: Tensor | None) -> list[int] | None:
    """The places in a probe of the samples that look otherwise than in the one kept; None where all may."""
    if kept is None or probe is None:
        return [] if kept is None and probe is None else None
    before = torch.as_tensor(kept)
    if before.shape != probe.shape:
        return None
    differs = ~((before - probe).abs().amax(1) <= TOLERANCE)
    return [int(place) for place in differs.nonzero()[:, 0]]
