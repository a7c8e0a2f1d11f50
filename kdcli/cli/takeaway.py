"""Commands about what a run leaves: looked at, compared, taken away; and how to begin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kdcli.cli.options import Changes, Device, Plugin, RunOrSpec, Set


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


def export(
    source: RunOrSpec,
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
        float, typer.Option(help="Largest difference of a value, relative where it is above 1.")
    ] = 1e-4,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="A detector's input; else what holds the first test images."),
    ] = None,
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
            size=input_size,
            plugins=plugin or [],
        )
    )


def init(
    name: Annotated[str | None, typer.Argument(help="A sample; without it all are listed.")] = None,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Where to; else here.")] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a copy that is there already.")] = False,
) -> None:
    """List the sample specs, or copy one to start from, with its weights and the editor's schema."""
    from kdcli.commands.init import init as copy

    copy(name, folder, force=force)


def doctor(
    format: Annotated[Literal["text", "json"], typer.Option(help="How it is written.")] = "text",
) -> None:
    """Say what is installed on what machine, for a bug report."""
    from kdcli.commands.doctor import doctor as tell

    tell(as_json=format == "json")
