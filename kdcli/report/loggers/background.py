"""Loggers beside the training: a thread each, which reads metrics.jsonl and hands its logger what is new there.

The loop waits for none of them and nothing piles up in memory: what a server has not got yet is in the file. How far
each logger is stands in loggers.json, so that a resumed run goes on there and sends no step twice.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from kdcli.disk import exists, size_of, temporary_name, text_in
from kdcli.errors import RunError
from kdcli.parallel.interrupts import abandon_threads
from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Step
from kdcli.report.loggers import LOGGERS
from kdcli.report.loggers.logger import LoggedRun, Logger, is_away
from kdcli.report.run_files import records_from

IDENTITIES = "loggers.json"
"""By logger: the identity of its run, and how far it is in metrics.jsonl."""

ROUND_SECONDS = 2.0
"""How often a thread looks for new records."""

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""The waits between tries while a server is away; the last one stays."""

TRIES_AT_END = 3
"""How often a logger of a finished run is tried again at the end."""

CHUNK = 100
"""So many records are handed over before `flush`, and lie between two entries in loggers.json at most."""

SILENT_SECONDS = 10.0
"""A call that takes longer is told to the user."""

END_SECONDS = 15.0
"""How long the end of a run waits for its loggers."""

INTERRUPTED_SECONDS = 5.0
"""How long a run that was stopped waits for a logger that still sends."""

LONGEST = 240
"""A longer reason is cut."""

LOCAL_SECONDS = 60.0
"""How long any run waits for a logger that writes on this machine: a database left in mid-write may be broken."""

STUCK_SECONDS = 1.0
"""How long a run that was stopped waits for a call that does not return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a logger is in metrics.jsonl: it has all records before `step`, and of that step the named ones.

    names None: all of the step's. offset: the bytes of the file that it has, as far as the file is that long.
    """

    step: int = 0
    names: tuple[str, ...] | None = ()
    offset: int = 0

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether the logger has this record."""
        step = record["step"]
        return step < self.step or (
            step == self.step and (self.names is None or _name_of(record) in self.names)
        )

    def after(self, record: Mapping[str, Any], offset: int) -> Position:
        """The position once the logger has this record too, which ends at `offset`."""
        if self.has(record):
            return replace(self, offset=offset)
        before = self.names if record["step"] == self.step and self.names is not None else ()
        return Position(step=record["step"], names=(*before, _name_of(record)), offset=offset)

    def repeated_from(self, step: int) -> Position:
        """The position of a logger that gets all after `step` again."""
        return self if self.step <= step else replace(self, step=step, names=None)


class Marks:
    """The file loggers.json. resumed_step 0: the run begins anew, and what an older one left there is forgotten."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries = _read(path, resumed_step) if resumed_step else {}

    def of(self, name: str) -> tuple[str | None, Position]:
        """The identity of a logger's run, None for a new one, and its position."""
        return self._entries.get(name, (None, Position()))

    def put(self, name: str, identity: str | None, position: Position) -> None:
        """Write down how far a logger is; a disk that refuses costs only that records may be sent twice."""
        with self._lock:
            if self._entries.get(name) == (identity, position):
                return
            self._entries[name] = (identity, position)
            content = {
                key: {"identity": identity, "has": asdict(position)}
                for key, (identity, position) in self._entries.items()
            }
            temporary = temporary_name(self._path)
            with suppress(OSError):
                temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
                os.replace(temporary, self._path)


