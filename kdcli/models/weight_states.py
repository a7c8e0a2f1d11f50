"""Where a checkpoint keeps its tensors: under which names, in which order they are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from kdcli.errors import RunError, did_you_mean

T = TypeVar("T")
S = TypeVar("S")

WHOLE = "is it a whole safetensors or torch file?"

AVERAGED: tuple[tuple[str, ...], ...] = (
    ("ema", "ema_state_dict"),
    ("ema", "state_dict"),
    ("ema", "shadow"),
    ("ema",),
    ("model_ema",),
    ("state_dict_ema",),
    ("params_ema",),
    ("ema_state_dict",),
    ("model_ema_state_dict",),
    ("ema_model",),
    ("shadow",),
)
"""Names of a moving average: United-Perception's first, torchvision's scripts', timm's, and those of EMA classes."""

LIVE: tuple[tuple[str, ...], ...] = (
    ("model",),
    ("state_dict",),
    ("model_state_dict",),
    ("net",),
    ("weights",),
    ("params",),
    (),
)
"""Names of the trained weights, best first; () is the bare state dict."""

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and activation checkpoints put into names, wherever they wrapped a module."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

MOST_MAPPINGS = 200
"""So many nested mappings of a checkpoint are looked at, four deep: an optimizer has one for each parameter."""


@dataclass(frozen=True, slots=True)
class NestedState(Generic[T]):
    """Tensors by name (or their facts), and where in the checkpoint they lie.

    key: `ema.ema_state_dict`, empty for the file itself. usual: whether they are taken without being asked for.
    notices: what a user is told where this state is taken.
    """

    key: str
    tensors: Mapping[str, T]
    usual: bool = True
    notices: tuple[str, ...] = field(default=())

    def of(self, tensors: Mapping[str, S]) -> NestedState[S]:
        """The same place with other values."""
        return NestedState(self.key, tensors, self.usual, self.notices)


def nested_states(found: Any, path: Path, key: str | None = None) -> list[NestedState[Tensor]]:
    """The states of a loaded checkpoint, the usual ones first, in the order in which they are tried.

    key: the nested state that the user names, `a.b`. Raises RunError KD532 where there is no tensor at all, KD547 for a
    key that names none.
    """
    if key is not None:
        found = _at_key(found, key, path)
    elif isinstance(found, Mapping) and "kdcli" in found and "trainee" in found:
        return [NestedState("", _student(found))]
    if isinstance(found, Mapping) and not found:
        raise no_tensors(path)
    start = "" if key is None else f"{key}."
    live = [state for keys in LIVE if (state := _state(found, keys, start, path))]
    averaged = [state for keys in AVERAGED if (state := _state(found, keys, start, path))]
    averaged = [_completed(state, live) for state in averaged]
    if live:
        name = f"`{live[0].key}`" if live[0].key else "the others"
        averaged = [
            NestedState(
                s.key, s.tensors, True, (f"the moving average `{s.key}` is taken before {name}", *s.notices)
            )
            for s in averaged
        ]
    usual = [*averaged, *live]
    taken = {state.key for state in usual}
    others = [
        NestedState(start + name, tensors, usual=False)
        for name, tensors in _mappings(found)
        if start + name not in taken and not _without_values(tensors)
    ]
    if usual or others:
        return [*usual, *others]
    what = (
        f"a mapping of {', '.join(map(repr, list(found)[:5]))}"
        if isinstance(found, Mapping)
        else "no mapping"
    )
    raise RunError.of(
        "KD532",
        f"`{path}` holds no state dict but {what}",
        "expected tensors by name, plain or under `model`, `state_dict` or `ema.ema_state_dict`",
    )


def flat_states(tensors: Mapping[str, T], path: Path, key: str | None = None) -> list[NestedState[T]]:
    """The one state of a file that has no nesting; key: what all of its names begin with."""
    if not tensors:
        raise no_tensors(path)
    if key is None:
        return [NestedState("", tensors)]
    inner = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
    if not inner:
        raise _no_key(path, key, _beginnings(tensors))
    return [NestedState(key, inner)]


def first_state(states: Sequence[NestedState[T]], path: Path) -> dict[str, T]:
    """The tensors of the best usual state, without what wrappers put before every name; raises RunError KD532."""
    if not states[0].usual:
        raise not_usual(path, states)
    state = dict(states[0].tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def not_usual(path: str | Path, states: Sequence[NestedState[Any]], best: str | None = None) -> RunError:
    """The error for a file whose tensors lie under no usual name. best: the key of the state that fits best."""
    keys = [state.key for state in states]
    shown = ", ".join(f"`{key}`" for key in keys[:5]) + (" ..." if len(keys) > 5 else "")
    return RunError.of(
        "KD532",
        f"`{path}` has its tensors under {shown}, none of them a usual name",
        f"name the one to read beside the file: `weight_key: {best or keys[0]}`",
    )


def no_tensors(path: Path) -> RunError:
    """The error for an empty file."""
    return RunError.of("KD532", f"`{path}` holds no tensors: it is empty", WHOLE)


def _state(found: Any, keys: Sequence[str], start: str, path: Path) -> NestedState[Tensor] | None:
    inner = found
    for key in keys:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    tensors = _tensors(inner)
    _refuse_without_values(tensors, path)
    if not tensors:
        return None
    return NestedState(start + ".".join(keys) if keys else start.removesuffix("."), tensors)


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors of a mapping by name, without the counter of an AveragedModel."""
    if not isinstance(found, Mapping):
        return {}
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    others = tensors.keys() - {"n_averaged"}
    if others and all(name.startswith("module.") for name in others):
        tensors.pop("n_averaged", None)
    return tensors


