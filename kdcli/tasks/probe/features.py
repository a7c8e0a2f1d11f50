"""The pooled feature of a frozen network: which tensor is probed, and how it becomes one vector for each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.dry_run import restored_state
from kdcli.distill.layouts import Layout, part_of
from kdcli.distill.taps import Taps, tensors_in
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.schema import LayoutSpec

MAPS = "features"
"""The output by which backbones give their maps, the deepest last."""


class PooledFeature:
    """One vector [B, D] for each image from one tap of a network: `tap`, and `text`, how it is read.

    tap: as in `mimic_name`; None takes the input of the classifier that makes `logits`; of a network without one its
    output: `logits` (a network whose classifier was taken off gives the pooled vector by that name), else its last
    map or tokens. A map is averaged over its positions; of tokens the class token is taken, else the mean of the
    patches. batch: one with this network's pixels. where: the place of the tap in the spec, for errors. name: of the
    network. Raises SpecError KD265 where the feature, or how it is read, isn't known.
    """

    def __init__(
        self,
        net: nn.Module,
        tap: str | None,
        batch: Mapping[str, Any],
        *,
        where: SpecPath,
        name: str,
        stated: Mapping[str, LayoutSpec] | None = None,
    ) -> None:
        self.net, self.where, self.name = net, where, name
        self.tap = default_tap(net, batch, where=where, name=name) if tap is None else tap
        # To its end: a network that is spread over processes can't be left midway.
        self.taps = Taps(net, [self.tap], None, {self.tap: where}, stated=stated)
        with restored_state(net), self.taps:
            net.eval()
            view = self.taps.learn(batch)
        (self.layout,) = self._only(view.layouts_of(self.tap))
        vector = self.pooled(*self._only(tensors_in(view.features[self.tap])))
        self.width = int(vector.shape[1])

    @property
    def text(self) -> str:
        """`head.classifier:in` [512], or how a map or tokens become a vector."""
        how = {"map": "mean of the map, ", "tokens": "mean of the patches, "}.get(self.layout.kind, "")
        if self.layout.kind == "tokens" and self.layout.class_token:
            how = "class token, "
        return f"`{self.tap}` ({how}{self.width} numbers)"

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """float32 [B, D], without gradient; the network is in evaluation mode already."""
        with torch.no_grad(), self.taps:
            (feature,) = tensors_in(self.taps.view(batch).features[self.tap])
            return self.pooled(feature).float()

    def pooled(self, feature: Tensor) -> Tensor:
        """The vectors [B, D] of a feature of this layout."""
        layout = self.layout
        if layout.kind in ("vector", "logits"):
            return feature
        if layout.kind == "map":
            return feature.mean((2, 3))
        if layout.kind == "tokens" and layout.prefix is not None:
            if layout.class_token:
                return part_of(feature, layout, "class")
            return part_of(feature, layout, "patches").mean(1)
        raise self._unknown(layout, feature)

    def _only(self, found: Iterable[Any]) -> list[Any]:
        several = list(found)
        if len(several) == 1:
            return several
        raise SpecError.at(
            self.where,
            "KD265",
            f"`{self.tap}` of {self.name} gives {len(several)} features, and a probe reads one",
            f"name one of them: `feature: '{self.tap}[{max(len(several) - 1, 0)}]'`",
        )

    def _unknown(self, layout: Layout, feature: Tensor) -> SpecError:
        shape = "[" + ", ".join(["B", *(str(side) for side in feature.shape[1:])]) + "]"
        what = "tokens of which the prefix isn't known" if layout.kind == "tokens" else "no map that is known"
        return SpecError.at(
            self.where,
            "KD265",
            f"how `{self.tap}` of {self.name} becomes one vector for each image isn't known: it gives {shape}, {what}",
            "name a layer that gives a vector, a map or tokens: `kdcli inspect-features` shows their layout",
        )


def default_tap(net: nn.Module, batch: Mapping[str, Any], *, where: SpecPath, name: str) -> str:
    """The tap of a network's pooled vector before its head, as `PooledFeature` says; raises SpecError KD265."""
    made: list[tuple[str, Any]] = []
    paths = {id(module): path for path, module in net.named_modules()}

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        made.append((paths[id(module)], output))

    layers = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    handles = [module.register_forward_hook(note) for module in layers]
    try:
        with torch.no_grad(), restored_state(net):
            outputs = dict(net.eval()(batch))
    finally:
        for handle in handles:
            handle.remove()
    logits = next(tensors_in(outputs.get("logits")), None)
    makers = [path for path, output in made if logits is not None and output is logits]
    if makers:
        path = makers[-1]
        runs = sum(one == path for one, _ in made)
        return f"{path}:in" if runs == 1 else f"{path}:in[{runs - 1}]"
    if logits is not None:
        return "logits"
    usable = {key: list(tensors_in(value)) for key, value in outputs.items() if key not in batch}
    usable = {key: value for key, value in usable.items() if value and value[-1].dim() in (2, 3, 4)}
    if not usable:
        raise SpecError.at(
            where,
            "KD265",
            f"{name} has no classifier, and no output that could be probed",
            "say which layer: `feature: {" + name + ": <path>}` under `dataset.probe`",
        )
    key = MAPS if MAPS in usable else list(usable)[-1]
    return key if len(usable[key]) == 1 else f"{key}[{len(usable[key]) - 1}]"