class BackgroundLogger:
    """One logger, called in a thread of its own, which may be waited for but never has to be."""

    def __init__(
        self, name: str, logger: Logger, run: LoggedRun, metrics: Path, marks: Marks, again: str | None
    ) -> None:
        self.name, self.logger = name, logger
        self.notices: deque[Notice] = deque()
        self.done = threading.Event()
        self.started, self.failed = False, False
        self._run, self._metrics, self._marks, self._again = run, metrics, marks, again
        self._identity, position = marks.of(name)
        if getattr(logger, "repeats", False):
            position = position.repeated_from(run.resumed_step)
        # A resumed run has cut the file back to its checkpoint, and writes on there.
        length = size_of(metrics) if exists(metrics) else 0
        self._position = replace(position, offset=min(position.offset, length))
        self._timed = "time" in inspect.signature(logger.scalars).parameters
        self._flush: Callable[[], object] | None = getattr(logger, "flush", None)
        self._pictures: tuple[int, Mapping[str, bytes]] | None = None
        self._finished = False
        self._begun = False
        self._ending = threading.Event()
        self._called: float | None = None
        self._away: str | None = None
        self._told: set[str] = set()
        # A daemon: a call that never returns must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name=f"kdcli-logger-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread, if it is not yet started."""
        if not self.started:
            self.started = True
            self._thread.start()

    def add_pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Hand these pictures over at the end."""
        self._pictures = (step, pictures)

    def stop(self, *, finished: bool) -> None:
        """Ask the thread to send what is left, and to end."""
        self._finished = finished
        self._ending.set()

    def called_for(self) -> float:
        """For how many seconds a call has not returned; 0 where none is under way."""
        called = self._called
        return 0.0 if called is None else time.monotonic() - called

    def watch(self) -> None:
        """Tell the user, once, of a call that does not return."""
        if self._away is None and self.called_for() > SILENT_SECONDS:
            self._note_away("silence", f"has waited {SILENT_SECONDS:.0f} s for an answer, training goes on")

    def leave(self) -> None:
        """End without waiting any longer: say what the server may lack."""
        self.failed = True
        self._note_unsent()
        abandon_threads()

    def _work(self) -> None:
        tries, tries_at_end = 0, 0
        try:
            while True:
                ending = self._ending.is_set()
                try:
                    self._round(ending)
                except Exception as error:
                    if not is_away(error):
                        raise
                    reason = f"can't reach its server, training goes on: {in_one_line(error)}"
                    self._note_away(type(error).__name__, reason)
                    if ending:
                        tries_at_end += 1
                        if tries_at_end == TRIES_AT_END or not self._finished:
                            self._note_unsent()
                            return
                        time.sleep(RETRY_SECONDS[0])
                        continue
                    self._ending.wait(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                    tries += 1
                    continue
                self._note_back()
                if ending:
                    return
                tries = 0
                self._ending.wait(ROUND_SECONDS)
        except Exception as error:
            self.failed = True
            self.notices.append(left_out(self.name, error))
        finally:
            self.done.set()

    def _round(self, ending: bool) -> None:
        """Begin if that is still to be done, hand over what is new, and end."""
        if not self._begun:
            run = replace(self._run, identity=self._identity, resumed_step=self._position.step)
            identity = self._call(lambda: self.logger.begin(run))
            self._identity = identity if isinstance(identity, str) else self._identity
            self._begun = True
            self._mark()
        self._hand_over()
        if ending:
            if self._pictures is not None:
                step, pictures = self._pictures
                self._call(lambda: self.logger.pictures(step, pictures))
            self._call(lambda: self.logger.end(finished=self._finished))

    def _hand_over(self) -> None:
        position, waiting = self._position, 0
        for offset, record in records_from(self._metrics, position.offset):
            if not position.has(record):
                self._send(record)
                waiting += 1
            position = position.after(record, offset)
            if self._flush is None:
                self._position = position
            if waiting == CHUNK:
                self._acknowledged(position)
                waiting = 0
        self._acknowledged(position)

    def _send(self, record: Mapping[str, Any]) -> None:
        values = dict(scalars_of(record))
        if values:
            when = {"time": record["time"]} if self._timed else {}
            self._call(lambda: self.logger.scalars(record["step"], values, **when))
        if record["kind"] == "finished":
            best = {f"best/{name}": float(value) for name, value in record["best"].items()}
            self._call(lambda: self.logger.summary(best))

    def _acknowledged(self, position: Position) -> None:
        if self._flush is not None:
            self._call(self._flush)
        self._position = position
        self._mark()

    def _mark(self) -> None:
        self._marks.put(self.name, self._identity, self._position)

    def _call(self, call: Callable[[], Any]) -> Any:
        self._called = time.monotonic()
        try:
            return call()
        finally:
            self._called = None
            messages: list[str] = getattr(self.logger, "messages", [])
            while messages:
                text = f"logger `{self.name}`: {messages.pop(0)}"
                self.notices.append(
                    Notice(message=text, level="info" if self._ending.is_set() else "warning")
                )

    def _note_away(self, kind: str, what: str) -> None:
        if self._away is None and kind not in self._told:
            rest = "the numbers stay in metrics.jsonl and are sent once it answers"
            self.notices.append(Notice(message=f"logger `{self.name}` {what}; {rest}", level="warning"))
        self._away = kind

    def _note_back(self) -> None:
        if self._away is not None and self._away not in self._told:
            self._told.add(self._away)
            self.notices.append(
                Notice(message=f"logger `{self.name}` has its server back, and all numbers so far")
            )
        self._away = None

    def _note_unsent(self) -> None:
        message = f"logger `{self.name}` could not end in time, its server may lack the last numbers"
        if later := getattr(self.logger, "later", None):
            message += f"; they are kept: {later}"
        else:
            has = (
                f"those up to step {self._position.step} have arrived"
                if self._position.step
                else "none has arrived"
            )
            sends = f", `{self._again}` sends the rest" if self._again else ""
            message += f": {has}, all are in {self._metrics}{sends}"
        self.notices.append(Notice(message=message, level="warning"))


class Loggers:
    """The loggers that the spec names. Call `load`, `take` with every record, `close`; each returns notices.

    A record must be in metrics.jsonl by the time that it is taken. again: the command that resumes the run.
    """

    def __init__(
        self, names: Sequence[str], run: LoggedRun, *, metrics: Path, again: str | None = None
    ) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._run, self._metrics, self._again = run, metrics, again
        self._made: dict[str, Logger] = {}
        self._running: list[BackgroundLogger] = []
        self._finished = False

    def load(self) -> list[Notice]:
        """Import what the loggers need, before the clock of the run starts."""
        notices = []
        for name in self._names:
            try:
                self._made[name] = _load(name)
            except Exception as error:
                notices.append(left_out(name, error))
        return notices

    def take(self, record: Record) -> list[Notice]:
        """Start the loggers with the first numbers; after that, see how they do."""
        if isinstance(record, Plan) and not self._running:
            run = replace(self._run, resumed_step=record.resumed_step)
            marks = Marks(run.run_dir / IDENTITIES, record.resumed_step)
            self._running = [
                BackgroundLogger(name, logger, run, self._metrics, marks, self._again)
                for name, logger in self._made.items()
            ]
        elif isinstance(record, (Step, Evaluation, Finished)):
            # Not with the plan: a thread may then hold an import's lock while the data workers are forked.
            self._finished = isinstance(record, Finished)
            for one in self._running:
                one.start()
        for one in self._running:
            one.watch()
        return self._notices()

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> list[Notice]:
        """Hand the report's pictures to every logger."""
        for one in self._running if pictures else ():
            one.add_pictures(step, pictures)
        return self._notices()

    def close(self) -> list[Notice]:
        """Wait for every logger to send what is left: some seconds, in a run that was stopped only while it sends."""
        began, limit = time.monotonic(), END_SECONDS if self._finished else INTERRUPTED_SECONDS
        for one in self._running:
            one.stop(finished=self._finished)
        for one in self._running:
            while one.started and not one.done.wait(0.05):
                waited = time.monotonic() - began
                local = getattr(one.logger, "local", False)
                stuck = not (local or self._finished) and min(waited, one.called_for()) > STUCK_SECONDS
                if stuck or waited > (LOCAL_SECONDS if local else limit):
                    one.leave()
                    break
        notices = self._notices()
        self._running = []
        return notices

    def __bool__(self) -> bool:
        return any(not one.failed for one in self._running)

    def _notices(self) -> list[Notice]:
        return [one.notices.popleft() for one in self._running for _ in range(len(one.notices))]


