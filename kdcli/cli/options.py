"""Arguments that several commands share, and what a shell may complete in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def specs(incomplete: str) -> list[str]:
    """Completion of spec files."""
    from kdcli.commands.completion import complete_spec

    return complete_spec(incomplete)


def keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """Completion of `net.model.kwargs.`, from the spec named before."""
    from kdcli.commands.completion import complete_key

    return complete_key(ctx.params.get("spec"), incomplete)


def importable_from_here(plugins: list[str] | None) -> list[str] | None:
    """Let plugins lie in the working directory, as with `python -m`; what is installed goes first."""
    here = str(Path.cwd())
    if plugins and here not in sys.path:
        sys.path.append(here)
    return plugins


Spec = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A YAML spec; `-` reads standard input.", autocompletion=specs),
]
RunOrSpec = Annotated[
    str,
    typer.Argument(metavar="RUN|SPEC", help="A run folder, or the spec of a run.", autocompletion=specs),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values to set in the spec.", autocompletion=keys),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The same, as an option.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; overrides runtime.device.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PACKAGE",
        help="A package of your own that the spec may import: installed, or in the working directory.",
        callback=importable_from_here,
    ),
]
