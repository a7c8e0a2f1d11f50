"""Arguments that several commands share, and what a shell may complete in them."""

from __future__ import annotations

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


Spec = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A YAML spec; `-` reads standard input.", autocompletion=specs),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values to set in the spec.", autocompletion=keys),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The same, as an option.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; overrides runtime.device.")]
Plugin = Annotated[
    list[str] | None, typer.Option(metavar="PACKAGE", help="A package of your own that the spec may import.")
]
