"""`kdcli validate`: every stage of the check, for every file, then findings and what would run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdcli.commands.collection import uncollected
from kdcli.errors import Diagnostic, KdError
from kdcli.report.diagnostics import DiagnosticFormat

if TYPE_CHECKING:
    from kdcli.records import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions:
    """format: of the findings. strict: warnings count as errors. quiet: no summary. files: look at them.

    quick: of the data's files look at names and labels alone.
    """

    format: DiagnosticFormat = "text"
    strict: bool = False
    quiet: bool = False
    files: bool = False
    quick: bool = False
    plugins: tuple[str, ...] = ()


def validate(specs: Sequence[str], changes: Sequence[str], options: ValidateOptions) -> int:
    """Check every spec with the same changes; 0 where all are right, 1 where one is wrong.

    Findings go to standard output; in the format for people the summary of what would run follows.
    """
    from kdcli.report.console import wants_colour, write
    from kdcli.report.diagnostics import render

    found: list[Diagnostic] = []
    plans: list[Plan] = []
    for spec in specs:
        with uncollected():
            diagnostics, plan = examine(spec, changes, options)
        found += diagnostics
        if plan is not None:
            plans.append(plan)
    colour = wants_colour(sys.stdout)
    write(render(found, options.format, colour=colour))
    wrong = any(d.severity == "error" or options.strict for d in found)
    if options.format == "text" and not options.quiet:
        from kdcli.report.plan import plan_text

        for plan in plans:
            write(("\n" if found or plan is not plans[0] else "") + plan_text(plan, colour=colour))
        if not wrong:
            write(f"\n{_right(len(specs), len(found))}\n")
    return 1 if wrong else 0


def examine(
    spec: str, changes: Sequence[str], options: ValidateOptions
) -> tuple[list[Diagnostic], Plan | None]:
    """All findings about one spec, each stage as far as the ones before allow; the plan where it is right."""
    from kdcli.reference.tables import tables
    from kdcli.report.loggers.loggers import check_loggers
    from kdcli.spec.parse import read
    from kdcli.spec.resolve import check_references

    try:
        parsed = read(spec, changes)
    except KdError as error:
        if error.exit_code != 1:
            raise
        return list(error.diagnostics), None
    found = [*parsed.warnings, *check_references(parsed, tables(options.plugins))]
    try:
        check_loggers(parsed.spec.trainer.loggers, options.plugins)
    except KdError as error:
        found += [parsed.locate(diagnostic) for diagnostic in error.diagnostics]
    if any(diagnostic.severity == "error" for diagnostic in found):
        return found, None
    from kdcli.check.check import CheckOptions, check
    from kdcli.data.check import Look
    from kdcli.report.progress import progress

    look: Look = "nothing" if not options.files else "quick" if options.quick else "whole"
    with progress("looking at images") as told:
        checked = check(
            parsed,
            CheckOptions(
                plugins=options.plugins,
                places=parsed.places,
                look=look,
                told=told,
            ),
        )
    return [*found, *checked.findings], checked.plan


def _right(specs: int, warnings: int) -> str:
    what = "the spec is right" if specs == 1 else f"all {specs} specs are right"
    return what + (f", with {warnings} warning{'' if warnings == 1 else 's'}" if warnings else "")
