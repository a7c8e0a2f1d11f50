"""A spec read, with every name and argument in it checked: how each command that runs something begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcli.errors import SpecError

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec


def read_checked(spec: str, changes: Sequence[str], plugins: Sequence[str]) -> ParsedSpec:
    """The parsed spec; its warnings go to standard error, once for all processes of a run.

    Raises SpecError with every finding where one of them is an error.
    """
    from kdcli.engine.tables import tables
    from kdcli.report.console import wants_colour, write
    from kdcli.report.diagnostics import render
    from kdcli.spec.parse import read
    from kdcli.spec.resolve import check_references

    parsed = read(spec, changes)
    found = [*parsed.warnings, *check_references(parsed, tables(plugins))]
    if any(finding.severity == "error" for finding in found):
        raise SpecError(found)
    if found and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        write(render(found, colour=wants_colour(sys.stderr)), sys.stderr)
    return parsed
