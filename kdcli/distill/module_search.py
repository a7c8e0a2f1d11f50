"""The module that made a tensor: a teacher's classifier, the norm behind a feature."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.dry_run import restored_state
from kdcli.distill.taps import Tap
from kdcli.errors import RunError


def frozen_copy(module: nn.Module) -> nn.Module:
    """A frozen copy that the original's optimizer, mode and checkpoint don't reach."""
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
        with torch.no_grad(), restored_state(net):
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


def maker_of(
    net: nn.Module, batch: Mapping[str, Any], tap_text: str, kinds: tuple[type[nn.Module], ...]
) -> str | None:
    """The path of the layer of these kinds whose output is the tapped feature.

    `path[i]` where it runs several times; None where the feature comes from something else, such as a sum.
    """
    made: dict[int, tuple[Any, str, int]] = {}
    runs: dict[str, int] = {}
    found: list[tuple[str, int] | None] = []
    tap = Tap.parse(tap_text).in_network(net)

    def note(name: str, output: Any) -> None:
        made[id(output)] = (output, name, runs.get(name, 0))
        runs[name] = runs.get(name, 0) + 1

    def look(value: Any) -> None:
        _, name, number = made.get(id(value), (None, "", 0))
        found.append((name, number) if name else None)

    with ExitStack() as stack, torch.no_grad(), restored_state(net):
        for name, module in net.named_modules():
            if isinstance(module, kinds):
                hook = module.register_forward_hook(lambda _m, _a, output, name=name: note(name, output))
                stack.callback(hook.remove)
        layer = dict(net.named_modules()).get(tap.path)
        if layer is not None and tap.at_input:
            stack.callback(layer.register_forward_pre_hook(lambda _m, args: look(args[0])).remove)
        elif layer is not None:
            stack.callback(layer.register_forward_hook(lambda _m, _a, output: look(output)).remove)
        outputs = net.eval()(batch)
    if layer is None:
        look(outputs.get(tap.path))
    maker = found[tap.index or 0] if len(found) > (tap.index or 0) else None
    if maker is None:
        return None
    return maker[0] if runs[maker[0]] == 1 else f"{maker[0]}[{maker[1]}]"


def find_norm(net: nn.Module, batch: Mapping[str, Any], tap_text: str) -> nn.Module:
    """The BatchNorm that stands right before a tapped pre-activation feature.

    The one that made the feature; of a sum of branches the last of the block that holds the tapped layer.
    Raises RunError KD434 where there is none.
    """
    maker = maker_of(net, batch, tap_text, (_BatchNorm,))
    if maker is not None:
        return net.get_submodule(Tap.parse(maker).path)
    path = Tap.parse(tap_text).in_network(net).path
    blocks = [net.get_submodule(p) for p in (path, path.rpartition(".")[0]) if p]
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
