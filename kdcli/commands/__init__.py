"""What each command does, between the command line and the core: read, run, render.

Here is what commands share: exit codes, places of errors, the spec or run folder that a command is given.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.reading import checked, located
from kdcli.disk import is_file, is_folder, shown_path
from kdcli.errors import Interrupted, KdError, RunError, UsageError
from kdcli.failures import failure, keep_tracebacks, place_of, tracebacks

if TYPE_CHECKING:
    from kdcli.commands.options import EvalOptions, ExportOptions, PredictOptions
    from kdcli.models.fetching import Shown
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import RunOptions

__all__ = ["guarded", "located", "read_checked", "run_options", "run_or_spec", "uncollected"]

OWN_FAULT = 3


def guarded(action: Callable[[], object], *, traces: bool = False) -> int:
    """Run a command and return its exit code. A user's error is printed as diagnostics, kdcli's own as a traceback.

    traces: `--traceback`: print the whole traceback of a user's error too.
    """
    if traces:
        keep_tracebacks()
    try:
        action()
    except KdError as error:
        _print(error, traces)
        return 128 + error.signal_number if isinstance(error, Interrupted) else error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as leaving:
        place = place_of(leaving)
        if place:  # code of the user's, which would end a check as if it were passed
            message = f"code of the user's ends Python: `sys.exit({leaving.code!r})`{place}"
            _print(RunError.of("KD496", message, "raise an exception that says what is wrong"), traces)
            return RunError.exit_code
        if traces and leaving.code:
            sys.stderr.write(tracebacks())
        return int(leaving.code or 0) if not isinstance(leaving.code, str) else 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        import traceback

        from kdcli.parallel.launch import finish_telling, tell_launcher

        found = failure(error, running=False)
        if found is not None:
            told = RunError(found)
            told.__cause__ = error
            _print(told, traces)
            return RunError.exit_code
        finish_telling()
        message = (
            f"{traceback.format_exc()}\nThis is kdcli's own fault; please report it with the lines above.\n"
        )
        if not tell_launcher(message):
            sys.stderr.write(message)
        return OWN_FAULT
    return 0


def _print(error: KdError, traces: bool) -> None:
    from kdcli.parallel.interrupts import is_first
    from kdcli.parallel.launch import finish_telling, tell_launcher

    finish_telling()
    from kdcli.report.console import screen_width, wants_colour
    from kdcli.report.diagnostics import render

    if isinstance(error, Interrupted):
        # Every process of a run stops for the same signal; one says so.
        if not is_first():
            return
    text = render(error.diagnostics, colour=wants_colour(sys.stderr), width=screen_width(sys.stderr))
    if traces and not isinstance(error, Interrupted):
        text = tracebacks(error) + "\n" + text
    if isinstance(error, Interrupted) or not tell_launcher(text, [d.code for d in error.diagnostics]):
        sys.stderr.write(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The spec and options that `RUN|SPEC` names. spec_hash: of the run's spec as it ran, or of the spec file."""

    parsed: ParsedSpec
    options: RunOptions
    spec_hash: str


def run_or_spec(options: EvalOptions | ExportOptions | PredictOptions) -> Opened:
    """Open the run folder or the spec file that `RUN|SPEC` names."""
    from kdcli.training.run_folder import reopen

    if options.weight_key is not None and options.weights is None:
        message = "`--weight-key` says where in a file the weights lie, but there is no `--weights`"
        raise UsageError.of(message, "add `--weights FILE`")
    if options.spec != "-" and is_folder(options.spec):
        if getattr(options, "changes", ()):
            raise UsageError.of("a run's spec can't be changed", "name the spec file with these values")
        device = getattr(options, "device", None)
        run = reopen(Path(options.spec), device=device, plugins=options.plugins)
        options_of_run = replace(run.options, shown=_downloads(options))
        return Opened(parsed=run.parsed, options=options_of_run, spec_hash=run.spec_hash)
    parsed = read_checked(options.spec, getattr(options, "changes", ()), options.plugins)
    if options.weights is None:
        _tell_changes(parsed, options.spec)
    return Opened(parsed=parsed, options=run_options(options, parsed), spec_hash=parsed.hash())


READ_BY_THE_STUDENT = (
    "net.",
    "dataset.train.dataset.kwargs.transformer",
    "dataset.test.dataset.kwargs.transformer",
)
"""Keys of a spec that say what the student is, and what it sees."""


def _tell_changes(parsed: ParsedSpec, spec: str) -> None:
    """A warning where a spec builds or feeds the student otherwise than the run whose weights it reads."""
    import yaml

    from kdcli.spec.text.nodes import leaves
    from kdcli.training.build import run_root
    from kdcli.training.run_folder import SPEC, text_of

    root = run_root(parsed)
    if not is_file(root / SPEC):
        return
    text, own = text_of(root / SPEC), parsed.resolved_yaml()
    if text == own:
        return
    try:
        recorded = yaml.safe_load(text)
    except yaml.YAMLError:
        return  # what can't be read says nothing
    now, then = (
        {name: value for name, value in leaves(data) if name.startswith(READ_BY_THE_STUDENT)}
        for data in (yaml.safe_load(own), recorded)
    )
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if changed:
        named = ", ".join(f"`{name}`" for name in changed[:3]) + (
            f" and {len(changed) - 3} more" if changed[3:] else ""
        )
        run = shown_path(root)
        sys.stderr.write(
            f"warning: {spec} is not what {run} was trained with: {named}; `{run}` in place of the spec takes its own\n"
        )


def run_options(options: Any, parsed: ParsedSpec, **more: Any) -> RunOptions:
    """RunOptions of a command's options: the fields that both have, the spec's places, and `more`."""
    from kdcli.training.run import RunOptions

    known = {field.name for field in fields(RunOptions)}
    shared = {field.name: getattr(options, field.name) for field in fields(options) if field.name in known}
    return RunOptions(**{**shared, "places": parsed.places, "shown": _downloads(options), **more})


def _downloads(options: Any) -> Shown:
    """Draws the downloads of a command; with `--offline` they are forbidden, to the processes that it starts too."""
    from kdcli.models.fetching import go_offline
    from kdcli.report.live.live_screen import progress_of_bytes

    if getattr(options, "offline", False):
        go_offline()
    return progress_of_bytes


def read_checked(spec: str, changes: Sequence[str], plugins: Sequence[str]) -> ParsedSpec:
    """Parse and check a spec; print its warnings to standard error, once for all processes of a run.

    Raises SpecError with every finding where one of them is an error.
    """
    from kdcli.spec.parse import read

    return checked(lambda: read(spec, changes), plugins)


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch Python's garbage collector off inside the block: with torch loaded it is slow and frees little."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
