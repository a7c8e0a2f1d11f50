"""A spec checked in all stages, for `kdcli validate` and for Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdcli.api.objects import Data, check_given, objects_of
from kdcli.api.reading import globals_kept, parsed_with_findings, readable_errors
from kdcli.api.spec import SpecLike, Texts, listed, spec_of
from kdcli.errors import Diagnostic, KdError
from kdcli.failures import doing
from kdcli.spec.in_memory import in_memory

if TYPE_CHECKING:
    from torch import nn

    from kdcli.records import Plan
    from kdcli.spec.parse import ParsedSpec


def validate(
    spec: SpecLike,
    *,
    student: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | nn.Module | None = None,
    data: Data | Mapping[str, Any] | None = None,
    changes: Texts = (),
    files: Literal["full", "quick"] | None = None,
    plugins: Texts = (),
) -> list[Diagnostic]:
    """Prove a spec right before anything runs, as `kdcli validate` does: no GPU, data or weights needed.

    student, teachers, data: as `train` takes them; data in memory is looked at (labels, 64 items of each side). files:
    look at the data and weights that the spec names too, `quick`: at names and labels alone.
    Returns the findings of all stages up to the first with errors, each with `code`, `severity`, `message`, `help` and
    `span`: its place in the file. Empty means that nothing was found; warnings have severity `warning`. Raises
    UsageError where there is no such spec, SpecError where an object in memory can't be used.

        for found in kdcli.validate("cfg.yaml"):
            print(found.code, found.message)
    """
    with readable_errors(), globals_kept():
        wanted = spec_of(spec, changes)
        objects = objects_of(wanted, student, teachers, data)
        with objects.used():
            return examined(lambda: wanted.parsed(objects.changes), files=files, plugins=listed(plugins))[0]


def examined(
    read: Callable[[], ParsedSpec],
    *,
    files: Literal["full", "quick"] | None = None,
    plugins: Sequence[str] = (),
) -> tuple[list[Diagnostic], Plan | None]:
    """Findings of all stages about one spec, up to the first stage with errors; the plan where there are none.

    read: parses it. files: look at the files it names, quick: of the data's at names and labels alone.
    """
    from kdcli.report.loggers.logger import check_loggers

    try:
        parsed, findings = parsed_with_findings(read, plugins)
    except KdError as error:
        if error.exit_code != 1:
            raise
        return list(error.diagnostics), None
    try:
        check_loggers(parsed.spec.trainer.loggers, plugins)
    except KdError as error:
        findings += [parsed.locate(diagnostic) for diagnostic in error.diagnostics]
    given = in_memory()
    if given:
        findings += check_given(parsed, given)
    if any(diagnostic.severity == "error" for diagnostic in findings):
        return findings, None
    from kdcli.check.check import CheckOptions, check
    from kdcli.data.check import Look
    from kdcli.report.live.live_screen import progress

    look: Look = "nothing" if files is None else "quick" if files == "quick" else "whole"
    if given.data and look == "nothing":
        look = "start"
    try:
        with progress("looking at images") as update, doing("looking at the spec's files and networks"):
            checked = check(
                parsed,
                CheckOptions(
                    plugins=tuple(plugins),
                    places=parsed.places,
                    look=look,
                    on_cuda=True,
                    progress=update,
                ),
            )
    except KdError as error:
        if error.exit_code != 1:
            raise
        return [*findings, *map(parsed.locate, error.diagnostics)], None
    found = [*findings, *checked.findings]
    if parsed.spec.sweep and all(one.severity != "error" for one in found):
        from kdcli.reference.tables import tables
        from kdcli.sweep.prepare import check_block

        wrong = check_block(parsed, tables(plugins), plugins)
        return [*found, *wrong], checked.plan if all(one.severity != "error" for one in wrong) else None
    return found, checked.plan
