"""Which module made which tensor: a teacher's classifier, the norm behind a feature."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.preserve import preserved
from kdcli.distill.taps import Tap
from kdcli.errors import RunError


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that no optimizer, mode or checkpoint of the original reaches."""
    # Tensors are cloned beforehand: deepcopy asks for their memory, which fake ones do not have.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().clone()) for p in module.parameters()}
    memo |= {id(b): b.detach().clone() for b in module.buffers()}
    return copy.deepcopy(module, memo).eval().requires_grad_(False)


def find_classifier(net: nn.Module, batch: Mapping[str, Any]) -> nn.Module:
    """The linear (or 1x1 convolution) whose output is the network's `logits`.

    Raises RunError KD433 where no single layer makes them.
    """
    made: list[tuple[Any, nn.Module]] = []

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        made.append((output, module))

    handles = [
        module.register_forward_hook(note)
        for module in net.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        with torch.no_grad(), preserved(net):
            logits = net.eval()(batch).get("logits")
    finally:
        for handle in handles:
            handle.remove()
    makers = [module for output, module in made if output is logits]
    if not makers:
        raise RunError.of(
            "KD433",
            "this method needs the teacher's classifier, and no single layer of the teacher makes its logits",
            "use a teacher that ends with a linear classifier",
        )
    return makers[-1]


def find_norm(net: nn.Module, tap_text: str) -> nn.Module:
    """The BatchNorm that stands right before a tapped pre-activation feature.

    The last BatchNorm among the children of the block that holds the tapped layer; a tapped
    BatchNorm is itself. Raises RunError KD434 where there is none.
    """
    path = Tap.parse(tap_text).path
    module = net.get_submodule(path)
    if isinstance(module, _BatchNorm):
        return module
    blocks = [module, net.get_submodule(path.rpartition(".")[0])] if "." in path else [module]
    for block in blocks:
        norms = _norms_of(block)
        if norms:
            return norms[-1]
    raise RunError.of(
        "KD434",
        f"no BatchNorm makes the feature `{tap_text}`: this method reads its statistics",
        "tap the input of a block's last ReLU (`path:in`)",
    )


def _norms_of(block: nn.Module) -> list[_BatchNorm]:
    """The block's own BatchNorms; of a sequence of blocks, the last block's."""
    own = [child for child in block.children() if isinstance(child, _BatchNorm)]
    if own:
        return own
    children = list(block.children())
    return _norms_of(children[-1]) if children else []
