"""The Logger protocol: what a class must have that sends a run's numbers to TensorBoard, MLflow and the like."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import urlopen

from kdcli.errors import Findings, SpecError, did_you_mean
from kdcli.report.loggers import LOGGERS
from kdcli.spec.plugins import may_import, not_a_plugin
from kdcli.spec.text.nodes import leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """What a logger gets to know of the run.

    spec: with all defaults, plain values; spec_text: the same as YAML. resumed_step: the last step that the logger
    has; the later ones follow. identity: what `begin` returned when the run began, None for a new one.
    """

    name: str
    run_dir: Path
    spec: Mapping[str, Any]
    spec_text: str
    resumed_step: int = 0
    identity: str | None = None


class Logger(Protocol):
    """What a logger implements. It is made without arguments, on rank 0 alone, and called in a thread of its own.

    It may have more, all of it optional: `flush()` sends what was collected (without it each call sends what it is
    given); a parameter `time` of `scalars` is given the seconds since 1970 when the numbers were made;
    `repeats = True`: `begin` removes the steps after `run.resumed_step`, and a resumed run sends them again;
    `local = True`: it writes on this machine, so the end of a run waits longer for a call to return;
    `messages`: a list whose texts are shown to the user; `later`: in words, how the user sends what was not sent in
    time (without it, a resumed run does).

    What is raised never ends the run. After ServerAway, ConnectionError or TimeoutError the logger is tried again
    with all that came since its last successful call (or flush); after any other exception it is left out.
    """

    def begin(self, run: LoggedRun) -> str | None:
        """Begin the run, or continue the one of `run.identity`; returns the identity for a later resume."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, as `loss/task.loss`, `lr`, `test/top1`; a step may come in several calls."""
        ...

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """The report's pictures, PNG by name, at the end of the run."""
        ...

    def summary(self, values: Mapping[str, float]) -> None:
        """The numbers that stand for the run, as `best/top1`."""
        ...

    def end(self, *, finished: bool) -> None:
        """Close the logger; finished is False where the run stopped early."""
        ...


class ServerAway(Exception):
    """The logger's server can't be reached, or fails for now: worth another try."""


UNREACHABLE = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)


def is_away(error: BaseException) -> bool:
    """Whether an exception says that a server can't be reached, rather than that a logger is broken."""
    if isinstance(error, (ServerAway, ConnectionError, TimeoutError, socket.gaierror)):
        return True
    if not isinstance(error, OSError):
        return False
    # The exceptions of requests and urllib are OSErrors without a number; some hold the server's answer.
    status = getattr(getattr(error, "response", error), "status_code", getattr(error, "code", None))
    if isinstance(status, int):
        return worth_another_try(status)
    return error.errno is None or error.errno in UNREACHABLE


def worth_another_try(status: int) -> bool:
    """Whether an HTTP status says that the server failed or is busy, rather than that the request is wrong."""
    return status >= 500 or status == 429


def answers(url: str, seconds: float) -> bool:
    """Whether a web server answers within so many seconds, be it with an error."""
    try:
        with urlopen(url, timeout=seconds):
            return True
    except HTTPError:  # an OSError too, so first: 404 is an answer
        return True
    except (OSError, ValueError, HTTPException):
        return False


def flat(spec: Any) -> Iterator[tuple[str, bool | int | float | str]]:
    """The values of a spec by their paths; what a logger has no type for as text."""
    for name, value in leaves(spec):
        if value is not None and value != {}:
            yield name, value if isinstance(value, (bool, int, float, str)) else str(value)


def check_loggers(names: Sequence[str], plugins: Sequence[str]) -> None:
    """Raise SpecError KD390 for every name that is no logger, without importing any."""
    wrong = Findings()
    for index, name in enumerate(names):
        with wrong.part():
            _, colon, attribute = name.partition(":")
            place = ("trainer", "loggers", index)
            if name in LOGGERS:
                continue
            if not colon:
                help = did_you_mean(name, sorted(LOGGERS))
                raise SpecError.at(place, "KD390", f"there is no logger `{name}`", help)
            if not attribute or not may_import(name, plugins):
                raise SpecError([not_a_plugin(name, "KD390", place)])
    wrong.raise_errors()
