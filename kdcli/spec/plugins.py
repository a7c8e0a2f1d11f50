"""Plugins: code of one's own, `package.module:attribute`, that a table's name may be behind `--plugin PACKAGE`.

Every table is asked through `lookup`. A command that builds something first calls `import_plugins`, which imports
what the spec names of the packages that the command line allows; nothing is imported from a spec alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from kdcli.disk import at_path, refused
from kdcli.errors import Diagnostic, Findings, KdError, SpecError, SpecPath, did_you_mean
from kdcli.failures import PLUGINS, with_place
from kdcli.spec.form.up_types import FOREIGN_TYPES
from kdcli.spec.schema import Component
from kdcli.spec.tables import Target

T = TypeVar("T")

_imported: set[str] = set()
"""The names that `import_plugins` has imported in this process: what may be built."""


def is_own(name: str) -> bool:
    """Whether a name means code outside the tables: `package.module:attribute`."""
    return ":" in name


def package_of(name: str) -> str:
    """The package that `--plugin` has to name for `package.module:attribute`."""
    return name.partition(":")[0].split(".")[0]


def may_import(name: str, plugins: Sequence[str]) -> bool:
    """Whether the module of `package.module:attribute` belongs to one of these packages."""
    module = name.partition(":")[0]
    return any(module == package or module.startswith(f"{package}.") for package in plugins)


def not_a_plugin(name: str, code: str, path: SpecPath) -> Diagnostic:
    """The finding for code of a package that `--plugin` does not name; path: of the name."""
    package = package_of(name)
    message = f"`{package}` is not a plugin of this run: add `--plugin {package}` for `{name}`"
    help = "a spec alone may not import code: name a package that you trust"
    return Diagnostic(code=code, message=message, help=help, path=path)


def _own_target(name: str) -> Target:
    return Target(name, own=True)


def lookup(
    table: Mapping[str, T] | Collection[str],
    name: str,
    plugins: Sequence[str] | None = None,
    *,
    path: SpecPath = (),
    code: str,
    what: str = "type",
    forgotten: str = "KD413",
    others: Collection[str] = (),
    own: Callable[[str], Any] = _own_target,
) -> Any:
    """What a name stands for: the table's own entry, or `own(name)` for code of a plugin; nothing is imported.

    A table that is names alone has no entries: None. plugins: packages whose code is allowed; else what
    `import_plugins` has imported. path: of the name. code, what: for a name that the table does not have. forgotten:
    the code where a plugin is not named. others: what may be written beside the table's names, for the nearest
    name. Raises SpecError.
    """
    if name in table:
        return table[name] if isinstance(table, Mapping) else None
    if is_own(name):
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise SpecError.at(path, code, f"`{name}` is not `package.module:attribute`")
        if name not in _imported if plugins is None else not may_import(name, plugins):
            raise SpecError([not_a_plugin(name, forgotten, path)])
        return own(name)
    if name in FOREIGN_TYPES:
        raise SpecError.at(path, code, f"kdcli has no {what} `{name}`: {FOREIGN_TYPES[name]}")
    raise SpecError.at(path, code, f"no {what} is called `{name}`", suggest(name, [*table, *others]))


def suggest(word: str, known: Sequence[str]) -> str | None:
    """The name that differs in case alone, else the nearest ones."""
    same = [name for name in known if name.casefold() == word.casefold()]
    return f"did you mean `{same[0]}`?" if same else did_you_mean(word, known)


def mixes_labels(batch_fn: Component | None) -> bool:
    """Whether a batch function gives `mixed_labels`: kdcli's do, a plugin's where the spec gives it `num_classes`."""
    return batch_fn is not None and (not is_own(batch_fn.type) or "num_classes" in batch_fn.kwargs)


# imports


def load_own(name: str, plugins: Sequence[str], path: SpecPath) -> Any:
    """The attribute that `package.module:attribute` names; SpecError KD413 or KD414 at `path`."""
    if not may_import(name, plugins):
        raise SpecError([not_a_plugin(name, "KD413", path)])
    PLUGINS.add(package_of(name))
    module, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module)
    except (Exception, SystemExit) as error:
        message = f"`{module}` can't be imported: {with_place(error)}"
        help = None
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            help = "it is looked up among what is installed, then in the working directory"
        raise SpecError.at(path, "KD414", message, help) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            help = did_you_mean(attribute, names)
            raise SpecError.at(path, "KD414", f"`{module}` has no `{attribute}`", help)
        found = getattr(found, part)
    return found


def import_plugins(spec: BaseModel, plugins: Sequence[str]) -> None:
    """Import all own code that a spec names, so that whatever is wrong with it is reported before anything else.

    plugins: the packages that the command line allows.

    Raises SpecError KD413 where a package is no plugin, KD414 where a module can't be imported (once for each)
    or has no such attribute.
    """
    findings, failed = Findings(), set[str]()
    for path, name in own_code(spec):
        module = name.partition(":")[0]
        if module in failed:
            continue
        try:
            load_own(name, plugins, path)
            _imported.add(name)
        except SpecError as error:
            findings.found += error.diagnostics
            if module not in sys.modules:
                failed.add(module)
    findings.raise_errors()


def admit(name: str) -> None:
    """Let a name be looked up that own code, which has been imported, itself names."""
    if is_own(name):
        _imported.add(name)


def recorded(name: str, kind: type[T], *, mapping: bool = True) -> T | None:
    """What own code that has been imported says of itself in its attribute `kdcli_record`; None where it has none.

    kind: of the record, a Target: one of these, or, where `mapping` says so, a mapping of its fields. Raises
    SpecError KD350.
    """
    record = getattr(_own_target(name).load(), "kdcli_record", None)
    if record is None:
        return None
    if isinstance(record, kind):
        return replace(record, path=name, own=True)  # type: ignore[type-var]
    known = [one.name for one in fields(kind) if one.name not in ("path", "own")]  # type: ignore[arg-type]
    if not isinstance(record, Mapping) or not mapping:
        message = f"`kdcli_record` of `{name}` is a `{type(record).__name__}`, not a `{kind.__name__}`"
        raise SpecError([Diagnostic(code="KD350", message=message, help=f"it may say: {', '.join(known)}")])
    for key in record:
        if key not in known:
            help = did_you_mean(str(key), known) or f"it may say: {', '.join(known)}"
            message = f"`kdcli_record` of `{name}` has no field `{key}`"
            raise SpecError([Diagnostic(code="KD350", message=message, help=help)])
    hints = get_type_hints(kind)
    for key, value in record.items():
        choices = get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
        number = hints[key] is float and (isinstance(value, bool) or not isinstance(value, (int, float)))
        if number or (choices and value not in choices):
            expected = "a number" if number else f"one of {', '.join(f'`{one}`' for one in choices)}"
            message = f"`{key}` in `kdcli_record` of `{name}` must be {expected}, got {value!r}"
            raise SpecError([Diagnostic(code="KD350", message=message)])
    try:
        return kind(name, own=True, **record)  # type: ignore[call-arg]
    except TypeError as error:
        message = f"`kdcli_record` of `{name}`: {error}"
        raise SpecError([Diagnostic(code="KD350", message=message)]) from error


def own_code(part: Any, path: SpecPath = ()) -> Iterator[tuple[SpecPath, str]]:
    """Every `type` (and `mimic_ins_type`) of a spec that names code outside the tables, with its path."""
    if isinstance(part, BaseModel):
        for key in type(part).model_fields:
            value = getattr(part, key)
            if key in ("type", "mimic_ins_type") and isinstance(value, str):
                if is_own(value):
                    yield (*path, key), value
            else:
                yield from own_code(value, (*path, key))
    elif isinstance(part, Mapping):
        for key, value in part.items():
            if isinstance(value, (BaseModel, Mapping, tuple)):
                yield from own_code(value, (*path, key))
    elif isinstance(part, (list, tuple)):
        for index, value in enumerate(part):
            if isinstance(value, BaseModel):
                yield from own_code(value, (*path, index))


def constructed(target: Target, kwargs: Mapping[str, Any], name: str, path: SpecPath) -> Any:
    """What a table's entry makes of the spec's arguments; SpecError KD505 at `path` where it refuses them.

    Own code may raise anything: its message is given with the file and line that it comes from. A file that the system
    refuses is told at `path` too.
    """
    try:
        return target.load()(**{**target.preset, **kwargs})
    except KdError:
        raise
    except OSError as reason:
        with at_path(path):
            raise refused(os.fsdecode(reason.filename or name), reason) from reason
    except Exception as reason:
        if target.own:
            raise SpecError.at(path, "KD505", f"`{name}` can't be built: {with_place(reason)}") from reason
        if not isinstance(reason, (TypeError, ValueError)):
            raise
        message = re.sub(r"^[\w.<>]+\(\) ", "", str(reason))
        raise SpecError.at(path, "KD505", f"`{name}`: {message}") from reason
