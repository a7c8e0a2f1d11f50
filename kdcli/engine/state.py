"""Where a run is, and everything that decides its next step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from kdcli import __version__
from kdcli.engine.checkpoint import FORMAT
from kdcli.engine.optim import LearningRate
from kdcli.engine.run import Run


@dataclass(slots=True)
class Progress:
    """Counters of a run. step: finished optimizer steps; stage_step: of these, in this stage.

    epoch is the pass over the data that comes next or is under way; batch counts its batches that are
    done. images: samples this process took in. best and last: metrics of evaluations.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    batch: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, dict[str, float]] = field(default_factory=dict)


def run_state(
    run: Run, progress: Progress, optimizer: torch.optim.Optimizer, rate: LearningRate
) -> dict[str, Any]:
    """The state of a run after a whole step; every process takes part."""
    generators = run.processes.gather(generator_state())
    return {
        "format": FORMAT,
        "kdcli": __version__,
        "progress": asdict(progress),
        "trainee": run.trainee.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rate": rate.state_dict(),
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
        "ema": None if run.ema is None else run.ema.state_dict(),
        "generators": generators,
        "world_size": run.processes.world_size,
        "spec": run.parsed.resolved_yaml(),
        "teachers": dict(run.teacher_hashes),
    }


def generator_state() -> dict[str, Any]:
    """This process's main generators."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_generators(state: dict[str, Any]) -> None:
    """Put this process's main generators back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
