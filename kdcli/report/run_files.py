"""Files that a training appends to in its run folder: metrics.jsonl and train.log.

metrics.jsonl holds the run's records, one JSON object a line; an incomplete last line is removed on resume. Every
line has `kind` (step, evaluation, alarm, notice, saved, finished), `step` and `time` (seconds since 1970). The
clock shows only in `time`, `seconds` and `images_per_second`; everything else of a repeated run is equal.
The first step has `constants`, where the start of the training measured them: as a Plan has them.
Numbers JSON has no word for are the strings "NaN", "Infinity", "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from kdcli.disk import asking, folder_gone, is_file, writing, written_beside
from kdcli.records import Alarm, Baseline, Evaluation, Finished, Notice, Plan, Record, Saved, Step
from kdcli.report.live.plain_text import PlainText

CLOCK_FIELDS = ("time", "seconds", "images_per_second")
_KINDS: dict[type, str] = {
    Step: "step",
    Evaluation: "evaluation",
    Notice: "notice",
    Alarm: "alarm",
    Saved: "saved",
    Finished: "finished",
}
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends records to metrics.jsonl, each at once: no checkpoint of a killed run is ahead of the file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._step = 0
        self._processes = 1
        self._constants: dict[str, float] = {}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_incomplete_line(path)
            self._file: TextIO = path.open("a", encoding="utf-8", buffering=1 << 16)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, record: Record) -> None:
        """Append one record; a Plan is not written, it gives the number of processes and the step.

        Raises RunError KD740 where the disk refuses, KD772 where the file has been deleted.
        """
        if isinstance(record, Plan):
            self._processes, self._step = record.processes, record.resumed_step
            self._constants = {} if record.resumed_step else dict(record.constants)
            return
        now = self._clock()
        self._step = getattr(record, "step", self._step)
        line = {"kind": _KINDS[type(record)], "step": self._step, **_fields(record)}
        if isinstance(record, Step) and record.seconds > 0:
            line["images_per_second"] = record.images * self._processes / record.seconds
        if isinstance(record, Step) and self._constants:
            line["constants"], self._constants = self._constants, {}
        line["time"] = now
        with writing(self.path):
            if not self.path.exists():  # what is written into a deleted file goes nowhere, without an error
                raise folder_gone(self.path)
            self._file.write(_json_of(line) + "\n")
            self._file.flush()

    def truncate_after(self, step: int, *, before_evaluation: bool = False) -> None:
        """Remove what came after a checkpoint: later steps, incomplete lines, and that the run finished.

        before_evaluation: the checkpoint was taken between the step and its evaluation.
        """
        with writing(self.path):
            self._file.close()
            with written_beside(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
                for _, line, record in _lines(self.path):
                    if record["step"] > step or record["kind"] == "finished":
                        continue
                    if before_evaluation and record["step"] == step and _of_evaluation(record):
                        continue
                    file.write(line)
            self._file = self.path.open("a", encoding="utf-8", buffering=1 << 16)
        self._step = step

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def metrics_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl, one at a time and in order; lines that are no records are skipped.

    Raises RunError KD521 where the file can't be read.
    """
    for _, _, record in _lines(path):
        yield record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of metrics.jsonl at once: of a short run."""
    return list(metrics_of(path))


def records_from(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of metrics.jsonl from a byte on, each with the byte at which it ends; half a line is none yet."""
    for end, _, record in _lines(path, offset):
        yield end, record


def _lines(path: Path, offset: int = 0) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The whole lines from a byte on that are records: the byte at which each ends, the line, the record."""
    with asking(path), path.open("rb") as file:
        file.seek(offset)
        for data in file:
            if not data.endswith(b"\n"):
                return
            offset += len(data)
            line = data.decode("utf-8", "replace")
            record = _record_in(line)
            if record is not None:
                yield offset, line, record


def _record_in(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "kind" not in record:
        return None
    known = isinstance(record.get("step"), int) and abs(record["step"]) < 2**63
    return _readable(record) if known else None


def _of_evaluation(record: dict[str, Any]) -> bool:
    return record["kind"] == "evaluation" or bool(record.get("at_evaluation"))


def _drop_incomplete_line(path: Path) -> None:
    """Remove half a line that a killed run left: a record appended to it would be lost too."""
    if not is_file(path):
        return
    with writing(path), path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def _fields(record: Record) -> dict[str, Any]:
    # Of every step: asdict copies each value on its own, and a Step holds plain ones.
    plain = isinstance(record, Step)
    fields = {name: getattr(record, name) for name in record.__slots__} if plain else asdict(record)
    fields.pop("step", None)
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


_encoded = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _json_of(line: dict[str, Any]) -> str:
    """A line's text; numbers that JSON does not have are words."""
    try:
        return _encoded(line)
    except ValueError:
        return _encoded(_writable(line))


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


class TrainLog:
    """Appends a training's plain lines to train.log, whatever the screen shows; a resumed run goes on there."""

    def __init__(self, path: Path, *, baseline: Baseline | None = None) -> None:
        self._path = path
        self._lines = PlainText(baseline=baseline)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._path):
            self._file.close()

    def show(self, record: Record) -> None:
        """Append the record's lines, if it has any; raises RunError KD740 if the file can't be written."""
        text = self._lines.of(record)
        if text:
            with writing(self._path):
                self._file.write(text)
                if not isinstance(record, Step):
                    self._file.flush()
