"""What each command does, between the command line and the core: read, run, render."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdcli.errors import Interrupted, KdError

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec

OWN_FAULT = 3


def guarded(action: Callable[[], object]) -> int:
    """Run a command and return its exit code. Print a user's error as diagnostics, a fault of kdcli as a traceback."""
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


@contextmanager
def located(parsed: ParsedSpec) -> Iterator[None]:
    """Add file, line and column of the spec to the errors that are raised inside the block."""
    try:
        yield
    except KdError as error:
        raise error.located(parsed.locate) from error.__cause__
