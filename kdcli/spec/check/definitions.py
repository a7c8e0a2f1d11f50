"""Where a function or class is defined, found by reading files, not by importing."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

KDCLI = Path(__file__).parents[2]
MOST_STEPS = 20
"""How many imports, aliases or base classes are followed."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or class, and the module that defines it."""

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def source_file(module: str) -> Path | None:
    """The file of a module, found without importing its package."""
    parts = module.split(".")
    if parts[0] == KDCLI.name:
        base = KDCLI.joinpath(*parts[1:])
    else:
        try:
            spec = PathFinder.find_spec(parts[0])
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin)
        if origin.suffix != ".py":
            return None
        root = origin.parent if origin.name == "__init__.py" else origin.with_suffix("")
        base = root.joinpath(*parts[1:])
    for path in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def names_of(module: str) -> dict[str, ast.stmt] | None:
    """The names that a module defines at top level."""
    path = source_file(module)
    if path is None:
        return None
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return None
    names: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[statement.name] = statement
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                names[alias.asname or alias.name] = statement
        elif isinstance(statement, ast.Assign):
            for place in statement.targets:
                if isinstance(place, ast.Name):
                    names[place.id] = statement
    return names


def find_definition(module: str, attribute: str, steps: int = 0) -> Definition | None:
    """The definition of a name, through imports and plain aliases."""
    names = names_of(module)
    statement = None if names is None else names.get(attribute)
    if statement is None or steps > MOST_STEPS:
        return None
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return Definition(module, statement)
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
        return find_definition(module, statement.value.id, steps + 1)
    if isinstance(statement, ast.ImportFrom):
        original = next(a.name for a in statement.names if (a.asname or a.name) == attribute)
        return find_definition(imported_module(module, statement), original, steps + 1)
    return None


def imported_module(module: str, statement: ast.ImportFrom) -> str:
    """The full name of the module that an import statement in `module` takes from."""
    if statement.level == 0:
        return statement.module or ""
    path = source_file(module)
    package = module.split(".")
    up = statement.level - (1 if path is not None and path.name == "__init__.py" else 0)
    parts = package[: len(package) - up]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def lineage_of(found: Definition) -> list[Definition]:
    """A class and its bases, nearest first, as far as kdcli's or its own package defines them."""
    line: list[Definition] = []
    waiting = [found]
    while waiting and len(line) < MOST_STEPS:
        one = waiting.pop(0)
        line.append(one)
        assert isinstance(one.node, ast.ClassDef)
        for base in one.node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            if not isinstance(name, ast.Name):
                continue
            below = find_definition(one.module, name.id) if _same_package(one.module, name.id) else None
            if below is not None and isinstance(below.node, ast.ClassDef):
                waiting.append(below)
    return line


def _same_package(module: str, name: str) -> bool:
    """Whether a base class belongs to the same package or kdcli: torch's own sources are never read."""
    names = names_of(module) or {}
    statement = names.get(name)
    if isinstance(statement, ast.ImportFrom):
        return imported_module(module, statement).split(".")[0] in (module.split(".")[0], KDCLI.name)
    return statement is not None
