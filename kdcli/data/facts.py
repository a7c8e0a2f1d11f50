"""What one side of the data looks like to the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Sizes and names of a dataset after its transforms; None is 'cannot be known from the spec'.

    shape is (channels, height, width) of one image as the networks see it; mean and std are those of
    the `normalize` transform, per channel, on the 0..1 scale. annotations: of detection data, what its
    batches say of it (kdcli.data.detection.coco). labelled: whether its samples have labels.
    """

    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    num_samples: int | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    annotations: Mapping[str, Any] | None = None
    labelled: bool | None = None
