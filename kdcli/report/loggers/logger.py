"""What a logger is: five calls, numbers by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """A run as loggers see it.

    spec: with all defaults, plain values; spec_text: the same as YAML. resumed_step: steps after it will
    be said again. identity: what `begin` returned when the run began, None for a new one.
    """

    name: str
    run_dir: Path
    spec: Mapping[str, Any]
    spec_text: str
    resumed_step: int = 0
    identity: str | None = None


class Logger(Protocol):
    """Made without arguments, called on rank 0 alone. Whatever it raises ends the logger, never the run."""

    def begin(self, run: LoggedRun) -> str | None:
        """Open the run, or the one of `run.identity` again; returns the identity to continue with."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, as `loss/task.loss`, `lr`, `test/top1`; a step may come in several calls."""
        ...

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """PNG files by name, at the end of the run."""
        ...

    def summary(self, values: Mapping[str, float]) -> None:
        """The numbers that stand for the run, as `best/top1`."""
        ...

    def end(self, *, finished: bool) -> None:
        """Put everything in its place; finished: False where the run stopped early."""
        ...


def flat(value: Any, name: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """The leaves of a spec as `trainer.optimizer.kwargs.lr` and their values."""
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
