"""Fields of the dataclasses in options.py as arguments and options of a command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from kdcli.disk import seen

Completion = Literal["spec", "key", "method", "word", "sample"]


AUTO = "auto"
"""`--resume` means the newest valid checkpoint."""

COMMANDS: dict[str, type] = {}
"""The options of each command by its name, for its page; the command line lists them here."""


def is_checkpoint(word: str) -> bool:
    """Whether the word after `--resume` belongs to it: it is no option, no spec, no `key=value`."""
    if word.startswith("-"):
        return False
    return Path(word).suffix not in (".yaml", ".yml") and ("=" not in word or seen(word))


@dataclass(frozen=True, slots=True)
class Argument:
    """Marks a field that is given by its place on the command line. complete: what a shell offers there."""

    help: str
    metavar: str | None = None
    complete: Completion | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """Marks a field that is given as `--name`; one that is marked as an Argument too may be given either way.

    flags: its spellings; of the field's name where empty, a bool with `--no-name` beside it. minimum: of a number.
    bare: its value where the option stands alone; the next word is its value only where `is_value` says so.
    worker: whether each of several processes is given it. again: whether it is part of the command that continues
    the run.
    """

    help: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    minimum: int | None = None
    bare: str | None = None
    is_value: Callable[[str], bool] | None = None
    worker: bool = True
    again: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandParameter:
    """A field of a command's dataclass. type: without its marks. default: MISSING where it must be given."""

    name: str
    type: Any
    default: Any
    argument: Argument | None
    option: Option | None

    @property
    def flags(self) -> tuple[str, ...]:
        """The spellings of the option, the usual one first; a switch's opposite is not among them."""
        assert self.option is not None
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.type) is tuple

    def words(self, value: Any, *, joined: bool = False) -> list[str]:
        """The words of a command line that give the option this value; none for its default.

        joined: `--name=value`, one word, so that no value can be taken for an option.
        """
        assert self.option is not None
        flag = self.flags[0]
        if value == self.default:
            return []
        if isinstance(value, bool):
            return [flag if value else f"--no-{flag.removeprefix('--')}"]
        values = value if self.repeated else [value]
        if joined or self.option.bare is not None:
            return [f"{flag}={one}" for one in values]
        return [word for one in values for word in (flag, str(one))]


def parameters(options: type) -> list[CommandParameter]:
    """The arguments and options of a command's dataclass, in the order of its fields."""
    hints = get_type_hints(options, include_extras=True)
    result = []
    for field in fields(options):
        assert get_origin(hints[field.name]) is Annotated, f"{field.name} is neither Argument nor Option"
        type_, *marks = get_args(hints[field.name])
        argument = next((mark for mark in marks if isinstance(mark, Argument)), None)
        option = next((mark for mark in marks if isinstance(mark, Option)), None)
        result.append(
            CommandParameter(
                name=field.name, type=type_, default=field.default, argument=argument, option=option
            )
        )
    return result


def words_for_worker(options: Any) -> list[str]:
    """The words after `kdcli COMMAND` that give one of several processes the same options."""
    placed, named = [], []
    for parameter in parameters(type(options)):
        value = getattr(options, parameter.name)
        if parameter.option is None:
            placed += _as_words(value)
        elif parameter.option.worker:
            named += parameter.words(value, joined=True)
    return [*placed, *named]


def words_to_continue(options: Any) -> list[str]:
    """The words after `kdcli COMMAND` with which a user continues what these options began."""
    placed, named = [], []
    for parameter in parameters(type(options)):
        value = getattr(options, parameter.name)
        if parameter.argument is not None:
            placed += _as_words(value)
        elif parameter.option is not None and parameter.option.again:
            named += parameter.words(value)
    return [*placed, *named]


def _as_words(value: Any) -> list[str]:
    if isinstance(value, (tuple, list)):
        return [str(one) for one in value]
    return [] if value is None else [str(value)]
