"""Which parameter gets which learning rate and weight decay, as `optimizer.pconfig` chooses them.

Source: United-Perception's up/utils/model/optimizer_helper.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from kdcli.errors import SpecError, SpecPath
from kdcli.spec.schema import LayerDecay, ParameterGroups

LAYERS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "ln": nn.LayerNorm, "linear": nn.Linear}
"""The first half of a group's key, with the layers that it means; subclasses count."""

ONE_DIMENSION = "ndim_is1"
FIRST_LAYER = re.compile(r"backbone\.(?:cls_token$|pos_embedding$|embedding)")
LATER_LAYER = re.compile(r"backbone\.layers\.encoder_(\d+)\.")


def parameter_groups(
    chosen: ParameterGroups, trained: nn.Module, parameters: Iterable[nn.Parameter], path: SpecPath
) -> list[dict[str, Any]]:
    """Groups for an optimizer: parameters with equal settings together, those without any of their own first.

    trained: the module that holds them all; a student in it is named as if it stood alone. path: of `pconfig`.
    """
    parameters = list(parameters)
    names = {id(p): name.removeprefix("student.") for name, p in trained.named_parameters()}
    layers = 0
    if chosen.layer_decay is not None:
        found = [LATER_LAYER.match(name) for name in names.values()]
        layers = max((int(match[1]) + 1 for match in found if match), default=0)
        if not layers:
            message = "`layer_decay` needs a vision transformer called `backbone`, whose layers it counts"
            raise SpecError.at((*path, "layer_decay"), "KD231", message, "leave it out", on_key=True)
    settings: dict[int, dict[str, float]] = {}
    for parameter in parameters:
        name, own = names.get(id(parameter), ""), settings.setdefault(id(parameter), {})
        if chosen.layer_decay is not None:
            own["lr"] = _falling(chosen.layer_decay, name, layers)
        if any(parameter.ndim == 1 if text == ONE_DIMENSION else text in name for text in chosen.nodecay):
            own["weight_decay"] = 0.0
    for key in type(chosen).model_fields:
        group, layer = getattr(chosen, key), LAYERS.get(key.rpartition("_")[0])
        if group is None or layer is None:
            continue
        for module in trained.modules():
            held = getattr(module, group.type, None) if isinstance(module, layer) else None
            if id(held) in settings:
                settings[id(held)].update(group.kwargs)
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {(): []}
    for parameter in parameters:
        groups.setdefault(tuple(sorted(settings[id(parameter)].items())), []).append(parameter)
    return [{"params": members, **dict(own)} for own, members in groups.items() if members]


def idle_parts(chosen: ParameterGroups, trained: nn.Module, path: SpecPath) -> Iterator[tuple[SpecPath, str]]:
    """What of `pconfig` changes nothing: where it stands, and which parameters the network has none of."""
    names = [name for name, _ in trained.named_parameters()]
    for index, text in enumerate(chosen.nodecay):
        if text != ONE_DIMENSION and not any(text in name for name in names):
            yield (*path, "nodecay", index), f"no parameter has `{text}` in its name"
    for key in type(chosen).model_fields:
        group, layer = getattr(chosen, key), LAYERS.get(key.rpartition("_")[0])
        if group is None or layer is None:
            continue
        kinds = [module for module in trained.modules() if isinstance(module, layer)]
        if not any(getattr(module, group.type, None) is not None for module in kinds):
            yield (
                (*path, key),
                f"the network has no {layer.__name__}" + (f" with a {group.type}" if kinds else ""),
            )


def _falling(decay: LayerDecay, name: str, layers: int) -> float:
    """The learning rate of a parameter by its layer: 0 the embedding, then the encoder's, last what follows."""
    encoder = LATER_LAYER.match(name)
    layer = 0 if FIRST_LAYER.match(name) else int(encoder[1]) + 1 if encoder else layers
    return float(decay.base_lr * decay.value ** (layers - layer))
