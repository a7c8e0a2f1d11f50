"""Canonical nodes turned into schema.Spec, every finding in plain words at its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdcli.errors import Diagnostic, Span, SpecPath, did_you_mean
from kdcli.spec import schema
from kdcli.spec.form.canonical import JOB_KEYS, MIMIC_KEYS
from kdcli.spec.text.nodes import Mapping, Node, Scalar, Sequence, describe, kind, to_data

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "value_error": "something else",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_BOUND_HELPS = {
    "clip_grad_norm": "leave it out to clip nothing",
    "save_every_minutes": "leave it out to save as often as `save_freq` says",
}
_NEEDS: dict[SpecPath, str] = {
    (): "a spec needs `net`, `dataset` and `trainer`",
    ("dataset",): "a dataset has a `train` and a `test` part",
}


def typed(model: type[M], tree: Node) -> tuple[M | None, list[Diagnostic]]:
    """The model made of a tree, or None with what is wrong."""
    try:
        return model.model_validate(to_data(tree)), []
    except ValidationError as error:
        return None, _diagnostics(model, tree, error.errors(include_url=False))


def span_of(tree: Node, path: SpecPath, *, on_key: bool = False) -> Span:
    """The span of a path; what is not written has the nearest parent's."""
    node, span = tree, tree.span
    for step in path:
        if isinstance(node, Mapping) and isinstance(step, str):
            entry = node.find(step)
            if entry is None:
                return span
            node = entry.value
            span = node.span if isinstance(node, Scalar) else entry.key_span
            key_span = entry.key_span
        elif (
            isinstance(node, Sequence)
            and isinstance(step, int)
            and -len(node.items) <= step < len(node.items)
        ):
            node = node.items[step]
            span = key_span = node.span
        else:
            return span
    if not path:
        return span
    return key_span if on_key else span


def _diagnostics(model: type[BaseModel], tree: Node, errors: Iterable[ErrorDetails]) -> list[Diagnostic]:
    unique: dict[tuple[SpecPath, str], Diagnostic] = {}
    placed = [(_place(tree, error), error) for error in errors]
    # Of a union whose one alternative fits but for a bound, the others say nothing that helps.
    bounded = {place.union for place, error in placed if error["type"] in _BOUNDS}
    for place, error in placed:
        if place.union is not None and place.union in bounded and error["type"] not in _BOUNDS:
            continue
        if place.lone and error["type"] == "model_type":
            diagnostic = _no_list(tree, place.path)
        elif place.union is None:
            diagnostic = _diagnostic(model, tree, place.path, error)
        else:
            one = _of_union(model, tree, place, error)
            if one is None:
                continue
            diagnostic = one
        unique.setdefault((diagnostic.path or (), diagnostic.code), diagnostic)
    return list(unique.values())


@dataclass(frozen=True, slots=True)
class _Place:
    """The place that pydantic's location means: the path, and the union that it goes through."""

    path: SpecPath
    union: SpecPath | None = None
    alternative: str = ""
    lone: bool = False
    """Whether a single value stands where a list is meant."""


def _place(tree: Node, error: ErrorDetails) -> _Place:
    path: list[str | int] = []
    node: Node | None = tree
    union: SpecPath | None = None
    alternative = ""
    lone = False
    loc = error["loc"]
    for place, step in enumerate(loc):
        child = _child(node, step)
        if child is None:
            if place == len(loc) - 1 and error["type"] == "missing":
                path.append(step)
                continue
            if isinstance(step, int) and isinstance(node, Scalar):
                lone = True
                continue
            if union is None:
                union, alternative = tuple(path), str(step)
            continue
        path.append(step)
        node = child
    return _Place(tuple(path), union, alternative, lone)


def _child(node: Node | None, step: str | int) -> Node | None:
    if isinstance(node, Mapping) and isinstance(step, str):
        return node.get(step)
    if isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
        return node.items[step]
    return None


def _node_at(tree: Node, path: SpecPath) -> Node:
    for step in path:
        child = _child(tree, step)
        if child is None:
            break
        tree = child
    return tree


_UNIONS = {
    "compile": "true, false, `student`, `teachers`, or a mapping such as {networks: student, mode: reduce-overhead}",
    "temperature": "a number, or `{learned: true}` with its options",
    "size": "a whole number, or a list of two",
    "bad_sample_budget": "a number of samples, or a share of all such as 0.01 or 1%",
    "classes": "a list of the teacher's classes (numbers or names) or a mapping from the data's classes to them",
}


def _of_union(model: type[BaseModel], tree: Node, place: _Place, error: ErrorDetails) -> Diagnostic | None:
    """A finding inside a union: for a mapping what is wrong in it, else the allowed forms."""
    assert place.union is not None
    node = _node_at(tree, place.union)
    if error["type"] in _BOUNDS or (isinstance(node, Mapping) and place.alternative[:1].isupper()):
        return _diagnostic(model, tree, place.path, error)
    if isinstance(node, Mapping) and place.union[-1] == "temperature":
        return None
    if place.union[-1] not in _UNIONS:
        return _diagnostic(model, tree, place.path, error)
    message = f"{_shown(place.union)} must be {_UNIONS[str(place.union[-1])]}, got {kind(node)}"
    span = span_of(tree, place.union)
    return Diagnostic(code="KD204", message=message, path=place.union, span=span)


