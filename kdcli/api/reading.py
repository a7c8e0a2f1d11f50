"""A spec read and checked for a command, and its errors with their places, for the command line and for Python."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from kdcli.errors import Diagnostic, KdError, RunError, SpecError
from kdcli.failures import failure

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec


@contextmanager
def located(parsed: ParsedSpec) -> Iterator[None]:
    """Add file, line and column of the spec to the errors that are raised inside the block."""
    try:
        yield
    except KdError as error:
        raise error.located(parsed.locate) from error.__cause__


def checked(read: Callable[[], ParsedSpec], plugins: Sequence[str]) -> ParsedSpec:
    """A spec, read and checked; its warnings are printed to standard error, once for all processes of a run.

    read: parses it. Raises SpecError with every finding where one of them is an error.
    """
    from kdcli.parallel.interrupts import is_first

    parsed, findings = parsed_with_findings(read, plugins)
    if any(finding.severity == "error" for finding in findings):
        raise SpecError(findings)
    if is_first():
        tell(findings)
    return parsed


def parsed_with_findings(
    read: Callable[[], ParsedSpec], plugins: Sequence[str]
) -> tuple[ParsedSpec, list[Diagnostic]]:
    """A spec, and what is found of its language and its names.

    Raises SpecError where it can't be parsed, with what is wrong with the names in its sound part.
    """
    from kdcli.reference.tables import tables
    from kdcli.spec.check.resolve import check_references
    from kdcli.spec.parse import with_more

    try:
        parsed = read()
    except SpecError as error:
        raise with_more(error, lambda sound: check_references(sound, tables(plugins))) from None
    return parsed, [*parsed.warnings, *check_references(parsed, tables(plugins))]


def tell(findings: Sequence[Diagnostic]) -> None:
    """Print findings to standard error."""
    from kdcli.report.console import screen_width, wants_colour, write
    from kdcli.report.diagnostics import render

    if findings:
        write(render(findings, colour=wants_colour(sys.stderr), width=screen_width(sys.stderr)), sys.stderr)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors that leave the block say all they know: str() is what the command line prints, without colour.

    What the user's own network, data or machine raised becomes RunError, as on the command line.
    """
    try:
        yield
    except KdError as error:
        raise _with_text(error) from error.__cause__
    except Exception as error:
        found = failure(error, running=False)
        if found is None:
            raise
        raise _with_text(RunError(found)) from error


ARGUMENTS = {
    "--overwrite": "overwrite=True",
    "--resume": "resume=True",
    "--offline": "offline=True",
    "--no-check": "check=False",
    "--traceback": "error.__cause__",
    "--device cpu": "device='cpu'",
}
"""What options of the command line are called in Python."""

LISTED = {"--allow-changed": "allow_changed", "--plugin": "plugins"}
"""The same of those that may stand several times, each with a value."""


def in_python(text: str) -> str:
    """A sentence about options of the command line as one about Python's arguments."""
    text = re.sub(r"`(--[a-z-]+(?: cpu)?)`", lambda m: f"`{ARGUMENTS.get(m[1], m[1])}`", text)
    text = re.sub(r"`--weights ([^`\s]+)`", r"`weights='\1'`", text)
    return re.sub(r"`(--allow-changed|--plugin) ([^`\s]+)`", lambda m: f"`{LISTED[m[1]]}=['{m[2]}']`", text)


def _with_text(error: KdError) -> KdError:
    from kdcli.report.diagnostics import render

    error.diagnostics = tuple(
        replace(one, message=in_python(one.message), help=one.help and in_python(one.help))
        for one in error.diagnostics
    )
    error.args = (render(error.diagnostics, colour=False).strip(),)
    return error


@contextmanager
def globals_kept() -> Iterator[None]:
    """Random state, the number of threads, gradient mode and the current CUDA device, put back after the block."""
    import numpy as np
    import torch

    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    used_cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if used_cuda else []
    current = torch.cuda.current_device() if used_cuda else None
    try:
        torch.set_grad_enabled(True)
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_rng_state(cpu)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if current is not None:
            torch.cuda.set_rng_state_all(cuda)
            torch.cuda.set_device(current)
