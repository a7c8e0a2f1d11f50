"""Made-up images with boxes, for a check that needs no data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from kdcli.spec.schema import ModuleSpec

BATCH = 2

SIZE = 128
"""Height and width; five halvings leave a map of 4x4."""

SSD_SIZE = 320
"""torchvision's SSDs halve so often that they need as much."""


def detection_sample(modules: Iterable[ModuleSpec] = (), *, aligned: bool = False) -> dict[str, Any]:
    """Two tiny real images with a box each, as the `coco` dataset would give them.

    Boxes decide what a detector computes, so nothing is fake. modules: what is to run on them. aligned: as
    `runtime.aligned` says.
    """
    side = SSD_SIZE if any(m.type.startswith("torchvision.ssd") for m in modules) else SIZE
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
