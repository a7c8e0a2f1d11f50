"""The command line: a doorway that parses arguments, calls one function and renders what it returns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="kdcli",
    help="Distil vision models from a YAML spec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _specs(incomplete: str) -> list[str]:
    """Completion of spec files."""
    from kdcli.commands.completion import complete_spec

    return complete_spec(incomplete)


def _keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """Completion of `net.model.kwargs.`, from the spec named before."""
    from kdcli.commands.completion import complete_key

    return complete_key(ctx.params.get("spec"), incomplete)


Spec = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A YAML spec; `-` reads standard input.", autocompletion=_specs),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values to set in the spec.", autocompletion=_keys),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The same, as an option.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; overrides runtime.device.")]
Plugin = Annotated[
    list[str] | None, typer.Option(metavar="PACKAGE", help="A package of your own that the spec may import.")
]


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
        typer.Option(metavar="KEY", help="A key that may differ from the checkpoint's spec."),
    ] = None,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and the last line only.")] = False,
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
        )
    )


@app.command(name="eval")
def evaluate(
    spec: Spec,
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


@app.command()
def cache(
    spec: Spec,
    changes: Changes = None,
    *,
    set_: Set = None,
    device: Device = None,
    plugin: Plugin = None,
) -> None:
    """Store what the teachers of SPEC show of the training data (`cache` beside mimic_name), before a training."""
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
    files: Annotated[bool, typer.Option("--files", help="Look at data and weight files too.")] = False,
    format: Annotated[
        Literal["text", "concise", "json", "github", "sarif"], typer.Option(help="How findings are written.")
    ] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Findings alone, no summary.")] = False,
) -> None:
    """Prove every SPEC right before anything runs: no GPU, data or weights needed. Exit 1 if one is wrong."""
    from kdcli.commands.validate import ValidateOptions
    from kdcli.commands.validate import validate as run

    paths, changes = _files_and_changes(specs)
    options = ValidateOptions(
        format=format, strict=strict, quiet=quiet, files=files, plugins=tuple(plugin or [])
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
) -> None:
    """List every loss and mimic method, or explain one, with a block to paste."""
    from kdcli.commands import words

    words.methods(name)


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
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Curves and what was collected before; no network is run.")
    ] = False,
    device: Device = None,
    plugin: Plugin = None,
) -> None:
    """Write report.html into RUN: curves, costs, classes, calibration, disagreements, feature maps."""
    from kdcli.commands.report import report as write_page

    write_page(run, plugins=plugin or [], device=device, quick=quick)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    *,
    format: Annotated[Literal["text", "json", "csv", "md"], typer.Option(help="How it is written.")] = "text",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw all runs into FILE: .svg, .png or .pdf.")
    ] = None,
) -> None:
    """Put runs side by side; runs that differ by seed alone become mean and spread."""
    from kdcli.commands.report import compare as put_side_by_side

    put_side_by_side(runs, format=format, picture=picture)


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|SPEC", help="A run folder, or the spec of a run.", autocompletion=_specs),
    ],
    changes: Changes = None,
    *,
    format: Annotated[
        Literal["safetensors", "onnx", "torch-export"], typer.Option(help="What kind of file.")
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else in the run folder.")
    ] = None,
    set_: Set = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The student's weights; else its run's best, else its last."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a logit, relative where it is above 1.")
    ] = 1e-4,
    plugin: Plugin = None,
) -> None:
    """Export the student alone, and prove that the file answers as the student does."""
    from kdcli.commands.export import ExportArguments
    from kdcli.commands.export import export as run

    run(
        ExportArguments(
            source=source,
            changes=[*(changes or []), *(set_ or [])],
            format=format,
            output=output,
            weights=weights,
            tolerance=tolerance,
            plugins=plugin or [],
        )
    )


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(help="A sample; without it all are listed.")] = None,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Where to; else here.")] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a copy that is there already.")] = False,
) -> None:
    """List the sample specs, or copy one to start from, with its weights and the editor's schema."""
    from kdcli.commands.init import init as copy

    copy(name, folder, force=force)


@app.command()
def doctor(
    format: Annotated[Literal["text", "json"], typer.Option(help="How it is written.")] = "text",
) -> None:
    """Say what is installed on what machine, for a bug report."""
    from kdcli.commands.doctor import doctor as tell

    tell(as_json=format == "json")


def main() -> None:
    """The console script: one clear message and an exit code for everything that can go wrong."""
    from kdcli.commands import guarded

    sys.exit(guarded(lambda: app(_with_optional_values(sys.argv[1:]), standalone_mode=True)))


def _files_and_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` sets, unless it is a file; all else is a file."""
    changes = [word for word in arguments if "=" in word and not Path(word).exists()]
    return [word for word in arguments if word not in changes], changes


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