def _completed(state: NestedState[Tensor], live: Sequence[NestedState[Tensor]]) -> NestedState[Tensor]:
    """An average of the parameters alone with the statistics of the live weights."""
    for other in live:
        lacking = [name for name in other.tensors if name not in state.tensors]
        if lacking and len(lacking) + len(state.tensors) == len(other.tensors):
            if not all(name.endswith(STATISTICS) for name in lacking):
                continue
            whole = {name: state.tensors.get(name, value) for name, value in other.tensors.items()}
            where = f"`{other.key}`" if other.key else "the file itself"
            notice = (
                f"`{state.key}` has no statistics of norm layers: {len(lacking)} tensors come from {where}"
            )
            return NestedState(state.key, whole, True, (notice,))
    return state


def _mappings(found: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every nested mapping with tensors, by its dotted key."""
    left = [(key, found, depth)]
    seen = 0
    while left and seen < MOST_MAPPINGS:
        name, mapping, level = left.pop(0)
        seen += 1
        if name and (tensors := _tensors(mapping)):
            yield name, tensors
        if level < 4:
            left += (
                [
                    (f"{name}.{inner}" if name else str(inner), value, level + 1)
                    for inner, value in mapping.items()
                    if isinstance(value, Mapping)
                ]
                if isinstance(mapping, Mapping)
                else []
            )


def _at_key(found: Any, key: str, path: Path) -> Any:
    """What lies under a dotted key; its last parts may be what the names of the tensors begin with."""
    inner, rest = found, key
    while rest and isinstance(inner, Mapping):
        names = {str(name): name for name in inner}
        parts = rest.split(".")
        # A key of the file may have dots of its own: the longest is taken.
        for count in range(len(parts), 0, -1):
            name = ".".join(parts[:count])
            if name in names and isinstance(inner[names[name]], Mapping):
                inner, rest = inner[names[name]], ".".join(parts[count:])
                break
        else:
            break
    if not rest:
        return inner
    tensors = _tensors(inner)
    begun = {n.removeprefix(f"{rest}."): t for n, t in tensors.items() if n.startswith(f"{rest}.")}
    if not begun:
        raise _no_key(path, key, [*(name for name, _ in _mappings(found)), *_beginnings(_tensors(found))])
    return begun


def _no_key(path: Path, key: str, known: Sequence[str]) -> RunError:
    help = did_you_mean(key, list(known))
    if help is None and known:
        help = f"it has tensors under {', '.join(f'`{name}`' for name in known[:5])}"
    return RunError.of("KD547", f"`{path}` has no tensors under `{key}`", help)


def _beginnings(tensors: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.split(".", 1)[0] for name in tensors if "." in name))


def _student(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The student of kdcli's own checkpoint: its moving average where there is one."""
    averaged = checkpoint.get("ema")
    if averaged:
        return {**averaged["parameters"], **averaged["buffers"]}
    prefix = "student."
    return {k.removeprefix(prefix): v for k, v in checkpoint["trainee"].items() if k.startswith(prefix)}


def _without_values(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The first tensor that is sparse, quantized, or on the meta device, where none has values; what it is."""
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            return name, "meta"
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return name, "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
    return None


def _refuse_without_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    odd = _without_values(tensors)
    if odd is None:
        return
    name, kind = odd
    shown = f"`{path}` holds `{printable(name)}`"
    if kind == "meta":
        help = "save the weights once they are loaded or initialised"
        raise RunError.of("KD532", f"{shown} without values, on the `meta` device", help)
    help = "save it dense: `tensor.to_dense()`, `tensor.dequantize()`"
    raise RunError.of("KD532", f"{shown} as a {kind} tensor; kdcli reads dense ones", help)


def printable(text: str) -> str:
    """Text from a file without the control characters that a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
