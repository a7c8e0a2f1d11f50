"""A spec read, with every name and argument in it checked: how each command that runs something begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.errors import SpecError, UsageError

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import RunOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What `RUN|SPEC` named. spec_hash: of the spec as it ran, or as it lies there."""

    parsed: ParsedSpec
    options: RunOptions
    spec_hash: str


def run_or_spec(
    source: str, changes: Sequence[str], plugins: Sequence[str], device: str | None = None
) -> Opened:
    """A run folder's spec, or a spec file's."""
    from kdcli.training.reopen import reopen
    from kdcli.training.run import RunOptions

    if Path(source).is_dir():
        if changes:
            raise UsageError.of("a run's spec can't be changed", "name the spec file with these values")
        run = reopen(Path(source), device=device, plugins=plugins)
        return Opened(parsed=run.parsed, options=run.options, spec_hash=run.spec_hash)
    parsed = read_checked(source, changes, plugins)
    options = RunOptions(device=device, plugins=tuple(plugins), places=parsed.places)
    return Opened(parsed=parsed, options=options, spec_hash=parsed.hash())


def read_checked(spec: str, changes: Sequence[str], plugins: Sequence[str]) -> ParsedSpec:
    """The parsed spec; its warnings go to standard error, once for all processes of a run.

    Raises SpecError with every finding where one of them is an error.
    """
    from kdcli.parallel.interrupts import is_first
    from kdcli.reference.tables import tables
    from kdcli.report.console import wants_colour, write
    from kdcli.report.diagnostics import render
    from kdcli.spec.parse import read
    from kdcli.spec.resolve import check_references

    parsed = read(spec, changes)
    found = [*parsed.warnings, *check_references(parsed, tables(plugins))]
    if any(finding.severity == "error" for finding in found):
        raise SpecError(found)
    if found and is_first():
        write(render(found, colour=wants_colour(sys.stderr)), sys.stderr)
    return parsed
