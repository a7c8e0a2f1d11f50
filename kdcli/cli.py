"""The command line: a doorway that parses arguments, calls one function and renders what it returns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="kdcli",
    help="Distil vision models from a YAML spec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML spec; `-` reads standard input.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to set in the spec.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The same, as an option.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; overrides runtime.device.")]
Plugin = Annotated[
    list[str] | None, typer.Option(metavar="PACKAGE", help="A package of your own that the spec may import.")
]


@app.callback()
def kdcli() -> None:
    """Distil vision models from a YAML spec."""


@app.command()
def train(
    spec: Spec,
    changes: Changes = None,
    *,
    set_: Set = None,
    gpus: Annotated[
        str | None, typer.Option(help="How many GPUs of this machine, or which: 8, or 0,2.")
    ] = None,
    device: Device = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Continue from the newest valid checkpoint, or from PATH."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Start over where a run lies already.")] = False,
    allow_changed: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A key that may differ from the checkpoint's spec.")
    ] = None,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and the last line only.")] = False,
) -> None:
    """Train the student of SPEC: distil it (runner `kd`) or train `net` alone (runner `base`)."""
    from kdcli import commands

    commands.train(
        spec,
        [*(changes or []), *(set_ or [])],
        gpus=gpus,
        device=device,
        resume=resume,
        overwrite=overwrite,
        allow_changed=allow_changed or [],
        plugins=plugin or [],
        quiet=quiet,
    )


@app.command(name="eval")
def evaluate(
    spec: Spec,
    changes: Changes = None,
    *,
    set_: Set = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The student's weights; else its run's best, else its last.")
    ] = None,
    device: Device = None,
    plugin: Plugin = None,
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
) -> None:
    """Measure the student of SPEC and its teachers side by side: quality, size, speed, agreement."""
    from kdcli import commands

    commands.evaluate(
        spec,
        [*(changes or []), *(set_ or [])],
        weights=weights,
        device=device,
        plugins=plugin or [],
        as_json=format == "json",
    )


def main() -> None:
    """The console script: one clear message and an exit code for everything that can go wrong."""
    from kdcli.commands import guarded

    sys.exit(guarded(lambda: app(_with_optional_values(sys.argv[1:]), standalone_mode=True)))


def _with_optional_values(arguments: list[str]) -> list[str]:
    """`--resume` may stand without a value: it is given `auto` then."""
    result = []
    for index, argument in enumerate(arguments):
        result.append(argument)
        if argument == "--resume":
            following = arguments[index + 1] if index + 1 < len(arguments) else None
            if following is None or following.startswith("-") or not Path(following).exists():
                result.append("auto")
    return result


if __name__ == "__main__":
    main()
