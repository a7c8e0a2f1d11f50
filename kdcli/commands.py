"""What each command does, between the doorway and the engine: read, run, render."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.errors import Interrupted, KdError

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec

OWN_FAULT = 3


def guarded(action: Callable[[], object]) -> int:
    """Run a command; its exit code. Users' errors become diagnostics, our own a traceback and exit 3."""
    try:
        action()
    except KdError as error:
        from kdcli.report.console import wants_colour
        from kdcli.report.diagnostics import render

        sys.stderr.write(render(error.diagnostics, colour=wants_colour(sys.stderr)))
        return 128 + error.signal_number if isinstance(error, Interrupted) else error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as leaving:
        return int(leaving.code or 0) if not isinstance(leaving.code, str) else 1
    except BrokenPipeError:
        return 1
    except Exception:
        import traceback

        traceback.print_exc()
        sys.stderr.write("\nThis is kdcli's own fault; please report it with the lines above.\n")
        return OWN_FAULT
    return 0


def train(
    spec: str,
    changes: Sequence[str],
    *,
    gpus: str | None,
    device: str | None,
    resume: str | None,
    overwrite: bool,
    allow_changed: Sequence[str],
    plugins: Sequence[str],
    quiet: bool,
) -> None:
    """`kdcli train`: build the run, let it go, show and write down its records."""
    from kdcli.spec.parse import read

    parsed = read(spec, changes)
    from kdcli.engine.build import built
    from kdcli.engine.distributed import processes
    from kdcli.engine.records import Evaluation, Finished, Plan, Step
    from kdcli.engine.run import RunOptions
    from kdcli.engine.train import train as records_of
    from kdcli.report.metrics import MetricsWriter
    from kdcli.report.terminal import Terminal

    options = RunOptions(
        device=device,
        overwrite=overwrite,
        resume=False if resume is None else True if resume == "auto" else Path(resume),
        allow_changed=tuple(allow_changed),
        plugins=tuple(plugins),
        base_dir=parsed.base_dir,
    )
    with located(parsed), processes(device or parsed.spec.runtime.device) as here:
        with built(parsed, options, here) as run:
            if not here.speaks:
                for _ in records_of(run):
                    pass
                return
            with Terminal(spec=spec, quiet=quiet) as terminal, MetricsWriter(run.folder.metrics) as metrics:
                for record in records_of(run):
                    if isinstance(record, Plan):
                        metrics.truncate_after(record.resumed_step)
                    if isinstance(record, (Plan, Step, Evaluation, Finished)):
                        metrics.write(record)
                    terminal.show(record)


def evaluate(
    spec: str,
    changes: Sequence[str],
    *,
    weights: Path | None,
    device: str | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """`kdcli eval`: measure the student and its teachers side by side."""
    from kdcli.spec.parse import read

    parsed = read(spec, changes)
    from kdcli.engine.compare import compare
    from kdcli.engine.distributed import processes
    from kdcli.engine.run import RunOptions
    from kdcli.report.comparison import comparison_text

    options = RunOptions(device=device, plugins=tuple(plugins), base_dir=parsed.base_dir)
    with located(parsed), processes(device or parsed.spec.runtime.device) as here:
        rows, notices = compare(parsed, options, here, weights)
    if here.speaks:
        for notice in notices:
            sys.stderr.write(f"{notice.message}\n")
        sys.stdout.write(comparison_text(rows, "json" if as_json else "text", primary="top1"))


@contextmanager
def located(parsed: ParsedSpec) -> Iterator[None]:
    """Errors inside the block get their places in the spec."""
    try:
        yield
    except KdError as error:
        raise error.located(parsed.locate) from error.__cause__
