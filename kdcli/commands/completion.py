"""What a shell completes on the command line: spec files and keys of a spec. Torch-free, never an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcli.disk import seen_folder
from kdcli.errors import KdError


def complete_spec(incomplete: str) -> list[str]:
    """Paths that begin with `incomplete`: YAML files, and folders (which may be runs)."""
    return _paths(incomplete, lambda path: seen_folder(path) or path.suffix in (".yaml", ".yml"))


def complete_key(spec: str | None, incomplete: str) -> list[str]:
    """Keys of the spec that continue `incomplete`: `net.` gives `net.model.`."""
    if "=" in incomplete or not spec:
        return []
    value = _tree(spec)
    *parents, _ = incomplete.split(".")
    for part in parents:
        value = _child(value, part)
    prefix = "".join(f"{part}." for part in parents)
    result = []
    for name, child in _children(value):
        word = prefix + name
        if word.startswith(incomplete):
            result.append(f"{word}." if isinstance(child, (Mapping, list)) else f"{word}=")
    return result


def complete_name(kind: str, incomplete: str) -> list[str]:
    """Names that begin with `incomplete`: of samples, of losses and methods, or of all that `kdcli explain` knows."""
    if kind == "sample":
        from kdcli.commands.samples import sample_specs

        try:
            names: Iterable[str] = sample_specs()
        except KdError:
            names = ()
    elif kind == "method":
        from kdcli.distill.mimickers import MIMICKERS
        from kdcli.losses import LOSSES

        names = (*LOSSES, *MIMICKERS)
    else:
        from kdcli.reference.words import words

        names = words()
    return sorted(name for name in names if name.casefold().startswith(incomplete.casefold()))


def _tree(spec: str) -> Any:
    from kdcli.spec.parse import read, resolved_data

    try:
        return resolved_data(read(spec).spec)
    except (KdError, OSError):
        return {}


def _children(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), child) for name, child in value.items()]
    if isinstance(value, (list, tuple)):
        return [(_element(child) or str(index), child) for index, child in enumerate(value)]
    return []


def _element(child: Any) -> str | None:
    """The name of a list's element in a key: its `name`, else its `type`; None where it has neither."""
    keys = [key for key in ("name", "type") if isinstance(child, Mapping) and key in child]
    return str(child[keys[0]]) if keys else None


def _child(value: Any, part: str) -> Any:
    return dict(_children(value)).get(part, {})


def _paths(incomplete: str, fits: Any) -> list[str]:
    folder, _, begun = incomplete.rpartition("/")
    base = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".")
    prefix = f"{folder}/" if folder or incomplete.startswith("/") else ""
    try:
        found = sorted(base.iterdir())
    except OSError:
        return []
    shown = [path for path in found if path.name.startswith(begun) and (begun or path.name[0] != ".")]
    return [f"{prefix}{path.name}{'/' if seen_folder(path) else ''}" for path in shown if fits(path)]
