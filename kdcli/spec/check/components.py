"""A `type` with its `kwargs` checked: the name against its table, the arguments against its code's signature."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

from kdcli.errors import Diagnostic, SpecError, SpecPath, did_you_mean, nearest
from kdcli.spec.check.signatures import (
    Parameter,
    Signature,
    is_torchvision_model,
    names_of,
    signature,
)
from kdcli.spec.form.up_types import FOREIGN_TYPES
from kdcli.spec.plugins import is_own, lookup, suggest
from kdcli.spec.ranges import Range, parsed, range_of, ranged
from kdcli.spec.schema import Component
from kdcli.spec.tables import Table, Target, torch_arguments
from kdcli.spec.text.nodes import describe

_SIMPLE = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_PLURALS = {"int": "whole numbers", "float": "numbers", "str": "texts", "bool": "true or false"}
_LISTS = ("list", "List", "Sequence", "tuple", "Tuple", "Iterable", "Collection", "set", "frozenset")
_MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")

BOUND: Mapping[str, tuple[str, ...]] = {
    "module": ("inplanes", "aligned"),
    "dataset": ("path", "places", "train", "image_reader", "transformer", "alignment", "aligned", "classes"),
    "image reader": ("path", "places"),
    "sampler": ("num_samples", "batch_size", "train", "seed", "rank", "world_size", "drop_last"),
    "evaluator": ("facts",),
    "adapter": ("student", "teacher"),
    "optimizer": ("params",),
    "scheduler": ("optimizer", "last_epoch"),
}
"""Positional parameters of own code that kdcli gives by name, by what the code is; others are the spec's."""


