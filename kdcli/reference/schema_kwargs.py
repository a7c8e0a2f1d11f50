"""Arguments of code as JSON Schema, read from its signature."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

from kdcli.spec.check.signatures import Parameter, Signature
from kdcli.spec.ranges import range_of

Json = dict[str, Any]

SIMPLE = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
LISTS = ("list", "List", "Sequence", "tuple", "Tuple", "Iterable", "Collection")
MAPPINGS = ("dict", "Dict", "Mapping")
BOUNDS = {
    "exclusiveMinimum": "more_than",
    "minimum": "at_least",
    "exclusiveMaximum": "less_than",
    "maximum": "at_most",
}


def kwargs_schema(takes: Signature, *, hidden: Collection[str] = (), temperature: bool = False) -> Json:
    """An object with every argument a spec may give; temperature: `T` has that second name."""
    known = {name: p for name, p in takes.kwargs.items() if name not in hidden}
    properties = {name: _argument(parameter) for name, parameter in known.items()}
    if temperature and "T" in properties:
        properties["temperature"] = properties["T"]
    made: Json = {"type": "object", "properties": properties}
    if not takes.opened:
        made["additionalProperties"] = False
    required = [name for name, parameter in known.items() if parameter.required]
    if required:
        made["required"] = required
    return made


def summary_of(doc: str | None) -> str:
    """The first paragraph of a docstring."""
    return " ".join((doc or "").partition("\n\n")[0].split())


def _argument(parameter: Parameter) -> Json:
    made = {} if parameter.annotation is None else annotation_schema(parameter.annotation)
    default = parameter.default
    if not parameter.required and isinstance(default, (bool, int, float, str, list, dict)):
        made = {**made, "default": default}
    return made


def annotation_schema(node: ast.expr) -> Json:
    """What YAML values an annotation takes; one that is not understood takes all."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts = [annotation_schema(node.left), annotation_schema(node.right)]
        return {} if {} in parts else {"anyOf": parts}
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if isinstance(node, ast.Subscript):
        return _generic(node)
    name = ast.unparse(node).rsplit(".", 1)[-1]
    if name in SIMPLE:
        return {"type": SIMPLE[name]}
    if name in LISTS:
        return {"type": "array"}
    return {"type": "object"} if name in MAPPINGS else {}


def _generic(node: ast.Subscript) -> Json:
    name = ast.unparse(node.value).rsplit(".", 1)[-1]
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return {"enum": [part.value for part in parts if isinstance(part, ast.Constant)]}
    if name in LISTS:
        return {"type": "array", "items": annotation_schema(parts[0])}
    if name in MAPPINGS:
        return {"type": "object"}
    if name == "Optional":
        return {"anyOf": [annotation_schema(parts[0]), {"type": "null"}]}
    if name == "Union":
        found = [annotation_schema(part) for part in parts]
        return {} if {} in found else {"anyOf": found}
    if name == "Annotated":
        bounds = range_of(node)
        told = {key: getattr(bounds, bound, None) for key, bound in BOUNDS.items()}
        return {**annotation_schema(parts[0]), **{k: v for k, v in told.items() if v is not None}}
    return {}