def _diagnostic(model: type[BaseModel], tree: Node, path: SpecPath, error: ErrorDetails) -> Diagnostic:
    sort = error["type"]
    if sort == "missing":
        parent = path[:-1]
        where = f" in {_shown(parent)}" if parent else ""
        help = _NEEDS.get(parent) or _needed(path)
        message = f"`{path[-1]}` is missing{where}"
        span = span_of(tree, parent, on_key=True)
        return Diagnostic(code="KD203", message=message, help=help, path=parent, on_key=True, span=span)
    if sort == "extra_forbidden":
        parent = path[:-1]
        where = f" in {_shown(parent)}" if parent else ""
        help = did_you_mean(str(path[-1]), known_keys(model, parent))
        span = span_of(tree, path, on_key=True)
        message = f"unknown key `{path[-1]}`{where}"
        return Diagnostic(code="KD202", message=message, help=help, path=path, on_key=True, span=span)
    node = _node_at(tree, path)
    span = span_of(tree, path)
    context: dict[str, Any] = error.get("ctx") or {}
    if sort == "literal_error":
        expected = str(context.get("expected", "")).replace("'", "`").replace(" or ", ", ")
        expected = {"True": "true", "False": "false"}.get(expected, expected)
        names = [name.strip("` ") for name in expected.split(",")]
        help = None
        if isinstance(node, Scalar) and isinstance(node.value, str) and len(names) > 1:
            help = did_you_mean(node.value, names) if len(names) > 3 else _nearest_only(node.value, names)
        message = f"{_shown(path)} must be {'one of ' if len(names) > 1 else ''}{expected}, got {kind(node)}"
        return Diagnostic(code="KD205", message=message, help=help, path=path, span=span)
    if sort in _BOUNDS:
        key, words = _BOUNDS[sort]
        bound = context.get(key)
        shown = f"{bound:g}" if isinstance(bound, float) else bound
        message = f"{_shown(path)} must be {words} {shown}, got {kind(node)}"
        help = _BOUND_HELPS.get(str(path[-1]))
        return Diagnostic(code="KD206", message=message, help=help, path=path, span=span)
    expected = _EXPECTED.get(sort, error["msg"].lower())
    return Diagnostic(
        code="KD204",
        message=f"{_shown(path)} must be {expected}, got {kind(node)}",
        help=_type_help(expected, node),
        path=path,
        span=span,
    )


def _no_list(tree: Node, path: SpecPath) -> Diagnostic:
    modules = path[0] in ("net", "teachers") and len(path) <= 2
    help = "one whole model is written `{type: torchvision.resnet18}`" if modules else None
    expected = "a list of modules" if modules else "a list of mappings"
    message = f"{_shown(path)} must be {expected}, got {kind(_node_at(tree, path))}"
    return Diagnostic(code="KD204", message=message, help=help, path=path, span=span_of(tree, path))


def _nearest_only(word: str, names: list[str]) -> str | None:
    help = did_you_mean(word, names)
    return help if help is not None and help.startswith("did") else None


def _type_help(expected: str, node: Node) -> str | None:
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        if expected == "text" and isinstance(node, Scalar):
            return "put it in quotes if it is a name"
        return None
    text = node.value.lower()
    if expected == "true or false" and text in ("on", "off", "yes", "no", "y", "n"):
        meant = "true" if text in ("on", "yes", "y") else "false"
        return f"write `{meant}`: YAML 1.2 reads `{node.value}` as text"
    if not node.plain and expected in ("a whole number", "a number", "true or false"):
        return "take the quotes away"
    return None


def _needed(path: SpecPath) -> str | None:
    if path[-1] == "type":
        return "give its `type`"
    if path[-1] == "name" and path[0] in ("net", "teachers"):
        return "every module of a network has a name"
    return None


def _shown(path: SpecPath) -> str:
    """The last named part of a path, with list indices: `mimic_name[0]`."""
    text = ""
    for step in reversed(path):
        if isinstance(step, str):
            return f"`{'cfgs' if step in ('losses', 'options') else step}{text}`"
        text = f"[{step}]{text}"
    return "the spec"


def known_keys(model: type[BaseModel], path: SpecPath) -> list[str]:
    """The keys that the language knows at a path, as the user writes them."""
    annotation: Any = model
    for step in path:
        annotation = _below(annotation, step)
        if annotation is None:
            return []
    target = _model_in(annotation)
    if target is None:
        return []
    if target is schema.Job:
        return [*JOB_KEYS, "cfgs"]
    if target is schema.Mimic:
        return [*MIMIC_KEYS, "mimic_job0"]
    return list(target.model_fields)


def _below(annotation: Any, step: str | int) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _below(get_args(annotation)[0], step)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(step))
        return None if field is None else field.annotation
    if origin is tuple:
        return get_args(annotation)[0]
    if origin is dict:
        return get_args(annotation)[1]
    for part in get_args(annotation):
        found = _below(part, step)
        if found is not None:
            return found
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, dict):
        return None
    for part in get_args(annotation):
        found = _model_in(part)
        if found is not None:
            return found
    return None


__all__ = ["describe", "known_keys", "span_of", "typed"]
