"""Makes the function that Typer registers as a command from the dataclass of the command's options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from kdcli.commands.option_fields import CommandParameter, Completion, parameters
from kdcli.disk import expanded
from kdcli.errors import UsageError
from kdcli.spec.tables import Target


def command_of(options: type, target: Target) -> Callable[..., None]:
    """The function that Typer registers: it makes `options` of the command line and gives them to the target.

    What the target returns is the exit code. The first line of the dataclass's docstring is the command's help.
    """
    known = parameters(options)

    def command(**given: Any) -> None:
        made = options(**{parameter.name: _value(parameter, given) for parameter in known})
        importable_from_here(getattr(made, "plugins", ()))
        code = target.load()(made)
        if code:
            raise typer.Exit(code)

    command.__signature__ = inspect.Signature([one for parameter in known for one in _typed(parameter)])  # type: ignore[attr-defined]
    command.__doc__ = (options.__doc__ or "").splitlines()[0]
    return command


class _Switches:
    """Leaves out, in `--help`, the type of what takes no value, and that of words whose name says what they are."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, for parsing and for help."""
        known: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in known:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
            elif parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None
        return known


class Command(_Switches, TyperCommand):
    """A command of `kdcli`."""


class Group(_Switches, TyperGroup):
    """`kdcli` itself."""


def importable_from_here(plugins: tuple[str, ...]) -> None:
    """Let plugins lie in the working directory, as with `python -m`; what is installed goes first."""
    folder = str(Path.cwd())
    if plugins and folder not in sys.path:
        sys.path.append(folder)


def _typed(parameter: CommandParameter) -> list[inspect.Parameter]:
    """The parameters of Typer's function for one field: two where it may be given as a word or as an option."""
    type_, default = parameter.type, parameter.default
    if parameter.repeated:
        # Typer knows no tuples of any length; a list's default is None, so that none is shown.
        type_ = list[get_args(type_)[0]]  # type: ignore[misc]
        if default is not MISSING:
            type_, default = type_ | None, None
    if default is MISSING:
        default = inspect.Parameter.empty
    made: dict[str, Any] = {}
    if (argument := parameter.argument) is not None:
        made[parameter.name] = typer.Argument(
            metavar=argument.metavar,
            help=argument.help,
            autocompletion=None if argument.complete is None else COMPLETIONS[argument.complete],
        )
    if (option := parameter.option) is not None:
        switch = parameter.type is bool
        # Only a switch that is on is left to Typer, which adds `--no-name`: some of its versions take the metavar of
        # an option without flags for its name.
        made[_option_name(parameter)] = typer.Option(
            *(() if switch and parameter.default and not option.flags else parameter.flags),
            metavar=option.metavar or _number(parameter.type),
            show_default=not switch,
            help=option.help,
            min=option.minimum,
        )
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, mark]
        )
        for name, mark in made.items()
    ]


def _number(type_: Any) -> str | None:
    """What a help page shows for a number, in place of the name of its type in Python."""
    return "N" if {int, float} & {type_, *get_args(type_)} else None


def _option_name(parameter: CommandParameter) -> str:
    return parameter.name if parameter.argument is None else f"{parameter.name}_as_option"


def _value(parameter: CommandParameter, given: dict[str, Any]) -> Any:
    """The value of a field from what Typer parsed, words and option together."""
    if not parameter.repeated:
        return _path(given[parameter.name])
    names = dict.fromkeys([parameter.name, _option_name(parameter)])
    return tuple(_path(one) for name in names for one in given.get(name) or ())


def _path(value: Any) -> Any:
    """A path with `~` expanded, which a shell leaves in `--weights=~/x`; any other value as it is."""
    return expanded(value) if isinstance(value, Path) else value


def _specs(incomplete: str) -> list[str]:
    from kdcli.commands.completion import complete_spec

    return complete_spec(incomplete)


def _keys(context: typer.Context, incomplete: str) -> list[str]:
    from kdcli.commands.completion import complete_key

    return complete_key(context.params.get("spec"), incomplete)


def _names(kind: Completion) -> Callable[[str], list[str]]:
    def offered(incomplete: str) -> list[str]:
        from kdcli.commands.completion import complete_name

        return complete_name(kind, incomplete)

    return offered


COMPLETIONS: dict[Completion, Callable[..., list[str]]] = {
    "spec": _specs,
    "key": _keys,
    "method": _names("method"),
    "word": _names("word"),
    "sample": _names("sample"),
}
"""What a shell offers for an argument: spec files, `net.model.kwargs.` from the spec named before, or names."""


def with_optional_values(arguments: Sequence[str], options: type) -> list[str]:
    """The words of a command line as Typer takes them.

    An option that may stand without a value (`--resume`) is given its value; `--no-quiet` is left out.
    """
    known = [parameter for parameter in parameters(options) if parameter.option]
    bare = {p.flags[0]: p.option for p in known if p.option and p.option.bare is not None}
    already = {f"--no-{p.flags[0].removeprefix('--')}" for p in known if p.default is False}
    result = []
    for index, word in enumerate(arguments):
        if word in already:
            # What is off unless it is given; `--help` does not name the opposite.
            continue
        option = bare.get(word)
        following = arguments[index + 1 : index + 2]
        if option is None or (option.is_value is not None and following and option.is_value(following[0])):
            result.append(word)
        else:
            result.append(f"{word}={option.bare}")
    return result


KEYS = {
    "--epochs": "trainer.max_epoch",
    "--num-epochs": "trainer.max_epoch",
    "--max-epoch": "trainer.max_epoch",
    "--max-iter": "trainer.max_iter",
    "--iters": "trainer.max_iter",
    "--steps": "trainer.max_iter",
    "--lr": "trainer.optimizer.kwargs.lr",
    "--learning-rate": "trainer.optimizer.kwargs.lr",
    "--batch-size": "dataset.batch_sampler.kwargs.batch_size",
    "--workers": "dataset.dataloader.kwargs.num_workers",
    "--num-workers": "dataset.dataloader.kwargs.num_workers",
    "--seed": "runtime.random_seed",
    "--precision": "runtime.precision",
    "--out": "saver.save_dir",
    "--output": "saver.save_dir",
    "--output-dir": "saver.save_dir",
    "--pretrained": "saver.pretrain_model",
}
"""Options of other tools, and the key of the spec that says so here."""


def refuse_keys(words: Sequence[str], options: type | None) -> None:
    """Raise UsageError for an option of another tool that is a key of the spec here, with that key."""
    for index, word in enumerate(words):
        flag, _, value = word.partition("=")
        flag = flag.replace("_", "-")
        if options is None or flag not in KEYS or not _takes_spec(options) or flag in _flags(options):
            continue
        value = value or next(iter(words[index + 1 : index + 2]), "")
        said = f"{KEYS[flag]}={value or '...'}"
        raise UsageError.of(f"there is no option `{flag}`", f"it is a key of the spec: say `{said}`")


def _flags(options: type) -> set[str]:
    return {flag for p in parameters(options) if p.option for flag in p.flags}


def _takes_spec(options: type) -> bool:
    return any("SPEC" in (p.argument.metavar or "") for p in parameters(options) if p.argument is not None)
