"""Whether weights fit a network: renaming, checking, loading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kdcli.disk import at_path
from kdcli.errors import RunError, SpecPath
from kdcli.models.weight_files import (
    Kind,
    described,
    find_file,
    kind_of,
    printable,
    read_shapes,
    read_weights,
    save_safetensors,
    weights_hash,
)

__all__ = [
    "Misfit",
    "check_weights",
    "find_file",
    "fit_parts",
    "fit_weights",
    "load_weights",
    "misfit",
    "read_shapes",
    "read_weights",
    "renamed",
    "save_safetensors",
    "weights_hash",
]

Shape = tuple[int, ...]

CLASSIFIER = re.compile(r"(?:fc|linear|head|classifier|heads\.head)(?:\.\d+)?\.(weight|bias)")
"""Names of the last layer in bare classifiers."""

DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
"""How torchvision's old DenseNet files spell norm1 and conv2: norm.1, conv.2."""

COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Misfit:
    """Tensors of a state that don't fit a network; mis-shaped as (name, file's shape, network's shape)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, Shape, Shape], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def text(self, most: int = 5) -> str:
        """One line: counts, and the first few names of each kind."""
        parts = []
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", [f"{n} {_size(a)} instead of {_size(b)}" for n, a, b in self.misshaped]),
        ):
            if names:
                parts.append(f"{len(names)} {title}: {_some(names, most)}")
        return "; ".join(parts)


def renamed(net: nn.Module, keys: Sequence[str]) -> dict[str, str]:
    """The network's name for each of a file's names; a name that has none stays as it is.

    Second spellings (`backbone.conv1` is `backbone.layer0.0`), names without their module
    (torchvision's own: `layer1.0.conv1.weight`, `fc.weight`) and numbers of layers that have names
    (`neck.p2_conv.1` is `neck.p2_conv.bn`) are brought to the network's. A name that only repeats
    another one's tensor is left out.
    """
    own = set(net.state_dict())
    result: dict[str, str] = {}
    taken = own.intersection(keys)
    for key in keys:
        target = key if key in own else _own_name(net, own, _modern(key))
        if target != key and target in taken:
            continue
        taken.add(target)
        result[key] = target
    return result


def misfit(net: nn.Module, shapes: Mapping[str, Shape]) -> Misfit:
    """Compare the shapes of a file with a network's, after renaming; counters of BatchNorm are free."""
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {target: shapes[key] for key, target in renamed(net, list(shapes)).items()}
    free = _training_only(net)
    return Misfit(
        missing=tuple(
            k for k in own if k not in given and not k.endswith(COUNTER) and k.split(".", 1)[0] not in free
        ),
        unexpected=tuple(k for k in given if k not in own and not k.endswith(COUNTER)),
        misshaped=tuple((k, s, own[k]) for k, s in given.items() if k in own and s != own[k]),
    )


def fit_weights(net: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Load a whole state; raises RunError listing what is missing, unexpected or mis-shaped.

    name: of the weights, for the message. The network is unchanged when it raises. Returns notices of
    what a teacher's list has no module for.
    """
    notices = _chosen(net, _shapes(state), name, "strict")[1]
    _load(net, state, name)
    return notices


def fit_parts(net: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Load the tensors of a state that pretraining may use (see load_weights); returns notices of the rest."""
    chosen, notices = _chosen(net, _shapes(state), name, "pretrain")
    _load(net, {key: state[key] for key in chosen}, name)
    return notices


def load_weights(
    net: nn.Module,
    source: str | Path,
    *,
    where: SpecPath | None = None,
    mode: Literal["strict", "pretrain"] = "strict",
) -> list[str]:
    """Read a file (or `torchvision:` name) into a network; returns notices of what was left out.

    where: the place in the spec, for errors. mode `strict`: everything fits, but for modules that
    serve training alone, and those that a teacher's list lacks. `pretrain`: whole modules that the file
    lacks, the last linear layer and layers with another number of outputs stay random; no other module
    is loaded by half.
    """
    with at_path(where):
        state = read_weights(source)
        if mode == "pretrain":
            return fit_parts(net, state, f"`{source}`")
        return fit_weights(net, state, f"`{source}`")


def check_weights(
    net: nn.Module,
    source: str | Path,
    *,
    where: SpecPath | None = None,
    mode: Literal["strict", "pretrain"] = "strict",
) -> list[str]:
    """Check whether load_weights would succeed, from names and shapes in the file alone; same errors, notices.

    torchvision's own weights are not looked at: they may have to be downloaded first.
    """
    with at_path(where):
        facts = described(source)
        if not facts:
            return []
        shapes = {key: shape for key, (shape, _) in facts.items()}
        chosen, notices = _chosen(net, shapes, f"`{source}`", mode)
        _check_kinds(net, {key: facts[key][1] for key in chosen}, f"`{source}`")
        return notices


def _chosen(
    net: nn.Module, shapes: Mapping[str, Shape], name: str, mode: Literal["strict", "pretrain"]
) -> tuple[list[str], list[str]]:
    """The file's names to load, and notices; raises RunError where the file does not fit."""
    found = misfit(net, shapes)
    names = renamed(net, list(shapes))
    if mode == "strict":
        found, notices = _without_lacking(net, set(names.values()), found)
        if found:
            raise _does_not_fit(name, found)
        return list(shapes), notices
    misshaped = {own for own, _, _ in found.misshaped}
    fitting = [key for key, own in names.items() if own not in {*misshaped, *found.unexpected}]
    begun = {_part(names[key]) for key in fitting}
    last = _last_layer(net)
    other_count = {own for own, a, b in found.misshaped if _only_outputs_differ(net, own, a, b)}
    strange = [
        n for n in (*found.missing, *misshaped) if not n.startswith(f"{last}.") and n not in other_count
    ]
    if not fitting or any(_part(own) in begun for own in strange):
        raise _does_not_fit(name, found)
    notices = []
    if random := [own for own in net.state_dict() if own in {*found.missing, *misshaped}]:
        notices.append(f"{name} does not fill {_some(random)}: random")
    if found.unexpected:
        notices.append(f"{name} holds {_some(found.unexpected)}, which the network has not")
    return fitting, notices


def _without_lacking(net: nn.Module, given: set[str], found: Misfit) -> tuple[Misfit, list[str]]:
    """The misfit without the tensors of modules that a teacher's list lacks, and a notice of those.

    given: the file's names in the network's spelling. Where the network is not filled the misfit stays
    whole: those tensors may be the missing ones under another name.
    """
    if not getattr(net, "may_lack_modules", False) or found.missing or given.isdisjoint(net.state_dict()):
        return found, []
    own = _beginnings(net)
    lacking = [key for key in found.unexpected if _part(key) not in own]
    if not lacking:
        return found, []
    modules = _some([f"`{part}`" for part in dict.fromkeys(map(_part, lacking))])
    count = "1 tensor" if len(lacking) == 1 else f"{len(lacking)} tensors"
    verb = "is" if len(lacking) == 1 else "are"
    notice = f"{count} of {modules} {verb} not used: the teacher's list has no such module"
    return replace(found, unexpected=tuple(k for k in found.unexpected if k not in lacking)), [notice]


def _beginnings(net: nn.Module) -> set[str]:
    """First parts of names that belong to the network: its modules, and what a bare file calls their layers."""
    found: set[str] = set()
    for name, child in net.named_children():
        inner = [*child.state_dict(), *dict(child.named_children()), *getattr(child, "aliases", {})]
        found.update((name, *map(_part, inner)))
    return found


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _load(net: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    _check_kinds(net, {key: kind_of(tensor.dtype) for key, tensor in state.items()}, name)
    names = renamed(net, list(state))
    own = net.state_dict()
    chosen = {names[k]: v for k, v in state.items() if names.get(k) in own}
    beyond = [key for key, tensor in chosen.items() if _overflows(tensor, own[key].dtype)]
    if beyond:
        raise RunError.of(
            "KD538",
            f"the weights {name} hold values too large for the network's numbers: {_some(beyond)}",
            "are they the network's weights?",
        )
    net.load_state_dict(chosen, strict=False)


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether finite values would become infinite in a smaller type."""
    if tensor.dtype != torch.float64 or not dtype.is_floating_point or dtype == torch.float64:
        return False
    return bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any())


def _check_kinds(net: nn.Module, kinds: Mapping[str, Kind], name: str) -> None:
    """Raise RunError KD538 where a file's numbers are of another kind than the network's, and would be cut."""
    own = net.state_dict()
    differing: dict[tuple[Kind, Kind], list[str]] = {}
    for key, target in renamed(net, list(kinds)).items():
        if (
            target in own
            and not target.endswith(COUNTER)
            and kinds[key] != (kind := kind_of(own[target].dtype))
        ):
            differing.setdefault((kinds[key], kind), []).append(key)
    for (given, kind), keys in differing.items():
        raise RunError.of(
            "KD538",
            f"the weights {name} are {given} numbers where the network has {kind} ones: {_some(keys)}",
            "give them as they were before they were quantised or converted; kdcli reads float16, bfloat16, float32 "
            "and float64 alike",
        )


def _does_not_fit(where: str, found: Misfit) -> RunError:
    return RunError.of(
        "KD531",
        f"the weights {where} do not fit the network: {found.text()}",
        "is the network in the spec the one that was trained, with the same number of classes?",
    )


def _own_name(net: nn.Module, own: set[str], key: str) -> str:
    for name, child in net.named_children():
        for candidate in (key, f"{name}.{key}"):
            if candidate in own:
                return candidate
            for alias, real in getattr(child, "aliases", {}).items():
                if candidate.startswith(f"{name}.{alias}."):
                    other = f"{name}.{real}{candidate.removeprefix(f'{name}.{alias}')}"
                    if other in own:
                        return other
    last = CLASSIFIER.fullmatch(key)
    if last is not None:
        for name, _ in net.named_children():
            if f"{name}.classifier.{last[1]}" in own:
                return f"{name}.classifier.{last[1]}"
    named = _by_name(net, key)
    return named if named in own else key


def _by_name(net: nn.Module, key: str) -> str:
    """The key with its layers named where it numbers those of a Sequential, as an FPN's once were."""
    parts: list[str] = []
    module: nn.Module | None = net
    for part in key.split("."):
        children = {} if module is None else dict(module.named_children())
        if isinstance(module, nn.Sequential) and part not in children:
            # Not by int(part): a file may hold any name. Not named_children: it shows a repeated layer once.
            part = {str(place): name for place, name in enumerate(module._modules)}.get(part, part)
        parts.append(part)
        module = children.get(part)
    return ".".join(parts)


def _modern(key: str) -> str:
    old = DENSENET.fullmatch(key)
    return old[1] + old[2] if old else key


def _training_only(net: nn.Module) -> set[str]:
    return {name for name, child in net.named_children() if getattr(child, "training_only", False)}


def _part(name: str) -> str:
    """The network's module that a parameter belongs to."""
    return name.split(".", 1)[0]


def _last_layer(net: nn.Module) -> str:
    """Path of the layer that makes the logits: the last linear one."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else ""


def _only_outputs_differ(net: nn.Module, name: str, given: Shape, own: Shape) -> bool:
    """Whether a linear or convolution layer differs from the file in its number of outputs alone."""
    layer = net.get_submodule(name.rsplit(".", 1)[0])
    return isinstance(layer, nn.Linear | nn.Conv2d) and given[1:] == own[1:]


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return printable(", ".join(names[:most])) + more


def _size(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
