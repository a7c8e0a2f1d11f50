"""Equal cost: what a step of a trial takes beside one of the student alone, and a spec that is shorter by as much."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.errors import SpecError
from kdcli.parallel.distributed import Processes
from kdcli.parallel.interrupts import Interrupts
from kdcli.records import Step
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.sweep import Values
from kdcli.training.build import built
from kdcli.training.run import RunOptions
from kdcli.training.train import train

if TYPE_CHECKING:
    from kdcli.sweep.prepare import Trials

ROUNDS, STEPS, FIRST = 3, 12, 2
"""Short runs of trial and student alone in turn, so many steps each; the first steps of a run are left out."""

LENGTHS = ("T_max", "T_0", "step_size", "total_iters", "max_epoch", "milestones")
"""Arguments of schedulers that are lengths, and shrink with the run."""


def cost_ratio(
    trials: Trials, values: Values, options: RunOptions, processes: Processes, interrupts: Interrupts
) -> float:
    """Seconds of a trial's step over those of the student alone, as medians of runs in turn; 1 at least.

    The trial reads what its teachers show from a cache that the first round has filled, as trials do.
    """
    seconds: dict[str, list[float]] = {"distils": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder:
        own = replace(trials, cache=Path(folder) / "cache")
        for number in range(ROUNDS + 1):
            for name, found in seconds.items():
                run = f"saver.save_dir={json.dumps(f'{folder}/{name}-{number}')}"
                short = ("trainer.log_freq=1", f"trainer.max_iter={STEPS}", run)
                runner = () if name == "distils" else ("runtime.runner.type=base",)
                timed = list(_steps(own.spec(values, *short, *runner), options, processes, interrupts))
                found += timed[FIRST:] if number else []
    return max(1.0, statistics.median(seconds["distils"]) / statistics.median(seconds["alone"]))


def _steps(
    parsed: ParsedSpec, options: RunOptions, processes: Processes, interrupts: Interrupts
) -> Iterator[float]:
    """The seconds of each step of a run."""
    with built(parsed, replace(options, places=parsed.places), processes) as run:
        for record in train(run, interrupts):
            if isinstance(record, Step):
                yield record.seconds


def require_one_stage(parsed: ParsedSpec) -> None:
    """Raise SpecError KD839 for stages: which of them should be shorter is not known."""
    if parsed.spec.mimic is not None and parsed.spec.mimic.stages:
        raise SpecError.at(
            ("mimic", "stages"),
            "KD839",
            "`--equal cost` shortens a run, and this one has stages of lengths of their own",
            "say `--equal steps`",
            on_key=True,
        )


def shortened(parsed: ParsedSpec, ratio: float) -> tuple[str, ...]:
    """Assignments that make a run shorter by a ratio, its schedule too."""
    trainer = parsed.spec.trainer
    if ratio <= 1.0:
        return ()
    if trainer.max_iter is not None:
        lengths = [f"trainer.max_iter={max(1, round(trainer.max_iter / ratio))}"]
    else:
        assert trainer.max_epoch is not None
        lengths = [f"trainer.max_epoch={trainer.max_epoch / ratio:.6g}"]
    scheduler = trainer.lr_scheduler
    for name in LENGTHS if scheduler is not None else ():
        assert scheduler is not None
        value = scheduler.kwargs.get(name)
        if value is not None:
            lengths.append(f"trainer.lr_scheduler.kwargs.{name}={json.dumps(_shrunk(value, ratio))}")
    return tuple(lengths)


def _shrunk(value: Any, ratio: float) -> Any:
    if isinstance(value, (list, tuple)):
        return [_shrunk(one, ratio) for one in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(f"{value / ratio:.6g}")
    return value
