"""The command line: a doorway that parses arguments, calls one function and renders what it returns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdcli.cli import takeaway
from kdcli.cli.options import Changes, Device, Plugin, RunOrSpec, Set, Spec

app = typer.Typer(
    name="kdcli",
    help="Distil vision models from a YAML spec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
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
    nproc: Annotated[
        int | None, typer.Option(help="Processes on this machine, e.g. with --device cpu.")
    ] = None,
    nnodes: Annotated[int, typer.Option(help="Machines, as torchrun means it.")] = 1,
    node_rank: Annotated[int | None, typer.Option(help="This machine's number, from 0.")] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet, the same on each.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="How often all processes start again from the last checkpoint when one dies.")
    ] = 0,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Continue from the newest valid checkpoint, or from PATH."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Start over where a run lies already.")] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="What may differ from the checkpoint: a key of the spec, or `data`."
        ),
    ] = None,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and the last line only.")] = False,
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
    profile: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Look at N steps: where their time goes, and a trace."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Prove the spec before the start, as `kdcli validate` does.")
    ] = True,
) -> None:
    """Train the student of SPEC: distil it (runner `kd`) or train `net` alone (runner `base`)."""
    from kdcli.commands.train import TrainArguments
    from kdcli.commands.train import train as run

    run(
        TrainArguments(
            spec=spec,
            changes=[*(changes or []), *(set_ or [])],
            gpus=gpus,
            device=device,
            nproc=nproc,
            nnodes=nnodes,
            node_rank=node_rank,
            rdzv_endpoint=rdzv_endpoint,
            max_restarts=max_restarts,
            resume=resume,
            overwrite=overwrite,
            allow_changed=allow_changed or [],
            plugins=plugin or [],
            quiet=quiet,
            report=report,
            profile=profile,
            check=check,
        )
    )


@app.command(name="eval")
def evaluate(
    spec: RunOrSpec,
    changes: Changes = None,
    *,
    set_: Set = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The student's weights; else its run's best, else its last."),
    ] = None,
    device: Device = None,
    plugin: Plugin = None,
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of detectors: write their boxes as COCO json.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of detectors: draw student, teachers and truth.")
    ] = None,
) -> None:
    """Measure a run's student and its teachers side by side: quality, size, speed, agreement."""
    from kdcli import commands

    commands.evaluate(
        spec,
        [*(changes or []), *(set_ or [])],
        weights=weights,
        device=device,
        plugins=plugin or [],
        as_json=format == "json",
        save_predictions=save_predictions,
        show=show,
    )


@app.command()
def cache(
    spec: Spec,
    changes: Changes = None,
    *,
    set_: Set = None,
    device: Device = None,
    plugin: Plugin = None,
) -> None:
    """Store what the teachers of SPEC show (`cache` beside mimic_name), before any training."""
    from kdcli.commands.cache import cache as run

    run(spec, [*(changes or []), *(set_ or [])], device=device, plugins=plugin or [])


@app.command()
def validate(
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC... [KEY=VALUE]...", help="YAML specs; `-` reads standard input."),
    ],
    *,
    set_: Set = None,
    files: Annotated[
        Literal["full", "quick"] | None,
        typer.Option(
            "--files",
            metavar="[=quick]",
            help="Look at data and weight files too; --files=quick: of the data at names and labels alone.",
        ),
    ] = None,
    format: Annotated[
        Literal["text", "concise", "json", "github", "sarif"], typer.Option(help="How findings are written.")
    ] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Findings alone, no summary.")] = False,
) -> None:
    """Prove every SPEC right before anything runs: no GPU, data or weights needed. Exit 1 if one is wrong."""
    from kdcli.commands.arguments import files_and_changes
    from kdcli.commands.validate import ValidateOptions
    from kdcli.commands.validate import validate as run

    paths, changes = files_and_changes(specs)
    options = ValidateOptions(
        format=format,
        strict=strict,
        quiet=quiet,
        files=files is not None,
        quick=files == "quick",
        plugins=tuple(plugin or []),
    )
    raise typer.Exit(run(paths, [*changes, *(set_ or [])], options))


@app.command()
def inspect_features(
    spec: Annotated[
        str, typer.Argument(metavar="FILE", help="A spec, a file with networks alone, or a list of modules.")
    ],
    changes: Changes = None,
    *,
    set_: Set = None,
    depth: Annotated[int | None, typer.Option(help="The deepest layers shown; 0: modules alone.")] = None,
    filter: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Layers whose path matches: 'layer3*'.")
    ] = None,
    type: Annotated[str | None, typer.Option(metavar="TYPE", help="Layers of a type: Conv2d.")] = None,
    net: Annotated[str | None, typer.Option(metavar="NAME", help="One network: net, teacher0.")] = None,
    input: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Size of the images; else what the data says.")
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Pairs that fit, and a mimic block to paste.")
    ] = False,
    format: Annotated[Literal["table", "json", "yaml"], typer.Option()] = "table",
    plugin: Plugin = None,
) -> None:
    """Show every layer that can be mimicked: path, shape, stride, parameters, cost. No data, no weights."""
    from kdcli.commands.inspect import InspectOptions
    from kdcli.commands.inspect import inspect_features as run

    options = InspectOptions(
        depth=depth,
        filter=filter,
        kind=type,
        net=net,
        size=input,
        pairs=pairs,
        format=format,
        plugins=tuple(plugin or []),
    )
    run(spec, [*(changes or []), *(set_ or [])], options)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A loss or a mimic method; all of them without.")] = None,
    *,
    plugin: Plugin = None,
) -> None:
    """List every loss and mimic method, or explain one, with a block to paste."""
    from kdcli.commands import words

    words.methods(name, plugin or [])


@app.command()
def explain(code: Annotated[str, typer.Argument(help="A code such as KD203.")]) -> None:
    """Explain a code: what it means, why it matters, an example."""
    from kdcli.commands import words

    words.explain(code)


@app.command()
def schema() -> None:
    """Write the JSON Schema of the spec language, for editors."""
    from kdcli.commands import words

    words.schema()


@app.command()
def make_data(
    kind: Annotated[Literal["fashion-scenes"], typer.Argument(metavar="KIND", help="fashion-scenes.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to: annotations and images.")],
    *,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Fashion-MNIST's idx files; else Debian's package.")
    ] = None,
    num_train: Annotated[int, typer.Option(min=1, help="Scenes to train on.")] = 1500,
    num_test: Annotated[int, typer.Option(min=1, help="Scenes to test on.")] = 300,
    force: Annotated[bool, typer.Option("--force", help="Overwrite scenes that are there already.")] = False,
) -> None:
    """Compose a small detection set in COCO's format: garments of Fashion-MNIST on cluttered canvases."""
    from kdcli.commands.make_data import make_data as make

    make(folder, seed=seed, root=root, num_train=num_train, num_test=num_test, force=force)


for command in (takeaway.report, takeaway.compare, takeaway.export, takeaway.init, takeaway.doctor):
    app.command()(command)


def main() -> None:
    """The console script: one clear message and an exit code for everything that can go wrong."""
    from kdcli.commands import guarded
    from kdcli.commands.arguments import with_optional_values

    sys.exit(guarded(lambda: app(with_optional_values(sys.argv[1:]), standalone_mode=True)))
