"""Post-processing of the second stage: losses while training, boxes in evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kdcli.models.detection.blocks import build_block, known_keys, means_and_stds, needed, nms_threshold
from kdcli.models.detection.boxes import clip, decode, denormalized, nms_by_group, offset_of, quadruples
from kdcli.models.detection.losses import CLASS_LOSSES, LOCATION_LOSSES, Moved
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, Share


class BboxPredictor:
    """Boxes of every class: decoded, cut to the image, above bbox_score_thresh, NMS per class, top_n."""

    def __init__(
        self,
        bbox_normalize: Mapping[str, Any],
        bbox_score_thresh: Share,
        top_n: Literal[-1] | Count,
        share_location: bool,
        nms: Mapping[str, Any],
        *,
        offset: int,
    ) -> None:
        where = "cfg.bbox_predictor.kwargs"
        self.means, self.stds = means_and_stds(bbox_normalize, f"{where}.bbox_normalize")
        self.threshold, self.top_n, self.share_location = bbox_score_thresh, top_n, share_location
        self.nms, self.offset = nms_threshold(nms, f"{where}.nms"), offset

    @torch.no_grad()
    def predict(
        self, rois: Tensor, scores: Tensor, deltas: Tensor, image_info: Sequence[Sequence[float]], first: int
    ) -> Tensor:
        """float32 [N, 7]: image, x1, y1, x2, y2, score, class from 1; best first within an image.

        rois [R, >=5]; scores [R, K] in 0..1, columns from `first` on are foreground; deltas [R, 4·K] or
        [R, 4].
        """
        columns = scores.shape[1]
        boxes = decode(rois[:, 1:5].float(), denormalized(deltas, self.means, self.stds), self.offset)
        boxes = quadruples(boxes).expand(-1, columns, -1)
        labels = torch.arange(columns - first, device=scores.device) + 1
        found = []
        for image, info in enumerate(image_info):
            own = rois[:, 0] == image
            own_boxes = clip(boxes[own, first:].reshape(-1, 4), info, self.offset)
            score = scores[own, first:].flatten()
            label = labels.repeat(int(own.sum()))
            chosen = score > self.threshold
            own_boxes, score, label = own_boxes[chosen], score[chosen], label[chosen]
            kept = nms_by_group(own_boxes, score, label, self.nms, self.offset)
            if self.top_n >= 0:
                kept = kept[: self.top_n]
            image_column = torch.full_like(score, image)
            ends = torch.stack([score, label.to(score.dtype)], dim=1)
            found.append(torch.cat([image_column[:, None], own_boxes, ends], dim=1)[kept])
        return torch.cat(found)


BBOX_PREDICTORS = {"faster": BboxPredictor, "faster_multicls": BboxPredictor}


class BboxPost(ViewModule):
    """`bbox_preds` against targets, or to boxes.

    Training outputs `bbox_cls_loss` (mean over rois), `bbox_loc_loss` (sum over positives divided by the
    number of rois), both over all processes, and `bbox_accuracy` in percent. Evaluation outputs
    `dt_bboxes` [N, 7]: image, x1, y1, x2, y2, score, class from 1.
    """

    def __init__(self, *, cfg: dict[str, Any], aligned: bool = False) -> None:
        super().__init__()
        known_keys(cfg, "cfg", ("cls_loss", "loc_loss", "share_location", "bbox_normalize", "bbox_predictor"))
        self.cls_loss = build_block(needed(cfg, "cfg", "cls_loss"), "cfg.cls_loss", CLASS_LOSSES)
        self.loc_loss = build_block(needed(cfg, "cfg", "loc_loss"), "cfg.loc_loss", LOCATION_LOSSES)
        self.share_location = bool(cfg.get("share_location", False))
        if self.cls_loss.by_overlap:
            raise ValueError(
                "cfg.cls_loss of `bbox_post` is not `quality_focal_loss`, which is one of dense heads"
            )
        self.offset = offset_of(aligned)
        self.means, self.stds = [0.0] * 4, [1.0] * 4
        if "bbox_normalize" in cfg:
            self.means, self.stds = means_and_stds(cfg["bbox_normalize"], "cfg.bbox_normalize")
        self.predictor = build_block(
            needed(cfg, "cfg", "bbox_predictor"),
            "cfg.bbox_predictor",
            BBOX_PREDICTORS,
            offset=self.offset,
        )
        if self.predictor.share_location != self.share_location:
            raise ValueError("cfg.share_location and cfg.bbox_predictor.kwargs.share_location differ")
        self.first = 0 if self.cls_loss.activation == "sigmoid" else 1

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `bbox_preds`, `rois`, `recover_inds`, and the targets (training) or `image_info`."""
        logits, deltas = (pred.float() for pred in outputs["bbox_preds"])
        if not self.training:
            scores = logits.sigmoid() if self.first == 0 else logits.softmax(1)
            boxes = self.predictor.predict(outputs["rois"], scores, deltas, outputs["image_info"], self.first)
            return {"dt_bboxes": boxes}
        back = outputs["recover_inds"]
        logits, deltas = logits[back], quadruples(deltas[back])
        classes = outputs["cls_target"]
        column = torch.zeros_like(classes) if self.share_location else (classes + self.first - 1).clamp(min=0)
        moves = deltas.gather(1, column[:, None, None].expand(-1, 1, 4))[:, 0]
        count = torch.full((), len(classes), device=logits.device)
        boxes = outputs["rois"][back, 1:5].float()
        moved = Moved(boxes, self.offset, self.means, self.stds, weights=outputs["loc_weight"][:, 0])
        answer = logits.argmax(1) if self.first else torch.where(logits.amax(1) > 0, logits.argmax(1) + 1, 0)
        right = (answer == classes).sum()
        return {
            "bbox_cls_loss": self.cls_loss(logits, classes, count),
            "bbox_loc_loss": self.loc_loss(
                moves * outputs["loc_weight"], outputs["loc_target"], count, moved
            ),
            "bbox_accuracy": 100.0 * right / count.clamp(min=1),
        }
