"""Post-processing of dense heads: losses while training, boxes in evaluation (and training, for an RPN)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kdcli.models.detection.anchors import ANCHOR_GENERATORS
from kdcli.models.detection.blocks import build_block, known_keys, needed
from kdcli.models.detection.boxes import offset_of
from kdcli.models.detection.losses import CLASS_LOSSES, IGNORED_TARGET, LOCATION_LOSSES
from kdcli.models.detection.proposals import DENSE_PREDICTORS, DensePredictor
from kdcli.models.detection.targets import ANCHOR_SUPERVISORS, AnchorTargets
from kdcli.models.module import Outputs, ViewModule

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

    def __init__(
        self,
        *,
        num_classes: int,
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
        """Percent of the rows that count whose likeliest class is right."""
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
        self, *, num_classes: int, cfg: dict[str, Any], prefix: str | None = None, aligned: bool = False
    ) -> None:
        if num_classes != 2:
            raise ValueError(f"num_classes of an RPN is 2, not {num_classes}")
        super().__init__(num_classes=num_classes, cfg=cfg, prefix=prefix, aligned=aligned)

    def _counts(self, classes: Tensor, positive: Tensor) -> tuple[Tensor | None, Tensor]:
        count = (classes != IGNORED_TARGET).sum()
        return count, count

    def _named(self, boxes: Tensor) -> dict[str, Any]:
        return {"dt_bboxes": boxes, "rpn_dt_bboxes": boxes}
