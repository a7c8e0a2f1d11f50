"""Classification heads: pooling and a linear classifier, losses on labels or mixed targets, predictions, peers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.errors import RunError, SpecError
from kdcli.losses.parts.reduce import times
from kdcli.models.balanced_losses import SoftmaxEql, SoftmaxEqlV2
from kdcli.models.construct import construct
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.check.components import refuse_misfits, types_of
from kdcli.spec.ranges import Positive, Share, TaskWeight, Width


class ClsHead(ViewModule):
    """Logits from one of the features.

    Reads `features[input_feature_idx]`: maps [B, C, H, W] (averaged over H and W with use_pool) or
    vectors [B, C]. Output `logits` [B, num_classes], or a list of them for a list of num_classes.
    in_plane: C; by default what the module before gives. dropout: rate before the classifier. classifier_cfg:
    {type: linear | norm_linear, kwargs}, or a list of them for a list of num_classes; linear by default.
    """

    def __init__(
        self,
        inplanes: int | list[int] | None = None,
        *,
        num_classes: Width | list[Width],
        in_plane: Width | None = None,
        input_feature_idx: int = -1,
        use_pool: bool = True,
        dropout: Share | None = None,
        classifier_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        found = inplanes[input_feature_idx] if isinstance(inplanes, list) else inplanes
        if in_plane is None and found is None:
            raise ValueError("in_plane is not given, and no module before says its width")
        if in_plane is not None and found is not None and in_plane != found:
            raise ValueError(f"in_plane is {in_plane}, but the module before gives {found} channels")
        width = in_plane if in_plane is not None else found
        assert width is not None
        self.width = width
        self.num_classes = num_classes
        self.input_feature_idx = input_feature_idx
        self.pool = nn.AdaptiveAvgPool2d(1) if use_pool else None
        self.drop = nn.Dropout(dropout) if dropout is not None else None
        self.classifier = build_classifier(width, num_classes, classifier_cfg)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        x = one_tensor(outputs["features"][self.input_feature_idx])
        if self.pool is not None:
            x = self.pool(x).flatten(1)
        if self.drop is not None:
            x = self.drop(x)
        return {"logits": self.logits(x)}

    def logits(self, x: Tensor) -> Tensor | list[Tensor]:
        """What the classifier makes of vectors [B, C]."""
        if isinstance(self.classifier, nn.ModuleList):
            return [layer(x) for layer in self.classifier]
        found: Tensor = self.classifier(x)
        return found


def one_tensor(feature: Tensor | list[Tensor]) -> Tensor:
    """A feature that is one tensor; raises RunError for the map and class token that a transformer gives together."""
    if isinstance(feature, Tensor):
        return feature
    raise RunError.of(
        "KD576",
        "the feature is a map and a class token together, which `vit_head` alone reads",
        "take `vit_head`",
    )


class NormedLinear(nn.Module):
    """Cosines of a vector and each class's weights, times a factor; no bias.

    tempearture (spelt as in United-Perception): the factor. `weight` is [in_features, out_features].
    """

    def __init__(self, in_features: int, out_features: int, *, tempearture: Positive = 30.0) -> None:
        super().__init__()
        self.factor = tempearture
        self.weight = nn.Parameter(F.normalize(torch.empty(in_features, out_features).uniform_(-1, 1), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_features] to [B, out_features]."""
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0) * self.factor


def build_classifier(
    width: int,
    num_classes: int | list[int],
    given: dict[str, Any] | list[dict[str, Any]] | None = None,
) -> nn.Module:
    """The last layer from `classifier_cfg`, several for a list of num_classes; ValueError where it is wrong."""
    if not isinstance(num_classes, list):
        if isinstance(given, list):
            raise ValueError("classifier_cfg is one mapping where num_classes is one number")
        return _classifier(width, num_classes, given)
    each = given if isinstance(given, list) else [given] * len(num_classes)
    if len(each) != len(num_classes):
        raise ValueError(
            f"classifier_cfg has {len(each)} entries for {len(num_classes)} heads: give one for each head"
        )
    return nn.ModuleList(_classifier(width, count, one) for count, one in zip(num_classes, each, strict=True))


def _classifier(width: int, classes: int, given: Mapping[str, Any] | None) -> nn.Module:
    if given is None:
        return _linear(width, classes)
    kind, kwargs = given.get("type"), dict(given.get("kwargs") or {})
    hints: dict[str, dict[str, Any]] = {"linear": {"bias": bool}, "norm_linear": {"tempearture": Positive}}
    if not isinstance(kind, str) or kind not in hints or set(given) - {"type", "kwargs"}:
        raise ValueError(
            f"classifier_cfg is {{type, kwargs}} with a type of {', '.join(hints)}, not {dict(given)}"
        )
    for key, fact in (("in_features", width), ("out_features", classes)):
        if kwargs.pop(key, fact) != fact:
            raise ValueError(f"classifier_cfg: {key} is {fact} here; leave it out")
    for key in kwargs:
        if key not in hints[kind]:
            raise ValueError(
                f"classifier_cfg `{kind}` has no argument `{key}`; it takes {', '.join(hints[kind])}"
            )
    refuse_misfits(kwargs, hints[kind], "classifier_cfg.kwargs")
    return _linear(width, classes, **kwargs) if kind == "linear" else NormedLinear(width, classes, **kwargs)


