"""A network that learns beside the student: for mutual learning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdcli.errors import SpecError
from kdcli.models.construct import construct
from kdcli.models.heads import build_cls_loss
from kdcli.models.module import Outputs, ViewModule


class Peer(ViewModule):
    """A whole classifier with a loss of its own, run while training and left out of the exported student.

    Reads `image` and the labels. Outputs `<prefix>_logits` [B, K] and `<prefix>_loss`, one of the task's
    losses; nothing in evaluation. network: the type of a whole model (`cifar_resnet8`,
    `torchvision.resnet18`), kwargs: its arguments; cls_loss: as in base_cls_postprocess. Several peers
    need a prefix each.
    Source: "Deep Mutual Learning", arXiv:1706.00384.
    """

    training_only: ClassVar[bool] = True

    def __init__(
        self,
        *,
        network: str,
        kwargs: dict[str, Any] | None = None,
        prefix: str = "peer",
        cls_loss: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            self.net = construct(network, kwargs or {}, {}, path=())
        except SpecError as error:
            raise ValueError(f"network `{network}`: {error.diagnostics[0].message}") from None
        if isinstance(self.net, ViewModule):
            raise ValueError(f"`{network}` is a part of a network, and a peer is a whole model")
        self.prefix = prefix
        self._loss = build_cls_loss(cls_loss or {"type": "ce"})

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`, and `mixed_labels` or `labels`."""
        if not self.training:
            return {}
        logits: Tensor = self.net(outputs["image"])
        mixed = outputs.get("mixed_labels")
        loss = self._loss(logits, outputs["labels"] if mixed is None else mixed)
        return {f"{self.prefix}_logits": logits, f"{self.prefix}_loss": loss}
