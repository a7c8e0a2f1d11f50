"""`kdcli validate`: check specs in all stages, print the findings and a summary of what would run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from kdcli.commands import uncollected
from kdcli.disk import seen
from kdcli.errors import Diagnostic, KdError, SpecError, UsageError
from kdcli.failures import doing

if TYPE_CHECKING:
    from kdcli.commands.options import ValidateOptions
    from kdcli.records import Plan


def validate(options: ValidateOptions) -> int:
    """Check every spec with the same changes; 0 where all are right, 1 where one is wrong, 2 where one is not there.

    Findings go to standard output; in the format for people the summary of what would run follows.
    """
    from kdcli.report.console import screen_width, wants_colour, write
    from kdcli.report.diagnostics import render

    specs, changes = files_and_changes(options.specs)
    findings: list[Diagnostic] = []
    plans: list[Plan] = []
    usage = False
    for spec in specs:
        try:
            with uncollected():
                diagnostics, plan = examine(
                    spec, [*changes, *options.changes], files=options.files, plugins=options.plugins
                )
        except UsageError as error:
            # One spec that can't be read hides nothing of the others.
            if len(specs) == 1 and options.format == "text":
                raise
            diagnostics, plan, usage = list(error.diagnostics), None, True
        findings += diagnostics
        if plan is not None:
            plans.append(plan)
    colour, width = wants_colour(sys.stdout), screen_width(sys.stdout)
    write(render(findings, options.format, colour=colour, width=width))
    wrong = any(d.severity == "error" or options.strict for d in findings)
    if options.format == "text" and not options.quiet:
        from kdcli.report.live.plain_text import plan_text

        for plan in plans:
            write(
                ("\n" if findings or plan is not plans[0] else "")
                + plan_text(plan, colour=colour, width=width)
            )
        if not wrong:
            write(f"\n{_right(len(specs), len(findings))}\n")
    return UsageError.exit_code if usage else int(wrong)


def files_and_changes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The specs and the `key=value` changes among the words of a command line; a word that is a file is a spec."""
    changes = [word for word in words if "=" in word and not seen(word)]
    return [word for word in words if word not in changes], changes


def examine(
    spec: str,
    changes: Sequence[str] = (),
    *,
    files: Literal["full", "quick"] | None = None,
    plugins: Sequence[str] = (),
) -> tuple[list[Diagnostic], Plan | None]:
    """Findings of all stages about one spec, up to the first stage with errors; the plan where there are none.

    files: look at the files it names, quick: of the data's at names and labels alone.
    """
    from kdcli.reference.tables import tables
    from kdcli.report.loggers.logger import check_loggers
    from kdcli.spec.check.resolve import check_references
    from kdcli.spec.parse import read, with_more

    try:
        parsed = read(spec, changes)
    except SpecError as error:
        more = with_more(error, lambda sound: check_references(sound, tables(plugins)))
        return list(more.diagnostics), None
    except KdError as error:
        if error.exit_code != 1:
            raise
        return list(error.diagnostics), None
    findings = [*parsed.warnings, *check_references(parsed, tables(plugins))]
    try:
        check_loggers(parsed.spec.trainer.loggers, plugins)
    except KdError as error:
        findings += [parsed.locate(diagnostic) for diagnostic in error.diagnostics]
    if any(diagnostic.severity == "error" for diagnostic in findings):
        return findings, None
    from kdcli.check.check import CheckOptions, check
    from kdcli.data.check import Look
    from kdcli.report.live.live_screen import progress

    look: Look = "nothing" if files is None else "quick" if files == "quick" else "whole"
    try:
        with progress("looking at images") as update, doing("looking at the spec's files and networks"):
            checked = check(
                parsed,
                CheckOptions(
                    plugins=tuple(plugins),
                    places=parsed.places,
                    look=look,
                    progress=update,
                ),
            )
    except KdError as error:
        if error.exit_code != 1:
            raise
        return [*findings, *map(parsed.locate, error.diagnostics)], None
    return [*findings, *checked.findings], checked.plan


def _right(specs: int, warnings: int) -> str:
    what = "the spec is right" if specs == 1 else f"all {specs} specs are right"
    return what + (f", with {warnings} warning{'' if warnings == 1 else 's'}" if warnings else "")
