"""Post-processing of dense heads: losses while training, boxes in evaluation (and training, for an RPN)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdcli.models.detection.assigners import ANCHOR_SUPERVISORS
from kdcli.models.detection.blocks import build_block, known_keys, needed
from kdcli.models.detection.boxes import offset_of, paired_iou
from kdcli.models.detection.losses import (
    CLASS_LOSSES,
    IGNORED_TARGET,
    LOCATION_LOSSES,
    Moved,
    SigmoidCrossEntropy,
    at_least_one,
)
from kdcli.models.detection.proposals import DENSE_PREDICTORS, DensePredictor
from kdcli.models.detection.targets import AnchorTargets, Answers
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, Range, Width

CFG_KEYS = ("cls_loss", "loc_loss", "anchor_generator", "roi_supervisor", "roi_predictor", "train", "test")


class RetinaPost(ViewModule):
    """Anchors against `preds`.

    Training outputs `<prefix>_cls_loss`, `<prefix>_loc_loss`, both divided by the number of positives over
    all processes, and `<prefix>_accuracy`; with a predictor under cfg.train `dt_bboxes` too. Evaluation
    outputs `dt_bboxes` [N, 7]: image, x1, y1, x2, y2, score, class from 1. cfg: see the key names in
    CFG_KEYS; the predictor stands in cfg, or apart in cfg.train and cfg.test. class_first: logits have the
    classes outermost. num_classes counts the background.
    """

    PREFIX: ClassVar[str] = "retina"
    needs_values = True
    MAPS: ClassVar[int] = 2
    KEYS: ClassVar[tuple[str, ...]] = CFG_KEYS

    def __init__(
        self,
        *,
        num_classes: Width,
        cfg: dict[str, Any],
        prefix: str | None = None,
        class_first: bool = False,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        known_keys(cfg, "cfg", self.KEYS)
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: at least 2, not {num_classes}")
        self.prefix = prefix or self.PREFIX
        self.num_classes, self.class_first, self.offset = num_classes, class_first, offset_of(aligned)
        self.anchors = build_block(
            needed(cfg, "cfg", "anchor_generator"),
            "cfg.anchor_generator",
            ANCHOR_GENERATORS,
            aligned=aligned,
        )
        self.supervisor = build_block(
            needed(cfg, "cfg", "roi_supervisor"),
            "cfg.roi_supervisor",
            ANCHOR_SUPERVISORS,
            offset=self.offset,
        )
        self.cls_loss = build_block(needed(cfg, "cfg", "cls_loss"), "cfg.cls_loss", CLASS_LOSSES)
        self.loc_loss = build_block(needed(cfg, "cfg", "loc_loss"), "cfg.loc_loss", LOCATION_LOSSES)
        self.train_predictor = self._predictor(cfg, "train") if "train" in cfg else None
        self.test_predictor = self._predictor(cfg, "test")

    def _predictor(self, cfg: dict[str, Any], part: str) -> DensePredictor:
        own = cfg.get(part) or {}
        known_keys(own, f"cfg.{part}", ("roi_predictor",))
        inner = "roi_predictor" in own
        where = f"cfg.{part}.roi_predictor" if inner else "cfg.roi_predictor"
        block = own["roi_predictor"] if inner else needed(cfg, "cfg", "roi_predictor")
        predictor: DensePredictor = build_block(
            block, where, DENSE_PREDICTORS, where=where, offset=self.offset
        )
        return predictor

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `preds`, `strides`, `image_info`; in training `boxes` and `ignores` too."""
        anchors, levels = self._read(outputs)
        result: dict[str, Any] = {}
        if self.training:
            answers = together(levels)
            detached = Answers(
                answers.logits.detach(),
                answers.deltas.detach(),
                None if answers.iou is None else answers.iou.detach(),
            )
            targets = self.supervisor.targets(anchors, outputs, detached)
            result.update(self._losses(torch.cat(anchors), answers, targets))
        predictor = self.train_predictor if self.training else self.test_predictor
        if predictor is not None:
            with torch.no_grad():
                scores = [self._scores(level) for level in levels]
            found = predictor.predict(
                anchors, scores, [level.deltas for level in levels], outputs["image_info"]
            )
            result.update(self._named(found))
        return result

    def scored(self, outputs: Outputs) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level anchors [K, 4], scores [B, K, C] of the foreground in 0..1, deltas [B, K, 4]."""
        anchors, levels = self._read(outputs)
        return anchors, [self._scores(level) for level in levels], [level.deltas for level in levels]

    def _read(self, outputs: Outputs) -> tuple[list[Tensor], list[Answers]]:
        preds = [tuple(maps.float() for maps in level) for level in outputs["preds"]]
        if len(preds[0]) != self.MAPS:
            raise ValueError(
                f"the head gives {len(preds[0])} maps of each level, and this takes {self.MAPS}: "
                "`retina_post_iou` needs a head with an IoU branch (RetinaHeadWithBNIOU), `retina_post` one without"
            )
        sizes = [(int(p[0].shape[2]), int(p[0].shape[3])) for p in preds]
        anchors = self.anchors.of_levels(sizes, outputs["strides"], preds[0][0].device)
        return anchors, [
            Answers(
                self._rows(level[0], self._channels, class_first=self.class_first),
                self._rows(level[1], 4),
                self._rows(level[2], 1)[..., 0] if len(level) > 2 else None,
            )
            for level in preds
        ]

    @property
    def _channels(self) -> int:
        return self.num_classes - int(self.cls_loss.activation == "sigmoid")

    def _rows(self, maps: Tensor, columns: int, *, class_first: bool = False) -> Tensor:
        """[B, A·c, H, W] to [B, H·W·A, c]; class_first: the maps are [B, c·A, H, W]."""
        batch, _, height, width = maps.shape
        anchors = self.anchors.num_anchors
        if maps.shape[1] != anchors * columns:
            raise ValueError(
                f"the head gives {maps.shape[1]} channels, not {anchors} anchors times {columns} values: "
                "check num_anchors and num_classes"
            )
        if class_first:
            maps = maps.view(batch, columns, anchors, height, width).transpose(1, 2)
        shaped = maps.reshape(batch, anchors, columns, height, width)
        return shaped.permute(0, 3, 4, 1, 2).reshape(batch, -1, columns)

    def _scores(self, answers: Answers) -> Tensor:
        """The foreground's scores [B, K, C] in 0..1."""
        if self.cls_loss.activation == "sigmoid":
            return answers.logits.sigmoid()
        return answers.logits.softmax(-1)[..., 1:]

    def _losses(self, anchors: Tensor, answers: Answers, targets: AnchorTargets) -> dict[str, Tensor]:
        classes, positive = targets.classes.flatten(), targets.positive.flatten()
        rows = answers.logits.flatten(0, 1)
        class_count, location_count = self._counts(classes, positive)
        # One wait for the device, for how many positives all images have.
        own = torch.nonzero(positive).flatten()
        moved = Moved(anchors[own % len(anchors)], self.offset)
        deltas, wanted = answers.deltas.flatten(0, 1)[own], targets.deltas.flatten(0, 1)[own]
        more: dict[str, Tensor] = {}
        if self.cls_loss.by_overlap:
            with torch.no_grad():
                shared = paired_iou(moved.by(deltas), moved.by(wanted), self.offset)
            more["overlaps"] = torch.zeros_like(rows[:, 0]).index_copy(0, own, shared)
        return {
            f"{self.prefix}_cls_loss": self.cls_loss(rows, classes, class_count, **more),
            **self._location_losses(deltas, wanted, moved, location_count, own, answers, targets),
            f"{self.prefix}_accuracy": self._accuracy(rows.detach(), classes),
        }

    def _location_losses(
        self,
        deltas: Tensor,
        wanted: Tensor,
        moved: Moved,
        count: Tensor,
        own: Tensor,
        answers: Answers,
        targets: AnchorTargets,
    ) -> dict[str, Tensor]:
        """deltas, wanted: [P, 4] of the positives, own: their rows of all. count: what the loss is divided by."""
        return {f"{self.prefix}_loc_loss": self.loc_loss(deltas, wanted, count, moved)}

    def _counts(self, classes: Tensor, positive: Tensor) -> tuple[Tensor | None, Tensor]:
        """What the two losses are divided by; None: the number of rows that count."""
        count = positive.sum()
        return count, count

    def _accuracy(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Top-1 accuracy in percent over the rows whose target is not ignored."""
        if self.cls_loss.activation == "sigmoid":
            best, which = rows.max(1)
            answer = torch.where(best > 0, which + 1, 0)
        else:
            answer = rows.argmax(1)
        counted = classes != IGNORED_TARGET
        return 100.0 * (counted & (answer == classes)).sum() / counted.sum().clamp(min=1)

    def _named(self, boxes: Tensor) -> dict[str, Any]:
        return {"dt_bboxes": boxes}


class RetinaPostIou(RetinaPost):
    """RetinaPost for a head with an IoU branch: scores are multiplied by its sigmoid; cfg.iou_branch_loss.

    Training outputs `<prefix>_iou_loss` too, over the positives and divided by their number. The location
    loss is divided by the sum of the supervisor's quality over the positives, at least 1, and an iou_loss is
    weighted by it. cfg.roi_supervisor has to give it (`atss` with use_iou). export_iou changes nothing here:
    an exported student multiplies.
    """

    MAPS = 3
    KEYS = (*CFG_KEYS, "iou_branch_loss")

    def __init__(
        self,
        *,
        num_classes: Width,
        cfg: dict[str, Any],
        prefix: str | None = None,
        class_first: bool = True,
        export_iou: bool = True,
        aligned: bool = False,
    ) -> None:
        super().__init__(
            num_classes=num_classes, cfg=cfg, prefix=prefix, class_first=class_first, aligned=aligned
        )
        where = "cfg.iou_branch_loss"
        self.iou_loss: SigmoidCrossEntropy = build_block(
            needed(cfg, "cfg", "iou_branch_loss"), where, {"sigmoid_cross_entropy": SigmoidCrossEntropy}
        )
        if self.cls_loss.activation != "sigmoid":
            raise ValueError("cfg.cls_loss of `retina_post_iou` is one of sigmoid scores")
        if getattr(self.supervisor, "quality", None) is None:
            raise ValueError(
                "cfg.roi_supervisor of `retina_post_iou` gives targets for the IoU branch: "
                "`atss` with `use_iou: true` or `use_centerness: true`"
            )

    def _scores(self, answers: Answers) -> Tensor:
        assert answers.iou is not None
        return super()._scores(answers) * answers.iou.sigmoid()[..., None]

    def _location_losses(
        self,
        deltas: Tensor,
        wanted: Tensor,
        moved: Moved,
        count: Tensor,
        own: Tensor,
        answers: Answers,
        targets: AnchorTargets,
    ) -> dict[str, Tensor]:
        assert answers.iou is not None and targets.quality is not None
        moved = replace(moved, weights=targets.quality)
        branch = answers.iou.flatten()[own]
        return {
            f"{self.prefix}_loc_loss": self.loc_loss(
                deltas, wanted, at_least_one(targets.quality.sum()), moved
            ),
            f"{self.prefix}_iou_loss": self.iou_loss.of_targets(branch, targets.quality, count),
        }


class RpnPost(RetinaPost):
    """RetinaPost for proposals: losses over the sampled anchors; boxes as `rpn_dt_bboxes` too."""

    PREFIX: ClassVar[str] = "rpn"

    def __init__(
        self, *, num_classes: Width, cfg: dict[str, Any], prefix: str | None = None, aligned: bool = False
    ) -> None:
        if num_classes != 2:
            raise ValueError(f"num_classes of an RPN is 2, not {num_classes}")
        super().__init__(num_classes=num_classes, cfg=cfg, prefix=prefix, aligned=aligned)

    def _counts(self, classes: Tensor, positive: Tensor) -> tuple[Tensor | None, Tensor]:
        count = (classes != IGNORED_TARGET).sum()
        return count, count

    def _named(self, boxes: Tensor) -> dict[str, Any]:
        return {"dt_bboxes": boxes, "rpn_dt_bboxes": boxes}


def together(levels: Sequence[Answers]) -> Answers:
    """The answers of all levels, one after the other."""
    iou = [level.iou for level in levels if level.iou is not None]
    return Answers(
        torch.cat([level.logits for level in levels], 1),
        torch.cat([level.deltas for level in levels], 1),
        torch.cat(iou, 1) if iou else None,
    )


AnchorRatio = Annotated[float, Range(more_than=0, at_most=1000)]
AnchorScale = Annotated[float, Range(more_than=0, at_most=65536)]


class HandCraftAnchors:
    """Anchors of given shapes around every position of every level.

    anchor_ratios: height/width. anchor_scales: side of a square anchor in strides. anchor_strides: of
    each level, for the first position's anchors alone; positions always lie the maps' strides apart. A
    position's anchors run over ratios first, scales within. aligned: centred at the position times the
    stride, sides exact; else centred at (stride - 1) / 2, the base box rounded to whole pixels, last
    pixels counted inside.
    """

    def __init__(
        self,
        anchor_ratios: list[AnchorRatio],
        anchor_scales: list[AnchorScale],
        anchor_strides: list[Count] | None = None,
        *,
        aligned: bool,
    ) -> None:
        if not anchor_ratios or not anchor_scales or min(*anchor_ratios, *anchor_scales) <= 0:
            raise ValueError("anchor_ratios and anchor_scales are lists of positive numbers")
        self.ratios, self.scales, self.strides = anchor_ratios, anchor_scales, anchor_strides
        self.aligned = aligned
        self.num_anchors = len(anchor_ratios) * len(anchor_scales)
        self._laid: dict[tuple[int, int, int, int, torch.device], Tensor] = {}

    def at_origin(self, stride: int) -> list[list[float]]:
        """The anchors of the first position, (x1, y1, x2, y2)."""
        boxes = []
        for ratio in self.ratios:
            width, height = stride / math.sqrt(ratio), stride * math.sqrt(ratio)
            if not self.aligned:
                width = float(round(width))
                height = float(round(width * ratio))
            for scale in self.scales:
                centre = 0.0 if self.aligned else 0.5 * (stride - 1)
                x, y = 0.5 * width * scale, 0.5 * height * scale
                if not self.aligned:
                    x, y = x - 0.5, y - 0.5
                boxes.append([centre - x, centre - y, centre + x, centre + y])
        return boxes

    def of_level(
        self, height: int, width: int, stride: int, device: torch.device, anchor_stride: int | None = None
    ) -> Tensor:
        """float32 [height·width·A, 4], row by row; positions first, anchors within.

        stride: between positions. anchor_stride: of the first position's anchors, the same by default.
        """
        anchor_stride = stride if anchor_stride is None else anchor_stride
        key = (height, width, stride, anchor_stride, device)
        if key not in self._laid:
            if len(self._laid) > 200:
                self._laid.clear()
            base = torch.tensor(self.at_origin(anchor_stride), dtype=torch.float32, device=device)
            y = torch.arange(height, device=device, dtype=torch.float32) * stride
            x = torch.arange(width, device=device, dtype=torch.float32) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shift = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).view(-1, 1, 4)
            self._laid[key] = (shift + base).view(-1, 4)
        return self._laid[key]

    def of_levels(
        self, sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
    ) -> list[Tensor]:
        """The anchors of each level from its (height, width) and the stride of its map."""
        strides = [int(s) for s in strides]
        of_anchors = strides if self.strides is None else self.strides
        for given, name in ((strides, "strides"), (of_anchors, "anchor_strides")):
            if len(given) < len(sizes):
                raise ValueError(f"{len(sizes)} levels need as many {name}, not {len(given)}")
        # Strides of levels beyond the head's are left over.
        return [
            self.of_level(h, w, stride, device, of_anchor)
            for (h, w), stride, of_anchor in zip(sizes, strides, of_anchors, strict=False)
        ]


ANCHOR_GENERATORS = {"hand_craft": HandCraftAnchors}
