"""Predictions and pictures that `kdcli eval` saves: their files, whether they can be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kdcli.errors import RunError, UsageError
from kdcli.tasks.task import Kept, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOutputs:
    """Where `kdcli eval` writes a detector's predictions (a file) and pictures (a folder)."""

    predictions: Path | None = None
    pictures: Path | None = None

    def require(self, task: Task) -> None:
        """Raise UsageError where one of them is asked for and the task saves nothing."""
        for option, path in (("--save-predictions", self.predictions), ("--show", self.pictures)):
            if path is not None and task.kept is None:
                raise UsageError.of(f"`{option}` is for detectors, and this spec's task is {task.name}")

    def try_out(self, networks: Sequence[str]) -> None:
        """Raise RunError KD567 where one of these networks' files, or a picture, can't be written.

        Asked before anything runs, so that no figures are lost; makes the folders, and leaves no file.
        """
        for path in [] if self.predictions is None else [self.file_of(name) for name in networks]:
            try:
                existed = path.exists()
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab"):
                    pass
                if not existed:
                    path.unlink()
            except OSError as error:
                raise unwritable(path, error) from error
        if self.pictures is not None:
            try:
                self.pictures.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=self.pictures):
                    pass
            except OSError as error:
                raise unwritable(self.pictures, error) from error

    def file_of(self, network: str) -> Path:
        """Where the rows of one network go: the student's to the file, a teacher's beside it with its name."""
        assert self.predictions is not None
        path = self.predictions
        if network == "student":
            return path
        return path.with_name(f"{path.stem}.{network}{path.suffix or '.json'}")

    def save(self, kept: Kept, rows: Mapping[str, Sequence[Any]]) -> list[Path]:
        """Write each network's predictions to its file."""
        if self.predictions is None:
            return []
        written = []
        for name, own in rows.items():
            path = self.file_of(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                kept.save(path, own)
            except OSError as error:
                raise unwritable(path, error) from error
            written.append(path)
        return written


def unwritable(path: Path, error: OSError) -> RunError:
    """KD567 for a file or folder."""
    return RunError.of(
        "KD567",
        f"cannot write {path}: {error.strerror or error}",
        "`--save-predictions` names a file and `--show` a folder, where there is room and may be written",
    )
