"""A student without a trained head, exported as a backbone: the layers that learnt from a teacher, a pooled vector."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.layouts import Layout, part_of, read_as
from kdcli.distill.module_search import find_classifier
from kdcli.distill.taps import Taps, tensors_in
from kdcli.errors import RunError
from kdcli.models.network import Network
from kdcli.models.weight_files import read_weights
from kdcli.models.weights import fit_weights
from kdcli.spec.schema import LayoutSpec
from kdcli.tasks.task import Portable, Tensors, without_training_only

POOLED = "pooled"


class Backbone(Portable):
    """image [B, C, H, W] -> the features of its layers in order, then `pooled` [B, D].

    Maps are channels first; patch tokens whose grid is known are given as a map. layers: the taps, by the output's
    name. untrained: parameters that nothing has trained, which are no part of the exported state. Where these are the
    classifier's alone, `pooled` is what the classifier reads; else the mean of the last layer over its positions, or
    its class token.
    """

    inputs = ("image",)

    def __init__(
        self,
        net: Network,
        taps: Sequence[str],
        untrained: Collection[str],
        stated: Mapping[str, LayoutSpec] | None = None,
    ) -> None:
        super().__init__()
        without_training_only(net)
        self.net: Network = net
        self.untrained = frozenset(untrained)
        names = [f"features{number}" for number in range(len(taps))] if len(taps) > 1 else ["features"]
        self.layers = dict(zip(names, taps, strict=True))
        self.outputs = (*self.layers, POOLED)
        self.taps = Taps(net, taps, None, stated=stated)
        self.read: dict[str, Callable[[Tensor], Tensor]] = {}
        self.layouts: dict[str, Layout] = {}
        self.head: str | None = None
        self.eval()

    def learn(self, image: Tensor) -> None:
        """Find out on a batch how each layer is read, and whether the head's input is the pooled vector."""
        self.head = self._replaced_head(image)
        taps = [*self.layers.values(), *([] if self.head is None else [f"{self.head}:in"])]
        self.taps = Taps(self.net, taps, None, stated=self.taps.stated)
        with torch.no_grad(), self.taps:
            view = self.taps.learn({"image": image})
        for name, tap in self.layers.items():
            found, layouts = list(tensors_in(view.features[tap])), view.layouts_of(tap)
            if len(found) != 1:
                message = (
                    f"`{tap}` gives {len(found)} features, and an exported backbone has one of each layer"
                )
                raise RunError.of("KD762", message, f"name one of them in `mimic_name`: `{tap}[0]`")
            self.layouts[name] = layouts[0]

    def _replaced_head(self, image: Tensor) -> str | None:
        """The path of the classifier, where it alone is untrained; it is taken out, and hands on what it reads."""
        try:
            classifier = find_classifier(self.net, {"image": image})
        except RunError:
            return None
        path: str = next(name for name, module in self.net.named_modules() if module is classifier)
        own = {f"{path}.{name}" for name, _ in classifier.named_parameters()}
        if not self.untrained or not self.untrained <= own:
            return None
        parent, _, name = path.rpartition(".")
        setattr(self.net.get_submodule(parent), name, nn.Identity())
        return path

    def forward(self, image: Tensor) -> Tensors:
        """The features, then the pooled vector."""
        with self.taps:
            features = self.taps.view({"image": image}).features
        given = [next(tensors_in(features[tap])) for tap in self.layers.values()]
        layouts = list(self.layouts.values())
        shown = [
            read_as(one, layout, "grid") if layout.in_grid else one
            for one, layout in zip(given, layouts, strict=True)
        ]
        if self.head is None:
            return (*shown, pooled(given[-1], layouts[-1]))
        head = next(tensors_in(features[f"{self.head}:in"]))
        return (*shown, head if head.dim() == 2 else head.flatten(2).mean(2))

    def eager(self, *inputs: Tensor) -> Tensors:
        """The same."""
        if not self.layouts:
            self.learn(*inputs)
        return self.forward(*inputs)

    @property
    def says(self) -> Mapping[str, str]:  # type: ignore[override]
        """Which layers these are, and how their axes are read."""
        layouts = {name: described(self.layouts[name]) for name in self.layers}
        return {
            "kind": "backbone",
            "layers": json.dumps(self.layers),
            "layout": json.dumps({**layouts, POOLED: {"kind": "vector", "axes": ["batch", "channels"]}}),
        }

    def class_names(self, facts: Any) -> None:
        """None: features are no classes."""

    def state(self) -> dict[str, Tensor]:
        """The network's exported state without what nothing has trained."""
        state = super().state()
        names = self.net.names_in_file()
        return {name: state[name] for key, name in names.items() if key not in self.untrained}

    def load(self, path: Any) -> None:
        """Read a file that `state` was written to; raises RunError where something else is missing."""
        state = super().state()
        names = self.net.names_in_file()
        kept = {name: state[name] for key, name in names.items() if key in self.untrained}
        fit_weights(self.net, {**kept, **read_weights(path)}, f"`{path}`")


def pooled(feature: Tensor, layout: Layout) -> Tensor:
    """One vector [B, D] of a feature: a map's mean over positions, the class token, else the mean of the patches."""
    if feature.dim() == 4:
        return feature.mean((2, 3))
    if feature.dim() != 3:
        return feature.flatten(1)
    if layout.prefix is None:
        return feature.mean(1)
    return (
        part_of(feature, layout, "class")
        if layout.class_token
        else part_of(feature, layout, "patches").mean(1)
    )


def described(layout: Layout) -> dict[str, Any]:
    """How the axes of an exported feature are read, as plain data."""
    if layout.kind == "map" or layout.in_grid:
        return {
            "kind": "map",
            "axes": ["batch", "channels", "height", "width"],
            "grid": None if layout.grid is None else list(layout.grid),
            "stride": None if layout.stride is None else list(layout.stride),
        }
    if layout.kind == "tokens":
        return {"kind": "tokens", "axes": ["batch", "tokens", "channels"], "prefix": layout.prefix}
    return {"kind": "vector" if layout.kind != "unknown" else "unknown", "axes": ["batch", "channels"]}
