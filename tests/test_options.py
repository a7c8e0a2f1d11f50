"""The options of every command: what the command line, the workers and the command to continue make of a field."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdcli.cli import COMMANDS
from kdcli.cli.parameters import command_of, with_optional_values
from kdcli.commands.option_fields import Option, parameters
from kdcli.commands.options import TrainOptions
from kdcli.spec.tables import Target

made: list[Any] = []
keep = made.append
"""Stands for a command: keeps the options that it is given."""


def app_of(options: type) -> typer.Typer:
    app = typer.Typer()
    app.command()(command_of(options, Target("tests.test_options:keep")))
    return app


APP = typer.main.get_command(app_of(TrainOptions))


def parsed(words: Sequence[str], command: Any = APP, options: type = TrainOptions) -> Any:
    """The options that the command line makes of these words."""
    made.clear()
    before = sys.path[:]
    try:
        command.main(with_optional_values(words, options), standalone_mode=False)
    finally:
        sys.path[:] = before
    (one,) = made
    return one


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreOptions(TrainOptions):
    """Train, with three options more."""

    steps_per_look: Annotated[int | None, Option("Look every N steps.", metavar="N", minimum=1)] = None
    tags: Annotated[tuple[str, ...], Option("A word for the run.", ("--tag",))] = ()
    only_here: Annotated[bool, Option("In this process alone.", worker=False, again=False)] = False


def test_a_new_option_is_one_field() -> None:
    help = CliRunner().invoke(app_of(MoreOptions), ["--help"], env={"COLUMNS": "120", "NO_COLOR": "1"}).output
    assert all(word in help for word in ("--steps-per-look", "N [x>=1]", "Look every N steps.", "--tag"))
    assert "--no-only-here" not in help and "--no-report" in help and "--profile" in help
    command = typer.main.get_command(app_of(MoreOptions))
    words = ["a.yaml", "--steps-per-look", "5", "--tag", "x", "--tag=y z", "--only-here", "k=v"]
    options = parsed(words, command, MoreOptions)
    expected = MoreOptions(
        spec="a.yaml", changes=("k=v",), steps_per_look=5, tags=("x", "y z"), only_here=True
    )
    assert options == expected
    worker = options.for_worker()
    assert worker == ["train", "a.yaml", "--set=k=v", "--steps-per-look=5", "--tag=x", "--tag=y z"]
    assert parsed(worker[1:], command, MoreOptions) == replace(expected, only_here=False)
    assert options.again() == "kdcli train a.yaml k=v --steps-per-look 5 --tag x --tag 'y z' --resume"


TRAPS = ("--resume", "--resume=a", "-h", "--", "-", "auto", "a=b", "x.yaml", "")
"""Words that a parser may take for something else than a value."""
ANY = st.sampled_from(TRAPS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
WORD = ANY.filter(lambda text: text != "" and not text.startswith("-"))
TYPES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(1, 9),
    bool: st.booleans(),
    int | None: st.none() | st.integers(1, 9),
}


def some_options(text: st.SearchStrategy[str]) -> st.SearchStrategy[TrainOptions]:
    """Options of `kdcli train` with values of every field; the values of text are `text`."""
    kinds = {**TYPES, str: WORD, str | None: st.none() | text, tuple[str, ...]: st.lists(text).map(tuple)}
    # The options hold paths whose `~` has been replaced already.
    kinds[Path | None] = st.none() | text.map(Path).filter(lambda path: not str(path).startswith("~"))
    return st.builds(TrainOptions, **{p.name: kinds[p.type] for p in parameters(TrainOptions)})


def defaults(keep: Any) -> dict[str, Any]:
    """The options that `keep` doesn't want, as they are by default."""
    return {p.name: p.default for p in parameters(TrainOptions) if p.option and not keep(p.option)}


@settings(deadline=None)
@given(some_options(ANY))
def test_a_worker_gets_the_same_options(options: TrainOptions) -> None:
    device = options.device if options.gpus is None else "cuda"
    expected = replace(options, device=device, **defaults(lambda option: option.worker))
    command, *words = options.for_worker()
    assert command == "train" and parsed(words) == expected


@settings(deadline=None)
@given(some_options(WORD))
def test_the_command_that_continues_has_the_same_options(options: TrainOptions) -> None:
    expected = replace(options, **{**defaults(lambda option: option.again), "resume": "auto"})
    program, command, *words = shlex.split(options.again())
    assert (program, command) == ("kdcli", "train") and parsed(words) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_its_own_options(name: str) -> None:
    options, target = COMMANDS[name]
    (parameter,) = inspect.signature(target.load()).parameters.values()
    assert parameter.annotation == options.__name__
    assert inspect.signature(command_of(options, target)).parameters.keys() >= {
        field.name for field in fields(options)
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_options_name_their_flags(name: str) -> None:
    """Typer 0.27 made `--DEVICE` of an option with a metavar and no flag: no version is asked to find a name."""
    options = COMMANDS[name][0]
    command = command_of(options, Target("tests.test_options:keep"))
    marks = {
        key: one.annotation.__metadata__[0] for key, one in inspect.signature(command).parameters.items()
    }
    for parameter in parameters(options):
        if parameter.option is None:
            continue
        mark = marks[parameter.name if parameter.argument is None else f"{parameter.name}_as_option"]
        on = parameter.type is bool and parameter.default is True and not parameter.option.flags
        # Typer keeps the first word of an annotation's option as if it were a default.
        flags = tuple(word for word in (mark.default, *mark.param_decls) if isinstance(word, str))
        assert flags == (() if on else parameter.flags)
        assert mark.metavar is None or flags


def test_what_the_engine_shares_with_a_command_is_of_one_type() -> None:
    from kdcli.training.run import RunOptions

    engine = get_type_hints(RunOptions)
    made_anew = {"resume"}
    for options, _ in COMMANDS.values():
        for name, type_ in get_type_hints(options).items():
            assert name not in engine or name in made_anew or engine[name] == type_, (options, name)
