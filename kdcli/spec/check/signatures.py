"""Parameters of code named in a table, read from its source without importing it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, cached_property
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, get_type_hints

from kdcli.disk import entries_like, is_file
from kdcli.spec.ranges import Weight, parsed, range_of, shown
from kdcli.spec.tables import Kind, Loss, Target

__all__ = ["MethodOption", "Parameter", "Signature", "options_of", "signature", "source_file"]

NO_ARGUMENTS = frozenset({"ABC", "Dataset", "Generic", "Module", "Protocol", "object"})
"""Bases whose constructors take nothing."""


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
        if is_file(path):
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


@cache
def is_torchvision_model(name: str) -> bool:
    """Whether torchvision.models has a function of this name, found without importing it."""
    package = source_file("torchvision.models")
    files = [] if package is None else entries_like(package.parent, "*.py")
    return any(
        isinstance((names_of(f"torchvision.models.{file.stem}") or {}).get(name), ast.FunctionDef)
        for file in files
    )


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


def lineage_of(definition: Definition) -> list[Definition]:
    """A class and its bases, nearest first, as far as kdcli's or its own package defines them."""
    line: list[Definition] = []
    waiting = [definition]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter. annotation: its expression, None where there is none. default: the value, or
    the source text of one that is no literal; meaningless where required."""

    name: str
    annotation: ast.expr | None
    required: bool
    default: Any = None
    keyword_only: bool = True

    @property
    def type_text(self) -> str | None:
        """The annotation as written, its ranges in words."""
        return None if self.annotation is None else shown(self.annotation)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a function or class takes.

    kwargs: what a spec may give. positional: the positional parameters, which kdcli binds by name; of own code a
    spec may give those that kdcli does not know. called: of a function the same, of a class the positional
    parameters of its `forward`. opened: takes further keyword arguments that cannot be known.
    """

    kind: Literal["function", "class"]
    kwargs: Mapping[str, Parameter]
    positional: Mapping[str, Parameter]
    called: Mapping[str, Parameter] = field(default_factory=dict)
    opened: bool = False
    doc: str | None = None

    @property
    def forward(self) -> tuple[str, ...]:
        """The names of the positional parameters of a class's `forward`."""
        return tuple(self.called) if self.kind == "class" else ()

    @property
    def facts(self) -> tuple[str, ...]:
        """The names of the positional parameters."""
        return tuple(self.positional)

    @cached_property
    def needs(self) -> frozenset[str]:
        """Every name that is bound rather than given."""
        return frozenset((*self.facts, *self.forward))


def signature(target: Target) -> Signature | None:
    """The signature of a target without its preset arguments; None where no source can be read.

    A loss takes `loss_weight` too, which is multiplied outside it unless its code declares the argument.
    """
    made = _signature(target.path)
    if made is None or not (target.preset or isinstance(target, Loss)):
        return made
    kwargs = {name: p for name, p in made.kwargs.items() if name not in target.preset}
    if isinstance(target, Loss):
        weight = kwargs.get("loss_weight") or Parameter(
            name="loss_weight", annotation=None, required=False, default=target.weight
        )
        if weight.annotation is None or range_of(weight.annotation) is None:
            weight = replace(weight, annotation=parsed(Weight))
        kwargs["loss_weight"] = weight
    positional = {name: p for name, p in made.positional.items() if name not in target.preset}
    return replace(made, kwargs=kwargs, positional=positional)


