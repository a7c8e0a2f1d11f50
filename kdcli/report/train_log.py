"""train.log: a training as plain lines in the run folder, whatever the screen shows."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from kdcli.records import Record, Step
from kdcli.report.disk import writing
from kdcli.report.lines import Lines


class TrainLog:
    """Appends the lines of each record; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = Lines()
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
        """Write what the record is worth; RunError KD740 where the disk says no."""
        text = self._lines.of(record)
        if text:
            with writing(self._path):
                self._file.write(text)
                if not isinstance(record, Step):
                    self._file.flush()
