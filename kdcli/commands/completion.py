"""What the shell may complete: spec files, run folders, keys of a spec; torch-free and quiet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcli.errors import KdError


def complete_spec(incomplete: str) -> list[str]:
    """YAML files and the folders on the way to them."""
    return _paths(incomplete, lambda path: path.is_dir() or path.suffix in (".yaml", ".yml"))


def complete_run(incomplete: str) -> list[str]:
    """Folders: runs, and those on the way to them."""
    return _paths(incomplete, Path.is_dir)


def complete_key(spec: str | None, incomplete: str) -> list[str]:
    """The next part of `key.path=` as the spec has it: `net.` gives its modules."""
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


def _tree(spec: str) -> Any:
    from kdcli.spec.form.written import resolved_data
    from kdcli.spec.parse import read

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
    """How an element of a list may be called: by its name, else its type."""
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
    return [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in shown if fits(path)]
