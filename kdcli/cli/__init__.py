"""The command line of kdcli: the list of its commands, and how one of them is started."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kdcli.cli.completion_scripts import use_own_scripts
from kdcli.cli.parameters import Command, Group, command_of, refuse_keys, with_optional_values
from kdcli.commands import help_options, option_fields, options
from kdcli.spec.tables import Target

COMMANDS: dict[str, tuple[type, Target]] = {
    "distill": (options.DistillOptions, Target("kdcli.commands.distill:distill")),
    "train": (options.TrainOptions, Target("kdcli.commands.train:train")),
    "eval": (options.EvalOptions, Target("kdcli.commands.report:evaluate")),
    "sweep": (options.SweepOptions, Target("kdcli.commands.sweep:sweep")),
    "cache": (options.CacheOptions, Target("kdcli.commands.train:cache")),
    "validate": (options.ValidateOptions, Target("kdcli.commands.validate:validate")),
    "inspect-features": (options.InspectOptions, Target("kdcli.commands.inspect:inspect_features")),
    "methods": (help_options.MethodsOptions, Target("kdcli.commands.reference:methods")),
    "explain": (help_options.ExplainOptions, Target("kdcli.commands.reference:explain")),
    "docs": (help_options.DocsOptions, Target("kdcli.commands.reference:docs")),
    "schema": (help_options.SchemaOptions, Target("kdcli.commands.reference:schema")),
    "make-data": (options.MakeDataOptions, Target("kdcli.commands.init:make_data")),
    "report": (options.ReportOptions, Target("kdcli.commands.report:report")),
    "compare": (options.CompareOptions, Target("kdcli.commands.report:compare")),
    "export": (options.ExportOptions, Target("kdcli.commands.export:export")),
    "predict": (options.PredictOptions, Target("kdcli.commands.predict:predict")),
    "init": (options.InitOptions, Target("kdcli.commands.init:init")),
    "doctor": (help_options.DoctorOptions, Target("kdcli.commands.reference:doctor")),
}
"""Each command's options, and the function that is given them."""

WORK, LOOK, TAKE_AWAY, HELP = "Work", "Look", "Take away", "Help"

SHOWN: dict[str, tuple[str, str]] = {
    "distill": (
        WORK,
        "kdcli distill --teacher t.pth@torchvision.resnet18 --student torchvision.mobilenet_v2 --data images",
    ),
    "init": (WORK, "kdcli init demo"),
    "make-data": (WORK, "kdcli make-data stamp-scenes data/scenes --task detection"),
    "validate": (WORK, "kdcli validate demo.yaml trainer.max_epoch=10"),
    "train": (WORK, "kdcli train demo.yaml trainer.max_epoch=10 --device cpu"),
    "sweep": (WORK, "kdcli sweep cfg.yaml --trials 20"),
    "cache": (WORK, "kdcli cache fashion_kd_cached.yaml"),
    "inspect-features": (LOOK, "kdcli inspect-features demo.yaml --pairs"),
    "eval": (LOOK, "kdcli eval runs/demo --baseline runs/demo_student"),
    "report": (LOOK, "kdcli report runs/demo"),
    "compare": (LOOK, "kdcli compare runs/demo runs/demo_student"),
    "export": (TAKE_AWAY, "kdcli export runs/demo --format onnx"),
    "predict": (TAKE_AWAY, "kdcli predict runs/demo images/7.png"),
    "methods": (HELP, "kdcli methods kd_loss"),
    "explain": (HELP, "kdcli explain trainer.ema"),
    "docs": (HELP, "kdcli docs && open kdcli-docs/index.html"),
    "schema": (HELP, "kdcli schema > kdcli.schema.json"),
    "doctor": (HELP, "kdcli doctor --format json"),
}
"""The panel of `kdcli --help` in which each command stands, in this order, and an example of it."""

app = typer.Typer(
    name="kdcli",
    cls=Group,
    help="Distil vision models from a YAML spec.",
    epilog="Begin with: kdcli init demo && kdcli train demo.yaml",
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


for name in (*SHOWN, *(name for name in COMMANDS if name not in SHOWN)):
    panel, example = SHOWN.get(name, (WORK, f"kdcli {name} --help"))
    app.command(name=name, cls=Command, rich_help_panel=panel, epilog=f"Example: {example}")(
        command_of(*COMMANDS[name])
    )


option_fields.COMMANDS.update((name, fields) for name, (fields, _) in COMMANDS.items())
use_own_scripts()


def main() -> None:
    """Run `kdcli` with the arguments of this process and exit; every error is one message and an exit code."""
    from kdcli.commands import guarded
    from kdcli.parallel.interrupts import end_after_hooks, leave

    end_after_hooks()
    words = sys.argv[1:]
    command = next((word for word in words if word in COMMANDS), None)
    if command is not None:
        words = with_optional_values(words, COMMANDS[command][0])

    def run() -> None:
        refuse_keys(words, COMMANDS[command][0] if command is not None else None)
        app(words, standalone_mode=True)

    leave(guarded(run, traces="--traceback" in words))
