"""Detection as a task: COCO's average precision decides, chance is nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from kdcli.data.facts import DataFacts
from kdcli.errors import Diagnostic
from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.places import GT_FILE, HERE, Places
from kdcli.spec.schema import DataPart, ModuleSpec, Spec
from kdcli.tasks.detection.annotations import (
    categories_of,
    category_findings,
    training_categories,
    truth_findings,
)
from kdcli.tasks.detection.deploy import DetectorDeployment
from kdcli.tasks.detection.metrics import DetectionMeter, answers_with_boxes
from kdcli.tasks.detection.outputs import BoxesReport, KeptBoxes
from kdcli.tasks.task import Agreement, Deployment, Kept, Matching, Report, Uninformed


class Detection:
    """The task of detectors: measures `dt_bboxes` by COCO's average precision."""

    name = "detection"
    primary = by_chance = "AP"
    # Boxes decide what a detector computes.
    rehearses: Literal["fake", "real"] = "real"
    own_size = True
    why_zero = (
        "no object of the batch can be matched: are there boxes, and are the images not too thin or too "
        "small for the anchors?"
    )

    def __init__(
        self, gt_file: str | None = None, iou_types: Sequence[str] = ("bbox",), *, places: Places = HERE
    ) -> None:
        if list(iou_types) != ["bbox"]:
            raise ValueError(f"`iou_types` is [bbox], not {list(iou_types)}")
        self.gt_file = None if gt_file is None else str(places.find(gt_file, GT_FILE))
        self.agreement: Agreement | None = None
        self.matching: Matching | None = None
        self.kept: Kept | None = KeptBoxes()
        self.deploy: Deployment | None = DetectorDeployment(detection_sample)
        self.report: Report | None = BoxesReport(self.meter)
        self.uninformed: Uninformed | None = None

    def modules(self, spec: Spec) -> tuple[ModuleSpec, ...]:
        """`net` as it is written."""
        return spec.net

    def sample(
        self,
        part: DataPart | None,
        facts: DataFacts,
        *,
        channels: int = 3,
        modules: Iterable[ModuleSpec] = (),
        aligned: bool = False,
    ) -> dict[str, Any]:
        """Two images with a box each, of the size that the facts have; else tiny ones."""
        return detection_sample(modules, aligned=aligned, shape=facts.shape)

    def training_classes(self, spec: Spec, places: Places) -> dict[int, str] | None:
        """The names of the training file's categories by id."""
        return training_categories(spec, places)

    def agree(
        self, spec: Spec, train: DataFacts | None, test: DataFacts | None, places: Places
    ) -> list[Diagnostic]:
        """The heads against the training annotations, both files against each other and `gt_file`."""
        heads = [] if train is None else category_findings(spec, train)
        training = None if train is None else categories_of(train)
        return [*heads, *truth_findings(spec, training, test, places)]

    def check_truth(self, spec: Spec, test: DataFacts, places: Places) -> list[Diagnostic]:
        """The test annotations and `gt_file` against the training file, where that is there."""
        return truth_findings(spec, training_categories(spec, places), test, places)

    def fits(
        self, spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
    ) -> list[Diagnostic]:
        """Nothing: a detector's classes are compared with its annotations."""
        return []

    def meter(self, facts: DataFacts | None = None) -> DetectionMeter:
        """A fresh meter."""
        return DetectionMeter(self.gt_file, None if facts is None else facts.annotations)

    def answers(self, outputs: Mapping[str, Any]) -> bool:
        """Whether there are boxes that are more than proposals."""
        return answers_with_boxes(outputs)

    def judges(self, outputs: Mapping[str, Any], facts: DataFacts, *, weights: bool) -> bool:
        """Whether it answers with boxes, and has weights: a detector without is random, and says so."""
        return bool(facts.num_classes) and weights and self.answers(outputs)

    def chance(self, num_classes: int) -> float:
        """AP of a network that guesses."""
        return 0.0

    def near_chance(self, metrics: Mapping[str, float], num_classes: int, samples: int) -> bool:
        """Less than one percent, which no trained detector falls short of."""
        return metrics.get(self.primary, 0.0) < 1.0


BATCH = 2

SIZE = 128
"""Height and width; five halvings leave a map of 4x4."""

SSD_SIZE = 320
"""Height and width for torchvision's SSDs, which halve more often."""


def detection_sample(
    modules: Iterable[ModuleSpec] = (),
    *,
    aligned: bool = False,
    shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """Two images with a box each, as the `coco` dataset would give them; real but under a fake mode.

    modules: what is to run on them. aligned: as `runtime.aligned` says. shape: channels, height and width; else
    tiny ones, on which boxes and what is computed of them are proved with values.
    """
    # One from Python may be an SSD.
    large = any(m.type.startswith("torchvision.ssd") or m.type == FROM_PYTHON for m in modules)
    side = SSD_SIZE if large else SIZE
    channels, height, width = shape or (3, side, side)
    box = torch.tensor([[width / 8, height / 8, width / 2, height / 2, 1.0]])
    return {
        "image": torch.rand(BATCH, channels, height, width),
        "boxes": [box.clone() for _ in range(BATCH)],
        "ignores": [torch.zeros(0, 4) for _ in range(BATCH)],
        "image_info": [(float(height), float(width), 1.0, 1.0, float(height), float(width))] * BATCH,
        "indices": torch.arange(BATCH),
        "image_ids": list(range(BATCH)),
        "annotations": {
            "file": "",
            "samples": BATCH,
            "categories": (1,),
            "box_offset": 0 if aligned else 1,
        },
    }
