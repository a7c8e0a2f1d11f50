"""`kdcli eval`, `kdcli report`, `kdcli compare`: results of runs as a table, a page, a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.commands import run_or_spec
from kdcli.disk import is_folder
from kdcli.errors import KdError, UsageError
from kdcli.failures import doing

if TYPE_CHECKING:
    from kdcli.commands.options import CompareOptions, EvalOptions, ReportOptions


def evaluate(options: EvalOptions) -> None:
    """`kdcli eval`: measure the student and its teachers side by side."""
    opened = run_or_spec(options)
    parsed = opened.parsed
    from kdcli.api.measure import measure
    from kdcli.commands.baseline import baseline_of
    from kdcli.report.console import screen_width, wants_colour, write
    from kdcli.report.results_table import eval_text
    from kdcli.tasks.saved_outputs import DetectionOutputs

    baseline = baseline_of(options.baseline, parsed)
    keep = DetectionOutputs(predictions=options.save_predictions, pictures=options.show)
    asked = replace(opened.options, device=options.device or opened.options.device)
    measured, processes = measure(parsed, asked, weights=options.weights, key=options.weight_key, keep=keep)
    if processes.speaks:
        for notice in measured.notices:
            sys.stderr.write(f"{notice}\n")
        as_json = options.format == "json"
        text = eval_text(
            measured.networks,
            "json" if as_json else "text",
            primary=measured.primary,
            baseline=baseline,
            colour=wants_colour(sys.stdout),
            width=screen_width(sys.stdout),
        )
        write(text)


def report(options: ReportOptions) -> None:
    """`kdcli report`: write report.html into a run folder, finished or not; with --quick no network is run."""
    from kdcli.report.charts import need_matplotlib
    from kdcli.report.console import write
    from kdcli.report.recorded_run import read_run
    from kdcli.report.report_page import write_report

    need_matplotlib()
    root = _run_folder(options)
    read_run(root)
    if not options.quick:
        from kdcli.analysis.collected import write_report_data
        from kdcli.parallel.devices import choose_device
        from kdcli.training.build import file_notices
        from kdcli.training.run_folder import reopen

        try:
            run = reopen(root, device=options.device, plugins=options.plugins)
            _warn(file_notices(run.parsed.spec, run.options.places, "mimic", "dataset"))
            chosen = choose_device(options.device or run.parsed.spec.runtime.device)
            with doing("running the networks for the report"):
                _, notices = write_report_data(run.parsed, run.options, chosen)
            _warn(notice.message for notice in notices)
        except KdError as error:
            if error.diagnostics[0].code == "KD740":
                raise
            _warn([f"curves alone, the networks can't be run: {error.diagnostics[0].message}"])
    with doing(f"writing the report of {root}"):
        page = write_report(root)
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


def compare(options: CompareOptions) -> None:
    """`kdcli compare`: one table of several runs, and one picture."""
    from kdcli.report.compare_runs import compare_runs, compare_text, write_plot
    from kdcli.report.console import screen_width, wants_colour, write

    compared = compare_runs(options.runs)
    if options.picture is not None:
        write_plot(compared, options.picture)
    colour = options.format == "text" and wants_colour(sys.stdout)
    write(compare_text(compared, options.format, colour=colour, width=screen_width(sys.stdout)))


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        sys.stderr.write(f"warning: {message}\n")
