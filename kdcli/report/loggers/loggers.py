"""The loggers of a run, fed from its records; one that fails says so once and is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from kdcli.errors import Findings, SpecError, did_you_mean
from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Step
from kdcli.report.disk import replace_file
from kdcli.report.loggers import LOGGERS
from kdcli.report.loggers.logger import LoggedRun, Logger

IDENTITIES = "loggers.json"


def check_loggers(names: Sequence[str], plugins: Sequence[str]) -> None:
    """Raise SpecError KD390 for every name that is no logger, without importing any."""
    wrong = Findings()
    for index, name in enumerate(names):
        with wrong.part():
            module, colon, attribute = name.partition(":")
            place = ("trainer", "loggers", index)
            if name in LOGGERS:
                continue
            if not colon:
                help = did_you_mean(name, sorted(LOGGERS))
                raise SpecError.at(place, "KD390", f"there is no logger `{name}`", help)
            package = module.split(".")[0]
            if not attribute or not any(module == p or module.startswith(f"{p}.") for p in plugins):
                help = f"if you trust it, add `--plugin {package}`"
                raise SpecError.at(place, "KD390", f"`{name}` is code outside kdcli", help)
    wrong.raise_errors()


class Loggers:
    """`load`, `take` every record, `close`; each returns what the user should be told."""

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._run = run
        self._made: dict[str, Logger] = {}
        self._open: dict[str, Logger] | None = None
        self._processes = 1
        self._failed: list[Notice] = []
        self._finished = False

    def load(self) -> list[Notice]:
        """Import what the loggers need, before the clock of the run starts."""
        for name in self._names:
            try:
                self._made[name] = _load(name)
            except Exception as error:
                self._leave_out(name, error)
        return self._told()

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
        return self._told()

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> list[Notice]:
        """Hand the report's pictures to every logger."""
        if pictures:
            self._each(lambda logger: logger.pictures(step, pictures))
        return self._told()

    def close(self) -> list[Notice]:
        """End every logger."""
        self._each(lambda logger: logger.end(finished=self._finished))
        self._open = {}
        return self._told()

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
            replace_file(path, json.dumps(known, indent=2) + "\n")

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
        self._failed.append(Notice(message=message, level="warning"))

    def _told(self) -> list[Notice]:
        told, self._failed = self._failed, []
        return told

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
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(identity) for name, identity in said.items()}
    except (OSError, ValueError, AttributeError):
        return {}
