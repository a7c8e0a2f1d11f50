"""A run folder as report and compare read it: what was asked for, what was said, how far it came.

Bad folders are one line each: KD750 no run there, KD751 nothing to show yet, KD752 a file is broken or
half-written, KD753 written by a kdcli with another run format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.errors import RunError
from kdcli.records import RUN_FORMAT
from kdcli.report.metrics import read_metrics
from kdcli.training.reopen import SPEC, env_of_run, mapping_in, text_of

__all__ = ["RUN_FORMAT", "RecordedRun", "read_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One run. evaluations: by network, each in order of steps, the latest said of a step."""

    path: Path
    spec: Mapping[str, Any]
    spec_text: str
    env: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    evaluations: Mapping[str, tuple[Mapping[str, Any], ...]]
    finished: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def primary(self) -> str:
        """The metric that decides."""
        said = [self.finished] if self.finished else []
        said += [evaluation for series in self.evaluations.values() for evaluation in series]
        return next((str(record["primary"]) for record in said if record.get("primary")), "")

    @property
    def student(self) -> str:
        """The name of the student's evaluations."""
        return "student" if "student" in self.evaluations else next(iter(self.evaluations), "student")

    @property
    def last(self) -> Mapping[str, float]:
        """The student's last metrics."""
        if self.finished and self.finished.get("last"):
            return dict(self.finished["last"])
        series = self.evaluations.get(self.student, ())
        return dict(series[-1]["metrics"]) if series else {}

    @property
    def best(self) -> Mapping[str, float]:
        """The student's best metrics by the primary one, as the run itself judged."""
        if self.finished and self.finished.get("best"):
            return dict(self.finished["best"])
        marked = [record for record in self.evaluations.get(self.student, ()) if record.get("best")]
        return dict(marked[-1]["metrics"]) if marked else self.last

    @property
    def teachers(self) -> Mapping[str, Mapping[str, float]]:
        """Every other network's last metrics."""
        others = {
            name: dict(series[-1]["metrics"])
            for name, series in self.evaluations.items()
            if name != self.student
        }
        said = self.finished.get("teachers", {}) if self.finished else {}
        return {**others, **said}

    @property
    def progress(self) -> str:
        """`finished 900 steps` or `stopped or running at step 300 of 900`."""
        if self.finished:
            return f"finished {self.finished['step']:,} steps"
        if not self.steps:
            return "not one step yet"
        last = self.steps[-1]
        return f"stopped or running at step {last['step']:,} of {last.get('total_steps', 0):,}"


def read_run(path: Path) -> RecordedRun:
    """Read a run folder; RunError where there is none or it cannot be understood."""
    env = env_of_run(path)
    resolved, metrics = path / SPEC, path / "metrics.jsonl"
    text = text_of(resolved)
    spec = mapping_in(text, resolved)
    said = read_metrics(metrics) if metrics.exists() else []
    if not any(record["kind"] in ("step", "evaluation") for record in said):
        raise RunError.of("KD751", f"{path} has no step and no evaluation yet: nothing to show")
    return _assemble(path, spec, text, env, said)


def _assemble(
    path: Path,
    spec: Mapping[str, Any],
    spec_text: str,
    env: Mapping[str, Any],
    said: list[dict[str, Any]],
) -> RecordedRun:
    steps: dict[int, Mapping[str, Any]] = {}
    evaluations: dict[str, dict[int, Mapping[str, Any]]] = {}
    finished = None
    try:
        for record in said:
            if record["kind"] == "step":
                steps[record["step"]] = {**record, "losses": dict(record["losses"])}
            elif record["kind"] == "evaluation":
                entry = {**record, "metrics": dict(record["metrics"])}
                evaluations.setdefault(str(record["network"]), {})[record["step"]] = entry
            elif record["kind"] == "finished":
                finished = record
    except (KeyError, TypeError, ValueError) as error:
        raise RunError.of("KD752", f"{path / 'metrics.jsonl'} has records of an unknown shape") from error
    return RecordedRun(
        path=path,
        spec=spec,
        spec_text=spec_text,
        env=env,
        steps=tuple(steps[number] for number in sorted(steps)),
        evaluations={
            name: tuple(series[number] for number in sorted(series)) for name, series in evaluations.items()
        },
        finished=finished,
    )
