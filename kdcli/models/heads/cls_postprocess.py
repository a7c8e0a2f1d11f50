"""Classification's task loss while training, predictions in evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdcli.models.heads.cls_losses import cls_loss as build_loss
from kdcli.models.module import Outputs, ViewModule


class ClsPostProcess(ViewModule):
    """Reads `logits` [B, K].

    Training: `loss`, a scalar of cls_loss on `mixed_labels` [B, K] where the batch has them, else
    `labels` [B]; and `accuracy`, the share of top-1 hits, without gradient. Evaluation: `preds` [B]
    int64 and `scores` [B, K], the softmax. cls_loss: {type, kwargs} of heads/cls_losses.py, cross
    entropy by default. Several heads (a list of logits) read `labels` [B, heads]: the sum of their
    losses, the mean of their accuracies, lists of predictions.
    """

    def __init__(self, *, cls_loss: dict[str, Any] | None = None, prefix: str | None = None) -> None:
        super().__init__()
        self._loss = build_loss(cls_loss or {"type": "ce"})
        self.prefix = prefix

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `logits` and, in training, the labels."""
        logits = outputs["logits"]
        several = isinstance(logits, list | tuple)
        heads: list[Tensor] = list(logits) if several else [logits]
        if not self.training:
            preds = [head.argmax(1) for head in heads]
            scores = [head.softmax(1) for head in heads]
            return {"preds": preds, "scores": scores} if several else {"preds": preds[0], "scores": scores[0]}
        labels: Tensor = outputs["labels"]
        wanted = list(labels.unbind(1)) if several else [labels]
        mixed = outputs.get("mixed_labels")
        targets = [mixed] if mixed is not None and not several else wanted
        parts = [self._loss(head, target) for head, target in zip(heads, targets, strict=True)]
        hits = [
            (head.detach().argmax(1) == label).float().mean()
            for head, label in zip(heads, wanted, strict=True)
        ]
        return {"loss": sum(parts[1:], parts[0]), "accuracy": sum(hits[1:], hits[0]) / len(hits)}