def derived_loss(name: str) -> Loss:
    """The record of an own loss that has none, from its signature in the source; nothing is imported.

    It compares features where it takes a `teacher`, logits where it takes `teacher_logits`, and else needs no
    teacher. Its `T` softens; a `student` that is a Sequence or a list is the list of all features.
    """
    takes = signature(Target(name, own=True))
    if takes is None:
        return Loss(name, kind="feature", own=True)
    needs = takes.needs
    kind: Kind = "feature" if "teacher" in needs else "logit" if "teacher_logits" in needs else "teacher-free"
    called = takes.called if takes.kind == "class" else takes.positional
    student = called.get("student") or called.get("teacher")
    written = "" if student is None or student.annotation is None else ast.unparse(student.annotation)
    lists = written.split("[")[0].split(".")[-1] in ("Sequence", "list", "tuple")
    return Loss(name, kind=kind, softened="T" in takes.kwargs, whole_list=lists, own=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOption(Parameter):
    """One option of a mimic method. meaning, code: as `kdcli.spec.tables.option` takes them."""

    annotation: ast.expr
    meaning: str = ""
    code: str | None = None


def options_of(options: type[Any]) -> Mapping[str, MethodOption]:
    """The options of a mimic method by name, from the dataclass in its record."""
    hints = get_type_hints(options, include_extras=True)
    found = {}
    for one in fields(options):
        made = one.default_factory() if one.default_factory is not MISSING else one.default
        found[one.name] = MethodOption(
            name=one.name,
            annotation=parsed(hints[one.name]),
            required=made is MISSING,
            default=list(made) if isinstance(made, tuple) else made,
            meaning=one.metadata.get("meaning", ""),
            code=one.metadata.get("code"),
        )
    return found


@cache
def _signature(path: str) -> Signature | None:
    module, _, attribute = path.partition(":")
    definition = find_definition(module, attribute)
    if definition is None:
        return None
    if not isinstance(definition.node, ast.ClassDef):
        parameters, opened = _parameters(definition.node, definition.module, bound=False)
        return _made("function", parameters, opened, definition.node)
    lineage = lineage_of(definition)
    called: dict[str, Parameter] = {}
    method = _method(lineage, "forward")
    if method is not None:
        parameters, _ = _parameters(*method, bound=True)
        called = {p.name: p for p in parameters if not p.keyword_only}
    constructor = _method(lineage, "__init__")
    if constructor is None and any(_is_dataclass(one.node) for one in lineage):
        parameters, opened = _fields(lineage), False
    elif constructor is None:
        # What a base class of another package takes can't be known.
        parameters, opened = [], definition.module.split(".")[0] != KDCLI.name and _has_unread_base(lineage)
    else:
        parameters, opened = _parameters(*constructor, bound=True)
    return _made("class", parameters, opened, definition.node, called)


def _made(
    kind: Literal["function", "class"],
    parameters: list[Parameter],
    opened: bool,
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    called: Mapping[str, Parameter] | None = None,
) -> Signature:
    positional = {p.name: p for p in parameters if not p.keyword_only}
    doc = ast.get_docstring(node)
    return Signature(
        kind=kind,
        kwargs={p.name: p for p in parameters if p.keyword_only},
        positional=positional,
        called=positional if called is None else called,
        opened=opened,
        doc=None if doc is None else inspect.cleandoc(doc),
    )


def _method(lineage: list[Definition], name: str) -> tuple[ast.FunctionDef, str] | None:
    for one in lineage:
        assert isinstance(one.node, ast.ClassDef)
        for statement in one.node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == name:
                return statement, one.module
    return None


def _parameters(
    node: ast.FunctionDef | ast.AsyncFunctionDef, module: str, *, bound: bool
) -> tuple[list[Parameter], bool]:
    """The parameters, and whether there is a `**kwargs`."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    pairs = list(zip(positional, defaults, strict=True))[1 if bound else 0 :]
    found = [_parameter(argument, default, module, False) for argument, default in pairs]
    found += [
        _parameter(argument, default, module, True)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return found, arguments.kwarg is not None


def _parameter(argument: ast.arg, default: ast.expr | None, module: str, keyword_only: bool) -> Parameter:
    return Parameter(
        name=argument.arg,
        annotation=None if argument.annotation is None else _expanded(argument.annotation, module),
        required=default is None,
        default=_value(default),
        keyword_only=keyword_only,
    )


def _expanded(annotation: ast.expr, module: str, steps: int = 0) -> ast.expr:
    """The annotation with the aliases of its own package (`Size = int | list[int]`) and kdcli's written out."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:
            return annotation
    if isinstance(annotation, ast.BinOp):
        left, right = (_expanded(side, module, steps) for side in (annotation.left, annotation.right))
        return ast.BinOp(left=left, op=annotation.op, right=right)
    if isinstance(annotation, ast.Subscript) and not _is_literal(annotation):
        return ast.Subscript(
            value=annotation.value, slice=_expanded(annotation.slice, module, steps), ctx=annotation.ctx
        )
    if isinstance(annotation, ast.Tuple):
        parts = [_expanded(part, module, steps) for part in annotation.elts]
        return ast.Tuple(elts=parts, ctx=annotation.ctx)
    if not isinstance(annotation, ast.Name) or steps > MOST_STEPS:
        return annotation
    statement = (names_of(module) or {}).get(annotation.id)
    aliased = statement.value if isinstance(statement, ast.Assign) else None
    if isinstance(aliased, (ast.Subscript, ast.BinOp, ast.Name)):
        return _expanded(aliased, module, steps + 1)
    if isinstance(statement, ast.ImportFrom):
        other = imported_module(module, statement)
        if other.split(".")[0] in (module.split(".")[0], KDCLI.name):
            original = next(a.name for a in statement.names if (a.asname or a.name) == annotation.id)
            name = ast.Name(id=original, ctx=ast.Load())
            found = _expanded(name, other, steps + 1)
            return annotation if isinstance(found, ast.Name) else found
    return annotation


def _is_literal(annotation: ast.Subscript) -> bool:
    return ast.unparse(annotation.value).split(".")[-1] == "Literal"


def _value(default: ast.expr | None) -> Any:
    if default is None:
        return None
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def _is_dataclass(node: ast.stmt) -> bool:
    assert isinstance(node, ast.ClassDef)
    names = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(ast.unparse(name).split(".")[-1] == "dataclass" for name in names)


def _has_unread_base(lineage: list[Definition]) -> bool:
    """Whether a class inherits from one that could not be read, and that may have a constructor of its own."""
    read = {one.node.name for one in lineage}
    for one in lineage:
        assert isinstance(one.node, ast.ClassDef)
        for base in one.node.bases:
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).split(".")[-1]
            if name not in read and name not in NO_ARGUMENTS:
                return True
    return False


def _fields(lineage: list[Definition]) -> list[Parameter]:
    """The fields of a dataclass as keyword arguments."""
    found: dict[str, Parameter] = {}
    for one in reversed(lineage):
        assert isinstance(one.node, ast.ClassDef)
        for statement in one.node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if "ClassVar" in ast.unparse(statement.annotation):
                    continue
                name = statement.target.id
                found[name] = Parameter(
                    name=name,
                    annotation=_expanded(statement.annotation, one.module),
                    required=statement.value is None,
                    default=_value(statement.value),
                )
    return list(found.values())
