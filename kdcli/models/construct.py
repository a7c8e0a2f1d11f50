"""One module of a network from its type's name and arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from kdcli.errors import KdError, SpecError, SpecPath, did_you_mean
from kdcli.failures import own_mistake, place_of
from kdcli.models import MODULES, STAGES, VIT
from kdcli.spec.check.components import WrongArgument
from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.plugins import load_own, lookup


def construct(
    kind: str,
    kwargs: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    path: SpecPath,
    plugins: Sequence[str] = (),
) -> nn.Module:
    """Build the module that `kind` names.

    kind: a name of MODULES (`from_python`: what Python has given), `torchvision.<name>`, `timm.<name>` or
    `package.module:attribute` of a package among plugins. facts: what a constructor may ask for by name
    and the spec does not say (`inplanes`, `aligned`). Raises SpecError at the module's path.
    """
    try:
        if kind == FROM_PYTHON:
            from kdcli.models.detection.whole import TorchvisionDetector, classes_of
            from kdcli.models.in_memory import given_module

            made = given_module(kwargs, path)
            classes = classes_of(made)
            return made if classes is None else TorchvisionDetector(made, classes)
        if kind in MODULES:
            target = MODULES[kind]
            if target.path in (STAGES, VIT):
                from kdcli.models.foreign import refuse_download

                refuse_download("torchvision", kind, kwargs, path)
            return _call(target.load(), kind, kwargs, {**facts}, target.preset, path)
        if kind.startswith("torchvision."):
            from kdcli.models.foreign import build_torchvision  # torchvision takes as long as torch itself

            return build_torchvision(kind.removeprefix("torchvision."), kwargs, path)
        if kind.startswith("timm."):
            from kdcli.models.foreign import build_timm

            return build_timm(kind.removeprefix("timm."), kwargs, path)
        if ":" in kind:
            return _call(_own(kind, plugins, path), kind, kwargs, {**facts}, {}, path)
    except KdError:
        raise
    except Exception as error:
        if own_mistake(error):
            raise
        # Whatever a constructor raises is about the arguments the spec gave it.
        raise _refused(kind, kwargs, error, path) from error
    help = did_you_mean(kind, list(MODULES))
    if "." in kind and help is None:
        help = f"own code is written `{'.'.join(kind.split('.')[:-1])}:{kind.split('.')[-1]}`"
    raise SpecError.at((*path, "type"), "KD401", f"there is no module type `{kind}`", help)


def _call(
    constructor: Callable[..., Any],
    kind: str,
    kwargs: Mapping[str, Any],
    facts: dict[str, Any],
    preset: Mapping[str, Any],
    path: SpecPath,
) -> nn.Module:
    parameters = inspect.signature(constructor).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    known = [name for name in named if name not in preset and name != "aligned"]
    for key in kwargs:
        if key not in known and not open_ended:
            raise SpecError.at(
                (*path, "kwargs", key),
                "KD404",
                f"`{kind}` has no argument `{key}`",
                did_you_mean(key, known),
                on_key=True,
            )
    given = {key: value for key, value in facts.items() if key in named and value is not None}
    arguments = {**given, **kwargs, **preset}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if "inplanes" in missing:
        raise SpecError.at(
            path,
            "KD403",
            f"`{kind}` needs the widths of a module before it, and none has any",
            "put it after a backbone, or name one in `prev`",
        )
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise SpecError.at(path, "KD405", f"`{kind}` needs {names}", "add it under `kwargs`")
    module = constructor(**arguments)
    if not isinstance(module, nn.Module):
        raise SpecError.at(
            (*path, "type"), "KD406", f"`{kind}` gives a `{type(module).__name__}`, not an `nn.Module`"
        )
    return module


def _refused(kind: str, kwargs: Mapping[str, Any], error: Exception, path: SpecPath) -> SpecError:
    """The finding for a failed constructor, at the argument that its words name first, else at the module."""
    if isinstance(error, WrongArgument):
        return SpecError.at((*path, "kwargs", *error.path), error.code, str(error), error.help)
    named = next((word for word in re.findall(r"\w+", str(error)) if word in kwargs), None)
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    what += place_of(error)
    argument_path = (
        path if named is None else (*path, "kwargs", *(_named_inside(kwargs, str(error)) or (named,)))
    )
    on_key = len(argument_path) > len(path) + 2
    return SpecError.at(
        argument_path, "KD402", f"`{kind}` can't be built: {what}", "check its kwargs", on_key=on_key
    )


def _named_inside(kwargs: Mapping[str, Any], message: str) -> SpecPath:
    """The path into the arguments that a message quotes (`cfg.a.b`), and the key in it that it quotes next."""
    quoted = re.findall(r"`([\w.]+)`", message)
    for place, dotted in enumerate(quoted):
        inside: Any = kwargs
        steps = dotted.split(".")
        for step in steps:
            inside = inside.get(step) if isinstance(inside, Mapping) else None
        if inside is not None:
            key = next(
                (word for word in quoted[place + 1 :] if isinstance(inside, Mapping) and word in inside), None
            )
            return (*steps, key) if key is not None else tuple(steps)
    return ()


def _own(kind: str, plugins: Sequence[str], path: SpecPath) -> Callable[..., Any]:
    """The attribute of a package that the command line allows."""
    type_path = (*path, "type")
    lookup(MODULES, kind, plugins, path=type_path, code="KD401", what="module type")
    found = load_own(kind, plugins, type_path)
    if not callable(found):
        raise SpecError.at(
            type_path, "KD406", f"`{kind}` is a `{type(found).__name__}`, not a model class or function"
        )
    return found  # type: ignore[no-any-return]