def scalars_of(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of one record of metrics.jsonl, by the names that loggers get."""
    if record["kind"] == "step":
        for name, value in record["losses"].items():
            yield f"loss/{name}", float(value)
        yield "loss/total", float(record["total"])
        for name in ("lr", "epoch", "images_per_second"):
            if name in record:
                yield name, float(record[name])
    elif record["kind"] == "evaluation":
        prefix = "test" if record["network"] == "student" else f"test/{record['network']}"
        for name, value in record["metrics"].items():
            yield f"{prefix}/{name}", float(value)
    elif record["kind"] == "finished":
        for teacher, metrics in record["teachers"].items():
            for name, value in metrics.items():
                yield f"test/{teacher}/{name}", float(value)


def left_out(name: str, error: Exception) -> Notice:
    """The warning that a logger is broken."""
    if isinstance(error, ImportError) and name in LOGGERS:
        message = f"logger `{name}` is left out, it is not installed: `pip install 'kdcli[{name}]'`"
    else:
        message = f"logger `{name}` failed and is left out, training goes on: {in_one_line(error)}"
    return Notice(message=message, level="warning")


def in_one_line(error: Exception) -> str:
    """An exception's type and the first line of its message."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    reason = reason if len(reason) <= LONGEST else reason[:LONGEST] + " ..."
    return ": ".join(part for part in (type(error).__name__, reason) if part)


def _name_of(record: Mapping[str, Any]) -> str:
    """What tells the records of one step apart."""
    return " ".join(str(record[key]) for key in ("kind", "network") if key in record)


def _load(name: str) -> Logger:
    if name in LOGGERS:
        logger: Logger = LOGGERS[name].load()()
        return logger
    module, _, attribute = name.partition(":")
    own: Logger = getattr(import_module(module), attribute)()
    return own


def _read(path: Path, resumed_step: int) -> dict[str, tuple[str | None, Position]]:
    """The entries of loggers.json; of one without positions, the loggers have all up to the resumed step."""
    entries: dict[str, tuple[str | None, Position]] = {}
    with suppress(RunError, ValueError, AttributeError, TypeError, KeyError):
        for name, entry in json.loads(text_in(path)).items():
            if isinstance(entry, str):
                entries[name] = (entry, Position(step=resumed_step, names=None))
                continue
            has, identity = entry["has"], entry["identity"]
            names = None if has["names"] is None else tuple(map(str, has["names"]))
            position = Position(step=int(has["step"]), names=names, offset=int(has["offset"]))
            entries[name] = (None if identity is None else str(identity), position)
    return entries
