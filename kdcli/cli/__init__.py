"""The command line of kdcli: the list of its commands, and how one of them is started."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kdcli.cli.parameters import command_of, refuse_keys, with_optional_values
from kdcli.commands import options
from kdcli.spec.tables import Target

COMMANDS: dict[str, tuple[type, Target]] = {
    "train": (options.TrainOptions, Target("kdcli.commands.train:train")),
    "eval": (options.EvalOptions, Target("kdcli.commands.report:evaluate")),
    "sweep": (options.SweepOptions, Target("kdcli.commands.sweep:sweep")),
    "cache": (options.CacheOptions, Target("kdcli.commands.train:cache")),
    "validate": (options.ValidateOptions, Target("kdcli.commands.validate:validate")),
    "inspect-features": (options.InspectOptions, Target("kdcli.commands.inspect:inspect_features")),
    "methods": (options.MethodsOptions, Target("kdcli.commands.reference:methods")),
    "explain": (options.ExplainOptions, Target("kdcli.commands.reference:explain")),
    "schema": (options.SchemaOptions, Target("kdcli.commands.reference:schema")),
    "make-data": (options.MakeDataOptions, Target("kdcli.commands.init:make_data")),
    "report": (options.ReportOptions, Target("kdcli.commands.report:report")),
    "compare": (options.CompareOptions, Target("kdcli.commands.report:compare")),
    "export": (options.ExportOptions, Target("kdcli.commands.export:export")),
    "init": (options.InitOptions, Target("kdcli.commands.init:init")),
    "doctor": (options.DoctorOptions, Target("kdcli.commands.reference:doctor")),
}
"""Each command's options, and the function that is given them."""

app = typer.Typer(
    name="kdcli",
    help="Distil vision models from a YAML spec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from kdcli import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def kdcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil vision models from a YAML spec."""


for name, (fields, target) in COMMANDS.items():
    app.command(name=name)(command_of(fields, target))


def main() -> None:
    """Run `kdcli` with the arguments of this process and exit; every error is one message and an exit code."""
    from kdcli.commands import guarded
    from kdcli.parallel.interrupts import leave

    words = sys.argv[1:]
    command = next((word for word in words if word in COMMANDS), None)
    if command is not None:
        words = with_optional_values(words, COMMANDS[command][0])

    def run() -> None:
        refuse_keys(words, COMMANDS[command][0] if command is not None else None)
        app(words, standalone_mode=True)

    leave(guarded(run, traces="--traceback" in words))
