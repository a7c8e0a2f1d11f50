"""The run folder: what lies in it, and when a run may use it."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdcli import __version__
from kdcli.data.facts import DataFacts
from kdcli.engine.checkpoint import checkpoints, disk_error, sweep_temporary, write_whole
from kdcli.engine.records import RUN_FORMAT, Finished
from kdcli.errors import RunError
from kdcli.spec.places import Places
from kdcli.spec.schema import Spec

EXPORTED = "exports.json"
"""Names the files that `kdcli export` has put into the folder."""

DATA = "data.json"
"""What was true of the data that the run was trained on: samples and class names, in the order of their numbers."""

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
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What was on the screen, as plain lines."""
        return self.root / "train.log"

    @property
    def student(self) -> Path:
        """The student as it was at the end."""
        return self.root / "student.safetensors"

    @property
    def best_student(self) -> Path:
        """The student of the best evaluation."""
        return self.root / "student_best.safetensors"

    @property
    def finished(self) -> Path:
        """Exists once the run has come to its end."""
        return self.root / "finished.json"

    def close(self, finished: Finished) -> None:
        """Mark the run as finished, with its figures."""
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

    def own_files(self) -> list[Path]:
        """Every file that kdcli itself makes here."""
        names = ["spec.yaml", "spec.resolved.yaml", "env.json", DATA]
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
            *(self.root / TENSORBOARD).glob("events.out.tfevents.*"),
        ]

    def exports(self) -> list[str]:
        """The files that `kdcli export` has put here."""
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
        """Count a file among this run's own, if it lies in this folder."""
        if path.resolve().parent == self.root.resolve():
            text = json.dumps(sorted({*self.exports(), path.name})) + "\n"
            write_whole(self.root / EXPORTED, lambda file: file.write(text.encode()))


def open_folder(root: Path, *, overwrite: bool, resume: bool) -> RunFolder:
    """Make the folder ready for a run.

    Raises RunError where a run lies there that may not be touched (KD741, KD742), and where the folder
    is a link (KD743) or can't be written (KD740).
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
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        sweep_temporary(root)
        sweep_temporary(folder.checkpoints)
    except OSError as error:
        raise disk_error(root, error) from None
    return folder


def _entries(root: Path) -> list[Path]:
    """What lies in a run folder, and in its checkpoints, as far as it is there."""
    return [path for folder in (root, root / "checkpoints") if folder.is_dir() for path in folder.iterdir()]


def write_facts(folder: RunFolder, *, given: str, resolved: str, environment: dict[str, Any]) -> None:
    """The spec as given, the spec with all defaults, and where the run ran."""
    write_whole(folder.root / "spec.yaml", lambda file: file.write(given.encode()))
    write_whole(folder.root / "spec.resolved.yaml", lambda file: file.write(resolved.encode()))
    text = json.dumps(environment, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder.root / "env.json", lambda file: file.write(text.encode()))


def write_data_facts(folder: RunFolder, train: DataFacts, test: DataFacts) -> None:
    """What is true of the data, for those who open the run again."""
    said = {
        side: {"samples": facts.num_samples, "classes": facts.class_names}
        for side, facts in (("train", train), ("test", test))
    }
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder.root / DATA, lambda file: file.write(text.encode()))


def recorded_classes(root: Path) -> tuple[str, ...] | None:
    """The class names that the run in a folder was trained with; None where it has not written them."""
    try:
        names = json.loads((root / DATA).read_text(encoding="utf-8"))["train"]["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if good else None


def environment(device: str, processes: int, places: Places, spec: Spec) -> dict[str, Any]:
    """Versions, device, threads, and the state of the working directory's git repository if there is one.

    `spec_dir`: the spec's folder. `files`: what was taken for each path of the spec; it wins when the run is
    opened again.
    """
    import torch

    return {
        "kdcli": __version__,
        "run_format": RUN_FORMAT,
        "spec_dir": None if places.folder is None else str(places.folder.resolve()),
        "files": places.record(spec),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        commit = subprocess.run(
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def _clear(folder: RunFolder) -> None:
    try:
        for path in [*checkpoints(folder.checkpoints), *folder.own_files()]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(folder.root, error) from None
