"""Networks in memory as a spec names them: the entries that stand for them, and what of the spec stays beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdcli.errors import UsageError, did_you_mean
from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.text.nodes import Mapping as Node
from kdcli.spec.text.nodes import Scalar, to_data
from kdcli.spec.text.nodes import Sequence as Nodes

if TYPE_CHECKING:
    from torch import nn


def module_of(name: str, module: Any) -> nn.Module:
    from torch import nn

    from kdcli.models.in_memory import unwrapped

    if not isinstance(module, nn.Module):
        argument = "student" if name == "net" else f"teachers['{name}']"
        found = module.__name__ if isinstance(module, type) else type(module).__name__
        help = f"make one of it: `{found}()`" if isinstance(module, type) else "give the network itself"
        raise UsageError.of(f"`{argument}` is `{found}`, not an nn.Module", help)
    return unwrapped(module)


def parts_of(
    module: nn.Module, name: str, outputs: Sequence[str] | None = None
) -> list[tuple[str, nn.Module, Sequence[str] | None]]:
    """A network as entries of a spec's list: name, module, names of its outputs. kdcli's own are taken apart."""
    from kdcli.models.network import Network

    if not isinstance(module, Network):
        return [(name, module, outputs)]
    return [(child, one, module._output_names.get(child)) for child, one in module.named_children()]


def named_network(name: str, module: Any, root: Node) -> tuple[list[Any], list[str]]:
    """The modules of one network in memory, and the change that names them in the spec."""
    from kdcli.models.in_memory import architecture_of
    from kdcli.models.network import Network

    whole = module_of(name, module)
    replaced, kept = _entries(root.get(name))
    parts = parts_of(whole, _own_name(replaced), _output_names(replaced))
    entries = []
    for child, one, outputs in parts:
        said = (
            f"name: {_quoted(child)}, type: {FROM_PYTHON}, kwargs: {{architecture: {architecture_of(one)}}}"
        )
        if outputs is not None:
            said += f", outputs: [{', '.join(map(_quoted, outputs))}]"
        entries.append(f"{{{said}}}")
    if isinstance(whole, Network) and whole._frozen:
        patterns = ", ".join(map(_quoted, whole._frozen))
        entries.append(f"{{name: self, type: self, kwargs: {{freeze_patterns: [{patterns}]}}}}")
    if not isinstance(whole, Network):
        entries += [json.dumps(to_data(one)) for one in kept]
    return [one for _, one, _ in parts], [f"{name}=[{', '.join(entries)}]"]


def _entries(node: Any) -> tuple[list[Node], list[Node]]:
    """A network's entries in the spec: those that a module replaces, and those that stay beside it.

    What freezes layers (`self`) and what makes losses of the logits (`..._postprocess`) is none of the network's.
    """
    listed = node.items if isinstance(node, Nodes) else () if node is None else (node,)
    entries = [one for one in listed if isinstance(one, Node)]
    return [one for one in entries if not _stays(one)], [one for one in entries if _stays(one)]


def _stays(entry: Node) -> bool:
    kind = entry.get("type")
    return isinstance(kind, Scalar) and (kind.value == "self" or str(kind.value).endswith("_postprocess"))


def _own_name(replaced: Sequence[Node]) -> str:
    """How the spec calls the one module of a network, `model` where it says nothing."""
    name = replaced[0].get("name") if len(replaced) == 1 else None
    return name.value if isinstance(name, Scalar) and isinstance(name.value, str) else "model"


def _output_names(replaced: Sequence[Node]) -> list[str] | None:
    """How the spec names what the one module of a network returns; None where it does not."""
    names = replaced[0].get("outputs") if len(replaced) == 1 else None
    return [str(name) for name in to_data(names)] if isinstance(names, Nodes) else None


def written_weights(name: str, root: Node) -> list[str]:
    """The keys with which the spec gives a network weights of a file: a module that is given has its own."""
    if name == "net":
        places = {"saver": root.get("saver")}
        keys = ("pretrain_model", "weight_key", "weight_order")
    else:
        places = {f"{path}.{name}": job.get(name) for path, job in _jobs(root)}
        keys = ("teacher_weight", "weight_key", "weight_order")
    return [
        f"{path}.{key}"
        for path, place in places.items()
        for key in keys
        if isinstance(place, Node) and place.get(key) is not None
    ]


def _jobs(root: Node) -> list[tuple[str, Node]]:
    """Where `mimic` may name teachers, with its path: itself and the mappings in it."""
    mimic = root.get("mimic")
    if not isinstance(mimic, Node):
        return []
    inside = ((f"mimic.{key}", mimic.get(key)) for key in mimic.keys())
    return [("mimic", mimic), *((path, job) for path, job in inside if isinstance(job, Node))]


def teachers_of(teachers: Any, root: Node) -> dict[str, Any]:
    """The teachers by their names in the spec; a single module is that of the only name that `mimic` has."""
    if teachers is None:
        return {}
    known = [key for key in root.keys() if key.startswith("teacher")]
    for _, job in _jobs(root):
        names = [key for key in job.keys() if key.startswith("teacher") and key != "teacher_weighting"]
        known += [key for key in names if isinstance(job.get(key), Node)]
    known = list(dict.fromkeys(known))
    named = named_teachers(teachers, known)
    for name in named:
        if name not in known:
            raise no_teacher(name, known)
    return named


def named_teachers(teachers: Any, known: list[str]) -> dict[str, Any]:
    if teachers is None:
        return {}
    if isinstance(teachers, Mapping):
        return dict(teachers)
    if len(known) != 1:
        listed = ", ".join(f"`{name}`" for name in known) or "none"
        raise UsageError.of(
            f"one module is given as `teachers`, and the spec's teachers are: {listed}",
            "name each: `teachers={'teacher0': module}`",
        )
    return {known[0]: teachers}


def no_teacher(name: str, known: list[str]) -> UsageError:
    help = (
        did_you_mean(name, known) or "the spec's `mimic` names its teachers: `teacher0: {mimic_name: [...]}`"
    )
    return UsageError.of(f"the spec has no teacher `{name}`", help)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