def check_component(
    component: Component | Any,
    path: SpecPath,
    table: Table | Collection[str],
    code: str,
    what: str,
    plugins: Sequence[str],
    *,
    prefixes: Collection[str] = (),
    others: Collection[str] = (),
    hidden: Collection[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    help: str | None = None,
    of_torchvision: str | None = None,
) -> Iterator[Diagnostic]:
    """Check one `type` with its `kwargs`: whether the name is known and the arguments fit.

    path: of the component. prefixes: names that begin so are looked at elsewhere. others: what may be written beside
    the table's names, for the nearest name. hidden: arguments that a spec cannot give. kwargs: in place of the
    component's. help: where there is no near name. of_torchvision: the module of torchvision whose name it may be.
    """
    name = component.type
    if any(name.startswith(prefix) and len(name) > len(prefix) for prefix in prefixes) and not is_own(name):
        return
    type_path = (*path, "type")
    try:
        target = lookup(
            table, name, plugins, path=type_path, code=code, what=what, forgotten="KD309", others=others
        )
    except SpecError as error:
        twin = of_torchvision is not None and name in (names_of(of_torchvision) or ())
        for finding in error.diagnostics:
            if twin:
                yield replace(finding, help=f"torchvision's is written `torchvision.{name}`")
            else:
                known = finding.help or is_own(name) or name in FOREIGN_TYPES
                yield finding if known else replace(finding, help=help)
        return
    if target is not None:
        given = component.kwargs if kwargs is None else kwargs
        yield from check_against(target, given, path, f"`{name}`", what, hidden)


MADE_WITH_KWARGS = (
    "a transform is made with its `kwargs`, then called with each image: let a class have `__call__(self, image)`,"
    " or let the function give the function that takes the image"
)


def or_torchvision(finding: Diagnostic, name: str) -> Diagnostic:
    """A finding about a module; where torchvision has a classifier of that name, the help says how it is written."""
    wants_head = (finding.path or ())[-1:] == ("num_classes",)
    if not (wants_head or finding.code == "KD308") or "." in name or not is_torchvision_model(name):
        return finding
    part = f"`{name}` is a backbone without a head: " if wants_head else ""
    return replace(finding, help=f"{part}torchvision's whole classifier is `torchvision.{name}`")


def check_self(kwargs: Mapping[str, Any], path: SpecPath) -> Iterator[Diagnostic]:
    """Check the arguments of the module `self`, which freezes parts of the network and is none itself."""
    for key in kwargs:
        if key != "freeze_patterns":
            yield Diagnostic(
                code="KD320",
                message=f"`self` has no argument `{key}`",
                help=suggest(key, ["freeze_patterns"]),
                path=(*path, "kwargs", key),
                on_key=True,
            )


def check_against(
    target: Target,
    kwargs: Mapping[str, Any],
    path: SpecPath,
    named: str,
    what: str,
    hidden: Collection[str] = (),
    given: Collection[str] = (),
) -> Iterator[Diagnostic]:
    """Check the `kwargs` below a path against a target's signature, where its source can be read.

    named: the target in messages. what: it is, a key of BOUND perhaps. hidden: arguments that a spec cannot give.
    given: arguments that come from elsewhere. Positional parameters of own code are the spec's too.
    """
    takes = signature(target)
    if takes is None:
        return
    kwargs_path = (*path, "kwargs")
    if target.own:
        given = (*given, *BOUND.get(what, ()))
        for finding in check_arguments(
            kwargs, takes, kwargs_path, named, hidden=hidden, given=given, positional=True
        ):
            is_function = finding.code == "KD321" and what == "transform" and takes.kind == "function"
            yield replace(finding, help=MADE_WITH_KWARGS) if is_function else finding
    else:
        yield from check_arguments(kwargs, takes, kwargs_path, named, hidden=hidden, given=given)


def check_arguments(
    kwargs: Mapping[str, Any],
    signature: Signature,
    path: SpecPath,
    what: str,
    *,
    given: Collection[str] = (),
    hidden: Collection[str] = (),
    positional: bool = False,
) -> Iterator[Diagnostic]:
    """Findings for unknown, missing, mistyped and out-of-range arguments, each at its key.

    An argument that is missing because it is misspelt is one finding, that of the misspelt one.

    path: of the mapping that holds the kwargs. given: arguments that come from elsewhere. hidden:
    parameters that a spec cannot give. positional: whether positional parameters may be given too.
    """
    known = {name: p for name, p in signature.kwargs.items() if name not in hidden}
    if positional:
        known = {**signature.positional, **known}
    meant: set[str] = set()
    for name, value in kwargs.items():
        parameter = known.get(name)
        if parameter is None:
            if not signature.opened:
                meant.update(nearest(name, known, most=1))
                yield Diagnostic(
                    code="KD320",
                    message=f"{what} has no argument `{name}`",
                    help=did_you_mean(name, list(known)) or _all_of(known),
                    path=(*path, name),
                    on_key=True,
                )
        elif parameter.annotation is not None:
            yield from check_type(name, value, parameter.annotation, path, what)
    for name, parameter in known.items():
        if parameter.required and name not in kwargs and name not in given and name not in meant:
            message = f"{what} needs the argument `{name}`"
            hint = "" if parameter.annotation is None else f" ({wording(parameter.annotation)})"
            help = f"add `{name}` to its `kwargs`{hint}"
            yield Diagnostic(code="KD321", message=message, help=help, path=path, on_key=True)


def check_type(
    name: str, value: Any, annotation: ast.expr, path: SpecPath, what: str
) -> Iterator[Diagnostic]:
    """A finding for a value of the wrong type or out of range, at the element that is wrong.

    path: of the mapping that holds it.
    """
    code, wrong = "KD322", _misfit(annotation, value)
    if wrong is None:
        code, wrong = "KD328", _misfit(annotation, value, within=True)
    if wrong is None:
        return
    got = f"got {describe(value)}"
    if wrong:
        element = value
        for index in wrong:
            element = element[index]
        got = f"but element {'.'.join(map(str, wrong))} is {describe(element)}"
    yield Diagnostic(
        code=code,
        message=f"`{name}` of {what} must be {wording(annotation)}, {got}",
        help=_number_help(annotation, value) if code == "KD322" else None,
        path=(*path, name, *wrong),
    )


def check_torch_arguments(component: Component | Any, path: SpecPath, what: str) -> Iterator[Diagnostic]:
    """Check arguments of torch's optimizers and schedulers: their types and ranges, as far as the table has them.

    path: of the mapping that holds them.
    """
    known = torch_arguments(component.type)
    for name, value in component.kwargs.items():
        if name in known and value is not None:
            yield from check_type(name, value, parsed(known[name]), path, f"{what} `{component.type}`")


def weight_below_0(finding: Diagnostic, takes: Signature) -> str | None:
    """The name of the weight that a finding about a loss's arguments finds too small; None for all others."""
    if finding.code != "KD328" or finding.path is None:
        return None
    name = str(finding.path[-1])
    annotation = takes.kwargs[name].annotation if name in takes.kwargs else None
    bounds = None if annotation is None else range_of(annotation)
    return name if bounds is not None and bounds.weight else None


class WrongArgument(ValueError):
    """Raised by code that builds from nested mappings. code: KD322 or KD328; path: of the value, below `kwargs`."""

    def __init__(self, finding: Diagnostic) -> None:
        super().__init__(finding.message)
        self.code, self.help, self.path = finding.code, finding.help, finding.path or ()


def refuse_misfits(given: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Raise WrongArgument for the first value that is of a wrong type or out of its range.

    hints: types by name; what has none fits. where: the keys that lead from `kwargs` to the mapping, with dots.
    """
    path = tuple(where.split(".")) if where else ()
    for name, value in given.items():
        if name in hints:
            for finding in check_type(name, value, parsed(hints[name]), path, f"`{where}`"):
                raise WrongArgument(finding)


def types_of(made: Callable[..., Any]) -> dict[str, Any]:
    """The types of the arguments of a function or class, with their ranges."""
    function = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    return get_type_hints(function, include_extras=True)


def choices_of(annotation: ast.expr) -> list[Any]:
    """The values of an annotation `Literal[...]`; none of any other."""
    if isinstance(annotation, ast.Subscript) and _name(annotation.value) == "Literal":
        return _choices(annotation)
    return []


def _all_of(known: Mapping[str, Parameter]) -> str:
    return f"it takes: {', '.join(known)}" if known else "it takes none"


def _number_help(annotation: ast.expr, value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 and fits(annotation, int(value)):
        return f"write `{int(value)}`"
    return None


def fits(annotation: ast.expr, value: Any) -> bool:
    """Whether a YAML value can be of an annotated type; an annotation that is not understood fits all."""
    return _misfit(annotation, value) is None


def _misfit(annotation: ast.expr, value: Any, *, within: bool = False) -> SpecPath | None:
    """Where in the value the type is wrong: () for the whole, indices below; None where it fits.

    within: a number out of its range does not fit either.
    """
    parts = _alternatives(annotation)
    misfits = [_misfit_of_one(part, value, within) for part in parts]
    if any(found is None for found in misfits):
        return None
    return max((found for found in misfits if found is not None), key=len)


def _misfit_of_one(part: ast.expr, value: Any, within: bool) -> SpecPath | None:
    if isinstance(part, ast.Constant):
        return None if part.value is not None or value is None else ()
    bounds = range_of(part)
    if bounds is not None:
        below = _misfit(ranged(part), value, within=within)
        return () if below is None and within and value not in bounds else below
    if isinstance(part, ast.Subscript):
        return _misfit_of_generic(part, value, within)
    return None if _is_simple(_name(part), value) else ()


def _misfit_of_generic(part: ast.Subscript, value: Any, within: bool) -> SpecPath | None:
    name = _name(part.value)
    if name == "Literal":
        return None if any(type(c) is type(value) and c == value for c in _choices(part)) else ()
    if name in _MAPPINGS:
        return None if isinstance(value, dict) else ()
    if name not in _LISTS:
        return None
    if not isinstance(value, list):
        return ()
    elements = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
    fixed = name in ("tuple", "Tuple") and not any(
        isinstance(e, ast.Constant) and e.value is Ellipsis for e in elements
    )
    if fixed and len(value) != len(elements):
        return ()
    for index, item in enumerate(value):
        below = _misfit(elements[index if fixed else 0], item, within=within)
        if below is not None:
            return (index, *below)
    return None


def _is_simple(name: str, value: Any) -> bool:
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "bool":
        return isinstance(value, bool)
    if name == "str":
        return isinstance(value, str)
    if name in _LISTS:
        return isinstance(value, list)
    if name in _MAPPINGS:
        return isinstance(value, dict)
    return True


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    """The parts of a union; a part with a range keeps it."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*_alternatives(annotation.left), *_alternatives(annotation.right)]
    if isinstance(annotation, ast.Subscript):
        name = _name(annotation.value)
        inner = annotation.slice
        if name == "Optional":
            return [*_alternatives(inner), ast.Constant(value=None)]
        if name == "Union" and isinstance(inner, ast.Tuple):
            return [part for element in inner.elts for part in _alternatives(element)]
        if name == "Annotated" and isinstance(inner, ast.Tuple) and range_of(annotation) is None:
            return _alternatives(inner.elts[0])
    return [annotation]


def _name(node: ast.expr) -> str:
    return ast.unparse(node).rsplit(".", 1)[-1]


def _choices(part: ast.Subscript) -> list[Any]:
    elements = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
    return [ast.literal_eval(element) for element in elements]


def wording(annotation: ast.expr) -> str:
    """A type in plain words: "a whole number or a list of whole numbers"."""
    words: list[str] = []
    for part in _alternatives(annotation):
        if isinstance(part, ast.Constant) and part.value is None:
            continue
        word = _wording_of_one(part)
        if word not in words:
            words.append(word)
    return " or ".join(words) or "nothing"


def _wording_of_one(part: ast.expr) -> str:
    bounds = range_of(part)
    if bounds is not None:
        return f"{wording(ranged(part))} {_of(bounds)}"
    if isinstance(part, ast.Subscript):
        name = _name(part.value)
        if name == "Literal":
            choices = [f"`{choice}`" for choice in _choices(part)]
            return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        if name in _LISTS:
            if _unlike(part):
                assert isinstance(part.slice, ast.Tuple)
                return f"a list: {', then '.join(wording(element) for element in part.slice.elts)}"
            element = part.slice.elts[0] if isinstance(part.slice, ast.Tuple) else part.slice
            bounds = range_of(element)
            name = _name(element if bounds is None else ranged(element))
            if name not in _PLURALS:
                return "a list"
            return f"a list of {_PLURALS[name]}" + ("" if bounds is None else f" {_of(bounds)}")
        return "a mapping" if name in _MAPPINGS else ast.unparse(part)
    name = _name(part)
    if name in _LISTS:
        return "a list"
    return "a mapping" if name in _MAPPINGS else _SIMPLE.get(name, name)


def _unlike(part: ast.Subscript) -> bool:
    """Whether it is a tuple whose elements are of several types."""
    if _name(part.value) not in ("tuple", "Tuple") or not isinstance(part.slice, ast.Tuple):
        return False
    elements = part.slice.elts
    if any(isinstance(element, ast.Constant) and element.value is Ellipsis for element in elements):
        return False
    return len({ast.unparse(element) for element in elements}) > 1


def _of(bounds: Range) -> str:
    """A range as it follows a type: `more than 0`, `of at least 1`."""
    return bounds.bounds if bounds.bounds.startswith(("more", "less")) else f"of {bounds.bounds}"
