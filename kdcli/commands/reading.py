"""Reading the spec or run folder that a command is given, with every name and argument in it checked."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.errors import SpecError, UsageError

if TYPE_CHECKING:
    from kdcli.commands.options import EvalOptions, ExportOptions
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import RunOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The spec and options that `RUN|SPEC` names. spec_hash: of the run's spec as it ran, or of the spec file."""

    parsed: ParsedSpec
    options: RunOptions
    spec_hash: str


def run_or_spec(options: EvalOptions | ExportOptions) -> Opened:
    """Open the run folder or the spec file that `RUN|SPEC` names."""
    from kdcli.training.run_folder import reopen

    if Path(options.spec).is_dir():
        if options.changes:
            raise UsageError.of("a run's spec can't be changed", "name the spec file with these values")
        device = getattr(options, "device", None)
        run = reopen(Path(options.spec), device=device, plugins=options.plugins)
        return Opened(parsed=run.parsed, options=run.options, spec_hash=run.spec_hash)
    parsed = read_checked(options.spec, options.changes, options.plugins)
    return Opened(parsed=parsed, options=run_options(options, parsed), spec_hash=parsed.hash())


def run_options(options: Any, parsed: ParsedSpec, **more: Any) -> RunOptions:
    """RunOptions of a command's options: the fields that both have, the spec's places, and `more`."""
    from kdcli.training.run import RunOptions

    known = {field.name for field in fields(RunOptions)}
    shared = {field.name: getattr(options, field.name) for field in fields(options) if field.name in known}
    return RunOptions(**{**shared, "places": parsed.places, **more})


def read_checked(spec: str, changes: Sequence[str], plugins: Sequence[str]) -> ParsedSpec:
    """Parse and check a spec; print its warnings to standard error, once for all processes of a run.

    Raises SpecError with every finding where one of them is an error.
    """
    from kdcli.parallel.interrupts import is_first
    from kdcli.reference.tables import tables
    from kdcli.report.console import wants_colour, write
    from kdcli.report.diagnostics import render
    from kdcli.spec.check.resolve import check_references
    from kdcli.spec.parse import read

    parsed = read(spec, changes)
    found = [*parsed.warnings, *check_references(parsed, tables(plugins))]
    if any(finding.severity == "error" for finding in found):
        raise SpecError(found)
    if found and is_first():
        write(render(found, colour=wants_colour(sys.stderr)), sys.stderr)
    return parsed


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch Python's garbage collector off inside the block: with torch loaded it is slow and frees little."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