def _linear(width: int, classes: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(width, classes, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def cross_entropy(logits: Tensor, targets: Tensor, *, loss_weight: TaskWeight = 1.0) -> Tensor:
    """Cross entropy in nats, mean over the batch.

    logits [B, K]; targets: classes [B] int64 or probabilities [B, K].
    """
    return times(F.cross_entropy(logits, targets), loss_weight)


def label_smooth_ce(
    logits: Tensor,
    targets: Tensor,
    *,
    smooth_ratio: Share,
    num_classes: Width,
    loss_weight: TaskWeight = 1.0,
) -> Tensor:
    """Cross entropy to (1 − s) of the target and s/K for every class, mean over the batch.

    logits [B, K]; targets: classes [B] int64 or probabilities [B, K]; s is smooth_ratio.
    Source: "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.
    """
    if logits.shape[1] != num_classes:
        raise RunError.of(
            "KD417",
            f"label_smooth_ce has `num_classes: {num_classes}`, but there are {logits.shape[1]} logits",
            "give the loss and the head the same number of classes",
        )
    smooth = soft_targets(targets, num_classes, logits) * (1 - smooth_ratio) + smooth_ratio / num_classes
    return F.cross_entropy(logits, smooth) * loss_weight


def bce(logits: Tensor, targets: Tensor, *, bias: bool = False, loss_weight: TaskWeight = 1.0) -> Tensor:
    """Binary cross entropy of each class in nats, mean over batch and classes.

    logits [B, K]; targets: classes [B] int64 or probabilities [B, K]. bias: with probabilities,
    the logits are lowered by log K and the mean is multiplied by K.
    """
    probabilities = soft_targets(targets, logits.shape[1], logits)
    scale = logits.shape[1] if bias and targets.ndim == 2 else 1
    loss = F.binary_cross_entropy_with_logits(logits - math.log(scale), probabilities)
    return loss * scale * loss_weight


def soft_targets(targets: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Targets (classes [B] or probabilities [B, K]) as probabilities [B, K]."""
    if targets.ndim == 2:
        return targets.to(like.dtype)
    # A scatter, as one_hot checks its input's values and so waits for the device.
    zeros = torch.zeros((targets.shape[0], num_classes), dtype=like.dtype, device=like.device)
    return zeros.scatter(1, targets.view(-1, 1), 1.0)


CLS_LOSSES: dict[str, Callable[..., Any]] = {
    "softmax_cross_entropy": cross_entropy,
    "ce": cross_entropy,
    "stce": cross_entropy,
    "label_smooth_ce": label_smooth_ce,
    "bce": bce,
    "softmax_eql": SoftmaxEql,
    "softmax_eqlv2": SoftmaxEqlV2,
}
"""The task's losses; a class is built with its options and has a state."""

ClsLoss = Callable[[Tensor, Tensor], Tensor]


def build_cls_loss(spec: Mapping[str, Any]) -> ClsLoss:
    """The loss of `{type, kwargs}` with its arguments bound; raises ValueError naming what is wrong."""
    kind, kwargs = spec.get("type"), dict(spec.get("kwargs") or {})
    if kind not in CLS_LOSSES or set(spec) - {"type", "kwargs"}:
        raise ValueError(
            f"cls_loss is {{type, kwargs}} with a type of {', '.join(CLS_LOSSES)}, not {dict(spec)}"
        )
    loss = CLS_LOSSES[kind]
    options = {n: p for n, p in inspect.signature(loss).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in kwargs:
        if name not in options:
            raise ValueError(f"cls_loss `{kind}` has no argument `{name}`; it takes {', '.join(options)}")
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in kwargs:
            raise ValueError(f"cls_loss `{kind}` needs `{name}`")
    if isinstance(loss, type):
        refuse_misfits(kwargs, types_of(vars(loss).get("__init__", SoftmaxEql.__init__)), "cls_loss.kwargs")
        made: ClsLoss = loss(**kwargs)
        return made
    refuse_misfits(kwargs, types_of(loss), "cls_loss.kwargs")
    return partial(loss, **kwargs)


HITS = "accuracy"


class ClsPostProcess(ViewModule):
    """Classification's task loss while training, predictions in evaluation; reads `logits` [B, K].

    Training: `loss`, or `<prefix>_loss`, a scalar of cls_loss on `mixed_labels` [B, K] where the batch has them, else
    `labels` [B]; and `accuracy`, the share of top-1 hits, without gradient. Evaluation: `preds` [B]
    int64 and `scores` [B, K], the softmax. cls_loss: {type, kwargs} of models/heads.py, cross
    entropy by default. Several heads (a list of logits) read `labels` [B, heads], or `mixed_labels` [B, heads, K]: the
    sum of their losses, the mean of their accuracies, lists of predictions. They share one cls_loss, or a list has
    one for each. Images without labels have no loss. counts_hits: false leaves `accuracy` out, where nobody reads it.
    """

    counts_hits: bool = True

    def __init__(
        self, *, cls_loss: dict[str, Any] | list[dict[str, Any]] | None = None, prefix: str | None = None
    ) -> None:
        super().__init__()
        self.each = isinstance(cls_loss, list)
        specs = cls_loss if isinstance(cls_loss, list) else [cls_loss or {"type": "ce"}]
        if not specs:
            raise ValueError("cls_loss is an empty list")
        self._losses = [build_cls_loss(spec) for spec in specs]
        # Those with a state are modules, by United-Perception's names.
        modules = {str(n): loss for n, loss in enumerate(self._losses) if isinstance(loss, nn.Module)}
        if modules:
            self.cls_loss = nn.ModuleDict(modules) if self.each else modules["0"]
        self.prefix = prefix

    def uninformed(self, shares: Tensor, *, mixed: bool = False) -> float | None:
        """`uninformed_loss` of the post-process's own loss; None of several, or of one with a state."""
        (loss, *others) = self._losses
        return (
            uninformed_loss(loss, shares, mixed=mixed) if isinstance(loss, partial) and not others else None
        )

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `logits` and, in training, the labels."""
        logits = outputs["logits"]
        several = isinstance(logits, list | tuple)
        heads: list[Tensor] = list(logits) if several else [logits]
        if not self.training:
            preds = [head.argmax(1) for head in heads]
            scores = [head.softmax(1) for head in heads]
            return {"preds": preds, "scores": scores} if several else {"preds": preds[0], "scores": scores[0]}
        if "labels" not in outputs:
            return {}
        labels: Tensor = outputs["labels"]
        if self.each and len(self._losses) != len(heads):
            message = f"`cls_loss` lists {len(self._losses)} losses, and the head gives {len(heads)} logits"
            raise RunError.of("KD417", message, "write one loss for each of `num_classes`, or one for all")
        if several and (labels.ndim != 2 or labels.shape[1] != len(heads)):
            count = labels.shape[1] if labels.ndim == 2 else 1
            message = f"the head gives {len(heads)} logits, and a sample has {count} label{'s' * (count > 1)}"
            raise RunError.of(
                "KD584", message, "write `label: [...]` with one for each head in the meta file"
            )
        own_labels = list(labels.unbind(1)) if several else [labels]
        mixed = outputs.get("mixed_labels")
        targets = own_labels
        if mixed is not None:
            targets = list(mixed.unbind(1)) if several else [mixed]
        losses = self._losses if self.each else self._losses * len(heads)
        parts = [loss(head, target) for loss, head, target in zip(losses, heads, targets, strict=True)]
        name = "loss" if self.prefix is None else f"{self.prefix}_loss"
        if not self.counts_hits:
            return {name: sum(parts[1:], parts[0])}
        hits = [
            (head.detach().argmax(1) == label).float().mean()
            for head, label in zip(heads, own_labels, strict=True)
        ]
        return {name: sum(parts[1:], parts[0]), HITS: sum(hits[1:], hits[0]) / len(hits)}


def uninformed_loss(loss: partial[Tensor], shares: Tensor, *, mixed: bool = False) -> float:
    """The loss, as build_cls_loss gives it, of the best answer that is the same for every image.

    shares [K]: of each class among the targets, sum 1. mixed: whether targets are probabilities. For cross entropy that
    is the entropy of the (smoothed) shares, for bce the mean of each class's own, times the loss's weight.
    """
    shares = shares.double()
    options = loss.keywords
    if loss.func is bce:
        scale = len(shares) if options.get("bias") and mixed else 1
        value = -(torch.xlogy(shares, shares) + torch.xlogy(1 - shares, 1 - shares)).mean() * scale
    else:
        smooth, classes = options.get("smooth_ratio", 0.0), options.get("num_classes", len(shares))
        shares = F.pad(shares, (0, classes - len(shares))) * (1 - smooth) + smooth / classes
        value = -torch.xlogy(shares, shares).sum()
    return float(value) * float(options.get("loss_weight", 1.0))


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
