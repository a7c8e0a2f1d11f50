"""Similarity of the layers of two networks: linear CKA over small batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.analysis.layers import Layer
from kdcli.distill.taps import tensors_in
from kdcli.models.torch_modes import every_layer_runs

LAYERS = 12
FEW = 4
SMALLEST_BATCH = 4


class LayerSimilarity:
    """Linear CKA between every layer of one network and every layer of another.

    Batches of n ≥ 4 samples; the unbiased HSIC of each is summed, so that features are never kept.
    Source: "Do Wide and Deep Networks Learn the Same Things?", arXiv:2010.15327 (minibatch CKA);
    "Similarity of Neural Network Representations Revisited", arXiv:1905.00414.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.cross = torch.zeros(rows, columns, dtype=torch.float64)
        self.rows = torch.zeros(rows, dtype=torch.float64)
        self.columns = torch.zeros(columns, dtype=torch.float64)

    def update(self, rows: Sequence[Tensor], columns: Sequence[Tensor]) -> None:
        """Add one batch: the Gram matrix [n, n] of each layer's features."""
        ours, theirs = [_centred(gram) for gram in rows], [_centred(gram) for gram in columns]
        for i, one in enumerate(ours):
            self.rows[i] += (one * one).sum()
            for j, other in enumerate(theirs):
                self.cross[i, j] += (one * other).sum()
        for j, other in enumerate(theirs):
            self.columns[j] += (other * other).sum()

    def values(self) -> Tensor:
        """[rows, columns] float64 within 0..1; 0 where a layer is constant."""
        scale = (self.rows[:, None] * self.columns[None, :]).clamp_min(0.0).sqrt()
        return torch.where(scale > 0, self.cross / scale.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)


def gram(feature: Tensor) -> Tensor:
    """Inner products between the samples of a feature [n, ...]: [n, n] float64 on the CPU."""
    flat = feature.detach().flatten(1).float()
    product: Tensor = flat @ flat.T
    return product.double().cpu()


def _centred(gram: Tensor) -> Tensor:
    """The U-centred Gram matrix: the inner product of two of these is the unbiased HSIC but for a factor."""
    n = len(gram)
    assert n >= SMALLEST_BATCH, "a batch of fewer than 4 samples has no unbiased HSIC"
    bare = gram - torch.diag(gram.diagonal())
    means = bare.sum(0) / (n - 2)
    centred: Tensor = bare - means[:, None] - means[None, :] + bare.sum() / ((n - 1) * (n - 2))
    centred = centred - torch.diag(centred.diagonal())
    return centred / math.sqrt(n * (n - 3))


def grams_of(
    forward: Callable[[Mapping[str, Any]], Any],
    net: nn.Module,
    paths: Sequence[str],
    batch: Mapping[str, Any],
) -> list[Tensor]:
    """Run the network once; the Gram matrix of each layer's last output."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad(), every_layer_runs():
        for path in paths:

            def keep(_module: nn.Module, _args: Any, output: Any, path: str = path) -> None:
                # At once, in place of the feature: a dozen large features would not fit beside each other.
                found[path] = gram(next(tensors_in(output)))

            stack.callback(net.get_submodule(path).register_forward_hook(keep).remove)
        forward(batch)
    return [found[path] for path in paths]


def stage_layers(layers: Sequence[Layer], most: int = LAYERS) -> list[str]:
    """Layers at the level of stages, in order of execution: stems, stages or blocks, classifiers.

    Modules are opened, the largest first, until at least four layers stand side by side; norms and layers
    without parameters are left out; of more than `most` an even choice stays, with the first and the last.
    """
    by_path = {layer.path: layer for layer in layers}

    def below(path: str) -> list[str]:
        result: list[str] = []
        for other in by_path:
            if other.startswith(f"{path}.") and "." not in other[len(path) + 1 :]:
                result += [other] if _counts(by_path[other]) else below(other)
        return result

    chosen = [path for path in by_path if "." not in path]
    opened = True
    while opened:
        opened = False
        for path in sorted(chosen, key=lambda name: by_path[name].parameters, reverse=True):
            inner = below(path)
            if inner and ("." not in path or len(chosen) < FEW):
                at = chosen.index(path)
                chosen[at : at + 1] = inner
                opened = True
                break
    kept = sorted((path for path in chosen if _counts(by_path[path])), key=lambda path: by_path[path].order)
    if len(kept) <= most:
        return kept
    return [kept[round(index * (len(kept) - 1) / (most - 1))] for index in range(most)]


def _counts(layer: Layer) -> bool:
    """Whether the layer returns one feature worth comparing."""
    features = [size for size in layer.sizes if len(size) >= 2]
    norm = layer.leaf and "Norm" in layer.type
    return len(layer.sizes) == len(features) == 1 and layer.parameters > 0 and not norm
