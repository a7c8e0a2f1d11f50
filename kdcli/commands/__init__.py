"""What each command does, between the command line and the core: read, run, render."""

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
        _print(error)
        return 128 + error.signal_number if isinstance(error, Interrupted) else error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as leaving:
        return int(leaving.code or 0) if not isinstance(leaving.code, str) else 1
    except BrokenPipeError:
        return 1
    except Exception:
        import traceback

        from kdcli.parallel.launch import finish_telling, tell_launcher

        finish_telling()
        told = (
            f"{traceback.format_exc()}\nThis is kdcli's own fault; please report it with the lines above.\n"
        )
        if not tell_launcher(told):
            sys.stderr.write(told)
        return OWN_FAULT
    return 0


def _print(error: KdError) -> None:
    from kdcli.parallel.interrupts import is_first
    from kdcli.parallel.launch import finish_telling, tell_launcher

    finish_telling()
    from kdcli.report.console import wants_colour
    from kdcli.report.diagnostics import render

    if isinstance(error, Interrupted):
        # Every process of a run stops for the same signal; one says so.
        if not is_first():
            return
    text = render(error.diagnostics, colour=wants_colour(sys.stderr))
    if isinstance(error, Interrupted) or not tell_launcher(text, [d.code for d in error.diagnostics]):
        sys.stderr.write(text)


def evaluate(
    spec: str,
    changes: Sequence[str],
    *,
    weights: Path | None,
    device: str | None,
    plugins: Sequence[str],
    as_json: bool,
    save_predictions: Path | None = None,
    show: Path | None = None,
) -> None:
    """`kdcli eval`: measure the student and its teachers side by side."""
    from kdcli.commands.reading import run_or_spec

    opened = run_or_spec(spec, changes, plugins, device)
    parsed = opened.parsed
    from kdcli.analysis.evaluated_networks import compare
    from kdcli.parallel.devices import memory_told
    from kdcli.parallel.distributed import processes
    from kdcli.report.comparison import comparison_text
    from kdcli.tasks.keep import Keep
    from kdcli.training.sides import Sides

    with (
        located(parsed),
        memory_told(parsed.spec, "test"),
        processes(device or parsed.spec.runtime.device) as here,
    ):
        sides = Sides(parsed.spec, opened.options.places)
        keep = Keep(predictions=save_predictions, pictures=show)
        rows, notices = compare(parsed, opened.options, here, weights, keep, sides)
    if here.speaks:
        for notice in notices:
            sys.stderr.write(f"{notice.message}\n")
        sys.stdout.write(comparison_text(rows, "json" if as_json else "text", primary=sides.task.primary))


@contextmanager
def located(parsed: ParsedSpec) -> Iterator[None]:
    """Errors inside the block get their places in the spec."""
    try:
        yield
    except KdError as error:
        raise error.located(parsed.locate) from error.__cause__
