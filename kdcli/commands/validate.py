"""`kdcli validate`: check specs in all stages, print the findings and a summary of what would run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from kdcli.api.validate import examined
from kdcli.commands import uncollected
from kdcli.disk import seen
from kdcli.errors import Diagnostic, UsageError

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
    """What `kdcli.api.validate.examined` finds of a spec by its name; files, plugins: as there."""
    from kdcli.spec.parse import read

    return examined(lambda: read(spec, changes), files=files, plugins=plugins)


def _right(specs: int, warnings: int) -> str:
    what = "the spec is right" if specs == 1 else f"all {specs} specs are right"
    return what + (f", with {warnings} warning{'' if warnings == 1 else 's'}" if warnings else "")
