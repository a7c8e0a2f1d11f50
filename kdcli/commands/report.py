"""`kdcli report`, `kdcli compare`: run folders as a page, a table, a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdcli.errors import KdError, RunError

if TYPE_CHECKING:
    import torch

    from kdcli.records import Notice
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import RunOptions


def report(root: Path, *, plugins: Sequence[str], device: str | None, quick: bool) -> None:
    """Write report.html into a run folder; quick: with what lies there, no network is run."""
    from kdcli.report.console import write
    from kdcli.report.drawing import need_matplotlib
    from kdcli.report.html import write_report
    from kdcli.report.recorded_run import read_run

    need_matplotlib()
    read_run(root)
    if not quick:
        from kdcli.analysis.collected import write_report_data
        from kdcli.parallel.devices import choose_device
        from kdcli.training.build import file_notices
        from kdcli.training.reopen import reopen

        try:
            run = reopen(root, device=device, plugins=plugins)
            _warn(file_notices(run.parsed.spec, run.options.places, "mimic", "dataset"))
            chosen = choose_device(device or run.parsed.spec.runtime.device)
            _, notices = write_report_data(run.parsed, run.options, chosen)
            _warn(notice.message for notice in notices)
        except KdError as error:
            if error.diagnostics[0].code == "KD740":
                raise
            _warn([f"curves alone, the networks can't be run: {error.diagnostics[0].message}"])
    write(f"{write_report(root)}\n")


def write_up(
    parsed: ParsedSpec, options: RunOptions, root: Path, device: torch.device, drawn: bool
) -> tuple[list[Notice], Mapping[str, bytes]]:
    """The report of a run that has just finished: what to tell, and pictures where `drawn`; never raises."""
    from kdcli.analysis.collected import write_report_data
    from kdcli.records import Notice
    from kdcli.report.album import report_pictures
    from kdcli.report.drawing import need_matplotlib
    from kdcli.report.html import write_report

    try:
        need_matplotlib()
    except RunError as missing:
        help = missing.diagnostics[0].help
        return [Notice(message=f"no report.html: matplotlib is not installed; {help}")], {}
    notices: list[Notice] = []
    pictures: Mapping[str, bytes] = {}
    try:
        _, notices = write_report_data(parsed, options, device)
    except Exception as error:
        (root / "report_data.json").unlink(missing_ok=True)
        message = f"the report shows curves alone: {_reason(error)}"
        notices = [Notice(message=message, level="warning")]
    try:
        page = write_report(root)
        pictures = report_pictures(root) if drawn else {}
    except Exception as error:
        return [*notices, Notice(message=f"no report.html: {_reason(error)}", level="warning")], {}
    return [*notices, Notice(message=f"report: {page}")], pictures


def compare(
    folders: Sequence[Path], *, format: Literal["text", "json", "csv", "md"], picture: Path | None
) -> None:
    """One table of several runs, and one picture."""
    from kdcli.report.compare import compare_runs
    from kdcli.report.compare_text import compare_text
    from kdcli.report.console import wants_colour, write
    from kdcli.report.overlay import write_overlay

    compared = compare_runs(folders)
    if picture is not None:
        write_overlay(compared, picture)
    write(compare_text(compared, format, colour=format == "text" and wants_colour(sys.stdout)))


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        sys.stderr.write(f"warning: {message}\n")


def _reason(error: Exception) -> str:
    if isinstance(error, KdError):
        return error.diagnostics[0].message
    first = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *first[:1]])
