"""The command line of the commands that explain: methods, explain, docs, schema, doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kdcli.commands.option_fields import Argument, Option
from kdcli.commands.options import Plugins, Traceback


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodsOptions:
    """List every loss and mimic method, or explain one, with a block to paste."""

    name: Annotated[
        str | None, Argument("A loss or a mimic method; without it all are listed.", complete="method")
    ] = None
    plugins: Plugins = ()
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """Explain a word: a code, a key of the spec, a loss, a module, a transform or another type, an argument."""

    word: Annotated[
        str | None,
        Argument(
            "A code (KD203), a key (trainer.ema), a type (kd_loss, resnet18) or an argument (feat_norm);"
            " without it, all that there is.",
            complete="word",
        ),
    ] = None
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DocsOptions:
    """Write a site with search that is read without a network: tutorials, keys, codes, losses, commands."""

    folder: Annotated[Path, Argument("Folder to write into; index.html is the first page.", "[DIR]")] = Path(
        "kdcli-docs"
    )
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaOptions:
    """Write the JSON Schema of the spec language, for editors."""

    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """Print versions, hardware and what is installed, for a bug report."""

    format: Annotated[Literal["text", "json"], Option("Format of the output.")] = "text"
    traceback: Traceback = False
