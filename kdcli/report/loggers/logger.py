"""The Logger protocol, and Loggers, which hands a run's records to the loggers that the spec names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from kdcli.disk import write_whole
from kdcli.errors import Findings, SpecError, did_you_mean
from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Step
from kdcli.report.loggers import LOGGERS
from kdcli.spec.plugins import may_import, not_a_plugin


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """What a logger gets to know of the run.

    spec: with all defaults, plain values; spec_text: the same as YAML. resumed_step: steps after it will
    be logged again. identity: what `begin` returned when the run began, None for a new one.
    """

    name: str
    run_dir: Path
    spec: Mapping[str, Any]
    spec_text: str
    resumed_step: int = 0
    identity: str | None = None


class Logger(Protocol):
    """What a logger implements. It is made without arguments and called on rank 0 alone.

    Whatever it raises ends the logger, never the run.
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


def flat(value: Any, name: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """The values of a spec by their paths, such as `trainer.optimizer.kwargs.lr`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for index, item in enumerate(value):
            yield from flat(item, f"{name}.{index}")
    elif isinstance(value, (bool, int, float, str)):
        yield name, value
    elif value is not None:
        yield name, str(value)


IDENTITIES = "loggers.json"


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


class Loggers:
    """Hands a run's records to its loggers, and leaves out those that fail.

    Call `load`, `take` with every record, `close`; each returns notices for the user.
    """

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._run = run
        self._made: dict[str, Logger] = {}
        self._open: dict[str, Logger] | None = None
        self._processes = 1
        self._notices: list[Notice] = []
        self._finished = False

    def load(self) -> list[Notice]:
        """Import what the loggers need, before the clock of the run starts."""
        for name in self._names:
            try:
                self._made[name] = _load(name)
            except Exception as error:
                self._leave_out(name, error)
        return self._new_notices()

    def take(self, record: Record) -> list[Notice]:
        """Hand one record to every logger."""
        if not self._names:
            return []
        if isinstance(record, Plan):
            self._processes = record.processes
            if self._open is None:
                self._begin(record)
        elif isinstance(record, (Step, Evaluation, Finished)):
            values = dict(self._scalars(record))
            self._each(lambda logger: logger.scalars(record.step, values))
        if isinstance(record, Finished):
            self._finished = True
            best = {f"best/{name}": value for name, value in record.best.items()}
            self._each(lambda logger: logger.summary(best))
        return self._new_notices()

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> list[Notice]:
        """Hand the report's pictures to every logger."""
        if pictures:
            self._each(lambda logger: logger.pictures(step, pictures))
        return self._new_notices()

    def close(self) -> list[Notice]:
        """End every logger."""
        self._each(lambda logger: logger.end(finished=self._finished))
        self._open = {}
        return self._new_notices()

    def __bool__(self) -> bool:
        return bool(self._open)

    def _begin(self, plan: Plan) -> None:
        self._open = {}
        path = self._run.run_dir / IDENTITIES
        known = _read(path)
        for name, logger in self._made.items():
            run = replace(self._run, resumed_step=plan.resumed_step, identity=known.get(name))
            try:
                identity = logger.begin(run)
            except Exception as error:
                self._leave_out(name, error)
                continue
            self._open[name] = logger
            if isinstance(identity, str):
                known[name] = identity
        if known:
            write_whole(path, json.dumps(known, indent=2) + "\n")

    def _each(self, call: Callable[[Logger], object]) -> None:
        for name, logger in list((self._open or {}).items()):
            try:
                call(logger)
            except Exception as error:
                assert self._open is not None
                del self._open[name]
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        if isinstance(error, ImportError) and name in LOGGERS:
            message = f"logger `{name}` is left out, it is not installed: `pip install 'kdcli[{name}]'`"
        else:
            what = ": ".join(part for part in (type(error).__name__, reason) if part)
            message = f"logger `{name}` failed and is left out, training goes on: {what}"
        self._notices.append(Notice(message=message, level="warning"))

    def _new_notices(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices

    def _scalars(self, record: Step | Evaluation | Finished) -> Iterator[tuple[str, float]]:
        if isinstance(record, Step):
            for name, value in record.losses.items():
                yield f"loss/{name}", float(value)
            yield "loss/total", float(record.total)
            yield "lr", float(record.lr)
            yield "epoch", float(record.epoch)
            if record.seconds > 0:
                yield "images_per_second", record.images * self._processes / record.seconds
        elif isinstance(record, Evaluation):
            prefix = "test" if record.network == "student" else f"test/{record.network}"
            for name, value in record.metrics.items():
                yield f"{prefix}/{name}", float(value)
        else:
            for teacher, metrics in record.teachers.items():
                for name, value in metrics.items():
                    yield f"test/{teacher}/{name}", float(value)


def _load(name: str) -> Logger:
    if name in LOGGERS:
        logger: Logger = LOGGERS[name].load()()
        return logger
    module, _, attribute = name.partition(":")
    own: Logger = getattr(import_module(module), attribute)()
    return own


def _read(path: Path) -> dict[str, str]:
    try:
        identities: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(identity) for name, identity in identities.items()}
    except (OSError, ValueError, AttributeError):
        return {}
