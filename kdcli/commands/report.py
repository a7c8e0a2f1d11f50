"""`kdcli eval`, `kdcli report`, `kdcli compare`: results of runs as a table, a page, a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.commands import located, run_or_spec
from kdcli.disk import is_folder, remove
from kdcli.errors import KdError, RunError, UsageError
from kdcli.failures import doing, with_place

if TYPE_CHECKING:
    import torch

    from kdcli.commands.options import CompareOptions, EvalOptions, ReportOptions
    from kdcli.records import Notice
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import RunOptions


def evaluate(options: EvalOptions) -> None:
    """`kdcli eval`: measure the student and its teachers side by side."""
    opened = run_or_spec(options)
    parsed = opened.parsed
    from kdcli.analysis.comparison import compare
    from kdcli.parallel import distributed
    from kdcli.parallel.devices import oom_as_error
    from kdcli.report.results_table import eval_text
    from kdcli.tasks.mimicry import primary_of_rows
    from kdcli.tasks.saved_outputs import DetectionOutputs
    from kdcli.training.sides import Sides

    with (
        located(parsed),
        oom_as_error(parsed.spec, "test"),
        distributed.processes(options.device or parsed.spec.runtime.device) as processes,
    ):
        with doing("measuring the networks"):
            sides = Sides(parsed.spec, opened.options.places, plugins=opened.options.plugins)
            keep = DetectionOutputs(predictions=options.save_predictions, pictures=options.show)
            rows, notices = compare(
                parsed, opened.options, processes, options.weights, keep, sides, key=options.weight_key
            )
    if processes.speaks:
        for notice in notices:
            sys.stderr.write(f"{notice.message}\n")
        as_json = options.format == "json"
        primary = primary_of_rows(rows, sides.task.primary)
        sys.stdout.write(eval_text(rows, "json" if as_json else "text", primary=primary))


def report(options: ReportOptions) -> None:
    """`kdcli report`: write report.html into a run folder, finished or not; with --quick no network is run."""
    from kdcli.report.charts import need_matplotlib
    from kdcli.report.console import write
    from kdcli.report.recorded_run import read_run
    from kdcli.report.report_page import write_report
    from kdcli.report.run_identity import read_baseline

    need_matplotlib()
    root = _run_folder(options)
    run = read_run(root)
    if options.baseline is not None:  # before the networks are run, which takes a while
        read_baseline(options.baseline, run)
    if not options.quick:
        from kdcli.analysis.collected import write_report_data
        from kdcli.parallel.devices import choose_device
        from kdcli.training.build import file_notices
        from kdcli.training.run_folder import reopen

        try:
            again = reopen(root, device=options.device, plugins=options.plugins)
            _warn(file_notices(again.parsed.spec, again.options.places, "mimic", "dataset"))
            chosen = choose_device(options.device or again.parsed.spec.runtime.device)
            with doing("running the networks for the report"):
                _, notices = write_report_data(again.parsed, again.options, chosen)
            _warn(notice.message for notice in notices)
        except KdError as error:
            if error.diagnostics[0].code == "KD740":
                raise
            _warn([f"curves alone, the networks can't be run: {error.diagnostics[0].message}"])
    with doing(f"writing the report of {root}"):
        page = write_report(root, options.baseline)
    write(f"{page}\n")


def _run_folder(options: ReportOptions) -> Path:
    """The run folder that `RUN|SPEC` names."""
    if not options.spec.endswith((".yaml", ".yml")) or is_folder(options.spec):
        if options.changes:
            raise UsageError.of("a run's spec can't be changed", "name the spec file with these values")
        return Path(options.spec)
    from kdcli.spec.parse import read
    from kdcli.training.build import run_root

    return run_root(read(options.spec, options.changes))


def write_up(
    parsed: ParsedSpec, options: RunOptions, root: Path, device: torch.device, drawn: bool
) -> tuple[list[Notice], Mapping[str, bytes]]:
    """Write report.html of a run that has just finished; returns notices, and pictures if `drawn`. Never raises."""
    from kdcli.analysis.collected import write_report_data
    from kdcli.records import Notice
    from kdcli.report.charts import need_matplotlib
    from kdcli.report.report_page import report_pictures, write_report

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
        with suppress(RunError):
            remove(root / "report_data.json")
        message = f"the report shows curves alone: {_reason(error)}"
        notices = [Notice(message=message, level="warning")]
    try:
        page = write_report(root)
        pictures = report_pictures(root) if drawn else {}
    except Exception as error:
        return [*notices, Notice(message=f"no report.html: {_reason(error)}", level="warning")], {}
    return [*notices, Notice(message=f"report: {page}")], pictures


def compare(options: CompareOptions) -> None:
    """`kdcli compare`: one table of several runs, and one picture."""
    from kdcli.report.compare_runs import compare_runs, compare_text, write_plot
    from kdcli.report.console import wants_colour, write

    compared = compare_runs(options.runs)
    if options.picture is not None:
        write_plot(compared, options.picture)
    colour = options.format == "text" and wants_colour(sys.stdout)
    write(compare_text(compared, options.format, colour=colour))


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        sys.stderr.write(f"warning: {message}\n")


def _reason(error: Exception) -> str:
    return error.diagnostics[0].message if isinstance(error, KdError) else with_place(error)
