"""`kdcli docs`: the pages of kdcli, its own command line among them."""

from __future__ import annotations

from kdcli.cli import COMMANDS
from kdcli.commands.options import DocsOptions
from kdcli.commands.reference import write_docs


def docs(options: DocsOptions) -> None:
    """Write the site of pages into a folder."""
    write_docs(options.folder, {name: fields for name, (fields, _) in COMMANDS.items()})
