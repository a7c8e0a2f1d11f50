"""Made-up images whose class can be learned, for trying a spec without its data."""

from __future__ import annotations

import numpy as np
import torch

from kdcli.data.draws import CONTENT, generator
from kdcli.data.sources import ArrayImages


def fake(
    train: bool,
    *,
    num_samples: int = 256,
    num_classes: int = 10,
    shape: list[int] = [3, 32, 32],  # noqa: B006
    noise: float = 0.2,
    seed: int | None = None,
) -> ArrayImages:
    """uint8 [num_samples, *shape]: a smooth pattern of the class, with Gaussian noise of its own.

    Patterns depend on num_classes and shape only, so that splits of different `seed` (0 for training, 1 for
    test by default) share them. Labels go round the classes. noise is the standard deviation, 1 being the
    whole range.
    """
    if len(shape) != 3 or min(shape) < 1 or num_samples < 1 or num_classes < 1:
        raise ValueError("`shape` must be [channels, height, width], and every size positive")
    channels, height, width = shape
    labels = np.arange(num_samples, dtype=np.int64) % num_classes
    rng = generator(0, 0, num_classes, stream=CONTENT)
    phase, turns = rng.random((2, num_classes, channels, 2, 1))
    y, x = np.arange(height) / height, np.arange(width) / width
    waves_y, waves_x = (
        np.cos(2 * np.pi * ((1 + 2 * turns[:, :, i]) * axis + phase[:, :, i])) for i, axis in ((0, y), (1, x))
    )
    patterns = 0.5 + 0.2 * (waves_y[:, :, :, None] + waves_x[:, :, None, :])
    grain = generator(
        int(not train) if seed is None else seed, 1, num_samples, stream=CONTENT
    ).standard_normal((num_samples, *shape), dtype=np.float32)
    pixels = np.clip(patterns[labels] + noise * grain, 0, 1)
    return ArrayImages(
        images=torch.from_numpy(np.rint(pixels * 255).astype(np.uint8)),
        labels=labels,
        num_classes=num_classes,
    )
