"""The run folder: its files, and when a run may use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kdcli.errors import RunError
from kdcli.records import Finished
from kdcli.training.checkpoint import checkpoints, disk_error, sweep_temporary, write_whole

EXPORTED = "exports.json"
"""Names the files that `kdcli export` has put into the folder."""

DATA = "data.json"
"""What was true of the data that the run was trained on: samples and class names, in the order of their numbers."""

PROVED = "proved.json"
"""Of which spec, data and versions the run has been proved, so that a resume need not prove it again."""

SAMPLES = "data_{side}_{digest}.tsv.gz"
"""The list of one side's samples, under the first 16 digits of its SHA-256 (kdcli.data.digest)."""

TENSORBOARD = "tensorboard"
"""Where the TensorBoard logger writes."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run: spec.yaml, spec.resolved.yaml, env.json, train.log, metrics.jsonl, checkpoints/,
    student.safetensors, student_best.safetensors, finished.json.

    results: a second place for the figures at the end.
    """

    root: Path
    results: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file of metrics: one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The file with what was on the screen, as plain lines."""
        return self.root / "train.log"

    @property
    def student(self) -> Path:
        """The weights of the student at the end."""
        return self.root / "student.safetensors"

    @property
    def best_student(self) -> Path:
        """The weights of the student at its best evaluation."""
        return self.root / "student_best.safetensors"

    @property
    def finished(self) -> Path:
        """The file that exists once the run has ended."""
        return self.root / "finished.json"

    def close(self, finished: Finished) -> None:
        """Mark the run as finished, with its results."""
        figures = {
            "step": finished.step,
            "last": finished.last,
            "best": finished.best,
            "teachers": finished.teachers,
        }
        text = json.dumps(figures, indent=2) + "\n"
        for path in (self.results, self.finished):
            if path is not None:
                write_whole(path, lambda file: file.write(text.encode()))

    def samples(self, side: str, digest: str) -> Path:
        """The file that lists one side's samples. digest: its SHA-256, in hex digits."""
        return self.root / SAMPLES.format(side=side, digest=digest[:16])

    def own_files(self) -> list[Path]:
        """Every file that kdcli itself writes here."""
        names = ["spec.yaml", "spec.resolved.yaml", "env.json", DATA, PROVED]
        names += ["report.html", "report_data.json", "loggers.json", *self.exports(), EXPORTED]
        return [
            *(self.root / name for name in names),
            self.metrics,
            self.log,
            self.student,
            self.best_student,
            self.finished,
            self.root / "bad_samples.jsonl",
            *self.root.glob("replay_*.pt"),
            *self.root.glob(SAMPLES.format(side="t[re]*", digest="[0-9a-f]" * 16)),
            *(self.root / TENSORBOARD).glob("events.out.tfevents.*"),
        ]

    def exports(self) -> list[str]:
        """The files that `kdcli export` has written here."""
        try:
            said = json.loads((self.root / EXPORTED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        names = said if isinstance(said, list) else []
        return [
            name
            for name in names
            if isinstance(name, str) and Path(name).name == name and (self.root / name).is_file()
        ]

    def remember_export(self, path: Path) -> None:
        """Record an exported file as this run's own, if it lies in this folder."""
        if path.resolve().parent == self.root.resolve():
            text = json.dumps(sorted({*self.exports(), path.name})) + "\n"
            write_whole(self.root / EXPORTED, lambda file: file.write(text.encode()))


def open_folder(root: Path, *, overwrite: bool, resume: bool) -> RunFolder:
    """Check that a run may use the folder, and clear it with `--overwrite`; nothing else is written yet.

    Raises RunError where a run lies there that may not be touched (KD741, KD742), and where the folder
    is a link (KD743) or can't be cleared (KD740).
    """
    folder = RunFolder(root)
    link = next((path for path in (root, *_entries(root)) if path.is_symlink()), None)
    if link is not None:
        raise RunError.of(
            "KD743",
            f"{link} is a symbolic link: what is written there would lie elsewhere",
            "remove it, or name the real folder as `saver.save_dir`",
        )
    if overwrite:
        _clear(folder)
    elif folder.finished.exists() and not resume:
        raise RunError.of(
            "KD741",
            f"a finished run lies in {root}",
            "start over with `--overwrite`, or choose another `saver.save_dir`",
        )
    elif checkpoints(folder.checkpoints) and not resume:
        raise RunError.of(
            "KD742",
            f"an unfinished run lies in {root}",
            "continue it with `--resume`, or start over with `--overwrite`",
        )
    return folder


def make_ready(folder: RunFolder) -> None:
    """Create the folders and delete half-written files of a killed process; raises RunError KD740."""
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        sweep_temporary(folder.root)
        sweep_temporary(folder.checkpoints)
    except OSError as error:
        raise disk_error(folder.root, error) from None


def _entries(root: Path) -> list[Path]:
    """What lies in a run folder, and in its checkpoints, as far as it is there."""
    return [path for folder in (root, root / "checkpoints") if folder.is_dir() for path in folder.iterdir()]


def has_data_facts(root: Path) -> bool:
    """Whether the run in a folder says what its data was, with class names or without."""
    return (root / DATA).is_file()


def recorded_classes(root: Path) -> tuple[str, ...] | None:
    """The class names that the run in a folder was trained with; None where it has not written them."""
    try:
        names = json.loads((root / DATA).read_text(encoding="utf-8"))["train"]["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if good else None


def _clear(folder: RunFolder) -> None:
    try:
        for path in [*checkpoints(folder.checkpoints), *folder.own_files()]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(folder.root, error) from None
