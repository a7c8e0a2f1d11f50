"""A weights file into a network: checked, then loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcli.disk import at_path
from kdcli.errors import RunError, SpecPath
from kdcli.models.network import Network
from kdcli.models.weight_files import (
    Kind,
    described_states,
    find_file,
    kind_of,
    read_shapes,
    read_states,
    read_weights,
    save_safetensors,
    weights_hash,
)
from kdcli.models.weight_fit import Misfit, Mode, Reading, Shape, misfit, reading_of, some
from kdcli.models.weight_names import COUNTER, renamed
from kdcli.models.weight_states import NestedState

__all__ = [
    "Misfit",
    "check_weights",
    "find_file",
    "fit_weights",
    "load_weights",
    "misfit",
    "read_shapes",
    "read_weights",
    "renamed",
    "save_safetensors",
    "weights_hash",
]


def fit_weights(net: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Load a whole state; raises RunError listing what is missing, unexpected or mis-shaped.

    name: of the weights, for the message. The network is unchanged when it raises. Returns notices of
    what a teacher's list has no module for, and of names that are read as others.
    """
    return _fit(net, [NestedState("", state)], name, "strict")


def load_weights(
    net: nn.Module,
    source: str | Path,
    *,
    where: SpecPath | None = None,
    mode: Mode = "strict",
    key: str | None = None,
) -> list[str]:
    """Read a file (or `torchvision:` name) into a network; returns notices of what was left out or read otherwise.

    where: the place in the spec, for errors. key: the nested state to read, `a.b`; else the first of the
    usual ones that fits. mode `strict`: everything fits, but for modules that
    serve training alone, and those that a teacher's list lacks. `pretrain`: whole modules that the file
    lacks, the last linear layer and layers with another number of outputs stay random; no other module
    is loaded by half.
    """
    with at_path(where):
        return _fit(net, read_states(source, key), f"`{source}`", mode)


def check_weights(
    net: nn.Module,
    source: str | Path,
    *,
    where: SpecPath | None = None,
    mode: Mode = "strict",
    key: str | None = None,
) -> list[str]:
    """Check whether load_weights would succeed, from names and shapes in the file alone; same errors, notices.

    torchvision's own weights are not looked at: they may have to be downloaded first.
    """
    with at_path(where):
        states = described_states(source, key)
        if not states:
            return []
        shapes = [state.of({k: shape for k, (shape, _) in state.tensors.items()}) for state in states]
        reading = reading_of(net, shapes, f"`{source}`", mode)
        kinds = {k: kind for k, (_, kind) in states[reading.state].tensors.items()}
        _check_kinds(net, kinds, reading.names, f"`{source}`")
        return reading.notices


def _fit(net: nn.Module, states: Sequence[NestedState[Tensor]], name: str, mode: Mode) -> list[str]:
    reading = reading_of(net, [state.of(_shapes(state.tensors)) for state in states], name, mode)
    _load(net, states[reading.state].tensors, reading, name)
    return reading.notices


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _load(net: nn.Module, state: Mapping[str, Tensor], reading: Reading, name: str) -> None:
    kinds = {key: kind_of(tensor.dtype) for key, tensor in state.items()}
    _check_kinds(net, kinds, reading.names, name)
    own = net.state_dict()
    chosen = {
        target: reading.spelling.tensor(key, state[key])
        for key, target in reading.names.items()
        if target in own
    }
    beyond = [key for key, tensor in chosen.items() if _overflows(tensor, own[key].dtype)]
    if beyond:
        raise RunError.of(
            "KD538",
            f"the weights {name} hold values too large for the network's numbers: {some(beyond)}",
            "are they the network's weights?",
        )
    net.load_state_dict(chosen, strict=False)
    if isinstance(net, Network):
        net.loaded = frozenset(chosen)


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether finite values would become infinite in a smaller type."""
    if tensor.dtype != torch.float64 or not dtype.is_floating_point or dtype == torch.float64:
        return False
    return bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any())


def _check_kinds(net: nn.Module, kinds: Mapping[str, Kind], names: Mapping[str, str], name: str) -> None:
    """Raise RunError KD538 where a file's numbers are of another kind than the network's, and would be cut."""
    own = net.state_dict()
    differing: dict[tuple[Kind, Kind], list[str]] = {}
    for key, target in names.items():
        if (
            target in own
            and not target.endswith(COUNTER)
            and kinds[key] != (kind := kind_of(own[target].dtype))
        ):
            differing.setdefault((kinds[key], kind), []).append(key)
    for (given, kind), keys in differing.items():
        raise RunError.of(
            "KD538",
            f"the weights {name} are {given} numbers where the network has {kind} ones: {some(keys)}",
            "give them as they were before they were quantised or converted; kdcli reads float16, bfloat16, float32 "
            "and float64 alike",
        )
