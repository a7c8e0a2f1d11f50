"""Post-processing of dense heads: losses while training, boxes in evaluation (and training, for an RPN)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdcli.models.detection.blocks import build_block, known_keys, needed
from kdcli.models.detection.boxes import offset_of
from kdcli.models.detection.losses import CLASS_LOSSES, IGNORED_TARGET, LOCATION_LOSSES
from kdcli.models.detection.proposals import DENSE_PREDICTORS, DensePredictor
from kdcli.models.detection.targets import ANCHOR_SUPERVISORS, AnchorTargets
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
        known_keys(cfg, "cfg", CFG_KEYS)
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
        anchors, scores, deltas = self._read(outputs)
        result: dict[str, Any] = {}
        if self.training:
            targets = self.supervisor.targets(torch.cat(anchors), outputs)
            result.update(self._losses(torch.cat(scores, 1), torch.cat(deltas, 1), targets))
        predictor = self.train_predictor if self.training else self.test_predictor
        if predictor is not None:
            found = predictor.predict(
                anchors, [self._scores(rows.detach()) for rows in scores], deltas, outputs["image_info"]
            )
            result.update(self._named(found))
        return result

    def scored(self, outputs: Outputs) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level anchors [K, 4], scores [B, K, C] of the foreground in 0..1, deltas [B, K, 4]."""
        anchors, logits, deltas = self._read(outputs)
        return anchors, [self._scores(rows) for rows in logits], deltas

    def _read(self, outputs: Outputs) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        preds = [(logits.float(), deltas.float()) for logits, deltas in outputs["preds"]]
        sizes = [(int(p[0].shape[2]), int(p[0].shape[3])) for p in preds]
        anchors = self.anchors.of_levels(sizes, outputs["strides"], preds[0][0].device)
        scores = [self._rows(logits, self._channels, class_first=self.class_first) for logits, _ in preds]
        return anchors, scores, [self._rows(moves, 4) for _, moves in preds]

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

    def _scores(self, rows: Tensor) -> Tensor:
        return rows.sigmoid() if self.cls_loss.activation == "sigmoid" else rows.softmax(-1)[..., 1:]

    def _losses(self, logits: Tensor, deltas: Tensor, targets: AnchorTargets) -> dict[str, Tensor]:
        classes, positive = targets.classes.flatten(), targets.positive.flatten()
        rows = logits.flatten(0, 1)
        class_count, location_count = self._counts(classes, positive)
        location = self.loc_loss(
            deltas.flatten(0, 1)[positive], targets.deltas.flatten(0, 1)[positive], location_count
        )
        return {
            f"{self.prefix}_cls_loss": self.cls_loss(rows, classes, class_count),
            f"{self.prefix}_loc_loss": location,
            f"{self.prefix}_accuracy": self._accuracy(rows.detach(), classes),
        }

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
