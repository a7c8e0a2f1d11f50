"""One run of a sweep: trained without a screen, heard at each evaluation, stopped early where that is asked for."""

from __future__ import annotations

import gc
import math
import shlex
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.api.train import recorder_of
from kdcli.commands import located
from kdcli.disk import exists, make_folder
from kdcli.errors import Interrupted
from kdcli.failures import doing
from kdcli.parallel.interrupts import Interrupts

if TYPE_CHECKING:
    import optuna

    from kdcli.parallel.distributed import Processes
    from kdcli.spec.parse import ParsedSpec
    from kdcli.sweep.study import Study
    from kdcli.training.run import RunOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. value: the deciding metric of its last evaluation as a number that rises."""

    primary: str
    metrics: Mapping[str, float]
    steps: int
    value: float | None
    stopped: bool

    @property
    def lack(self) -> str | None:
        """Why a run that was not stopped counts as failed; None where it has a value."""
        if self.value is not None and math.isfinite(self.value):
            return None
        named = f"`{self.primary}`" if self.primary else "a metric"
        return f"its last evaluation gave no number for {named}"


class Listener:
    """Hears a run's evaluations before its last one. stopped: whether it has asked for a stop."""

    stopped = False

    def hear(self, step: int, value: float | None, primary: str, metrics: Mapping[str, float]) -> None:
        """One evaluation; value: of the metric that decides, as a number that rises as the student gets better."""


class Halving(Listener):
    """Stops a trial where successive halving says so: as a signal would, its state saved."""

    def __init__(self, study: Study, handle: optuna.trial.Trial, interrupts: Interrupts) -> None:
        self.study, self.handle, self.interrupts = study, handle, interrupts

    def hear(self, step: int, value: float | None, primary: str, metrics: Mapping[str, float]) -> None:
        """Tell the study; ask for a stop."""
        if value is None or not math.isfinite(value) or self.interrupts.signal_number is not None:
            return
        if self.study.stops(self.handle, step, value, primary):
            for name, said in (("metrics", dict(metrics)), ("primary", primary), ("steps", step)):
                self.handle.set_user_attr(name, said)
            self.handle.set_user_attr("stopped_at", step)
            self.stopped = True
            self.interrupts.signal_number = signal.SIGTERM


def train_quietly(
    parsed: ParsedSpec,
    root: Path,
    listener: Listener,
    *,
    options: Callable[..., RunOptions],
    processes: Processes,
    interrupts: Interrupts,
    alone: Path,
) -> Outcome:
    """Train one run, from its newest checkpoint where it has begun; how it ended, with its last metrics.

    options: makes the run's options. alone: a lock that one process at a time builds its run under: two that make one
    cache at once would delete each other's. Raises KdError, and Interrupted for a signal of the user's.
    """
    from filelock import FileLock

    from kdcli.parallel.devices import oom_as_error
    from kdcli.records import Evaluation, Finished, rising
    from kdcli.training.build import built, claimed_folder
    from kdcli.training.checkpoint import checkpoints
    from kdcli.training.sides import Sides
    from kdcli.training.train import train as records_of

    resumes = bool(checkpoints(root / "checkpoints")) or exists(root / "finished.json")
    again = shlex.join(["kdcli", "train", str(root / "spec.resolved.yaml"), "--resume"])
    chosen = options(resume=resumes, overwrite=not resumes, prove=False, again=again)
    primary, metrics, steps, stopped = "", dict[str, float](), 0, False
    try:
        with ExitStack() as stack:
            stack.enter_context(located(parsed))
            stack.enter_context(oom_as_error(parsed.spec))
            folder = stack.enter_context(claimed_folder(parsed, chosen, processes))
            sides = Sides(parsed.spec, chosen.places, plugins=chosen.plugins)
            make_folder(alone.parent)
            with FileLock(alone), doing("building the run"):
                run = stack.enter_context(built(parsed, chosen, processes, sides, folder))
            name = f"{run.name}-{root.name}"
            recorder = stack.enter_context(
                recorder_of(parsed, run, name=name, spec=[str(root)], quiet=True, terminal=False)
            )
            for record in records_of(run, interrupts):
                recorder.take(record)
                if isinstance(record, Evaluation) and record.network == "student":
                    primary, metrics, steps = record.primary, record.metrics, record.step
                    if steps < run.total_steps:
                        listener.hear(steps, rising(primary, metrics), primary, metrics)
                elif isinstance(record, Finished):
                    primary, metrics, steps = record.primary, record.last, record.step
    except Interrupted:
        if not listener.stopped:
            raise
        interrupts.signal_number = None
        stopped = True
    finally:
        gc.collect()
    return Outcome(
        primary=primary, metrics=metrics, steps=steps, value=rising(primary, metrics), stopped=stopped
    )
