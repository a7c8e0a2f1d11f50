"""Weights & Biases: a run of project `kdcli`, or of $WANDB_PROJECT."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import wandb
from PIL import Image

from kdcli.report.loggers.logger import LoggedRun


class WandbLogger:
    """One wandb run; its files lie in <run folder>/wandb.

    WANDB_MODE is obeyed; without it, and without a login, the run is kept offline for a later `wandb sync`:
    no training waits for a password.
    """

    def begin(self, run: LoggedRun) -> str:
        """Start a run, or continue the one of `run.identity`."""
        mode = None if "WANDB_MODE" in os.environ or _logged_in() else "offline"
        start: Any = wandb.init
        self._run = start(
            project=os.environ.get("WANDB_PROJECT", "kdcli"),
            name=run.name,
            id=run.identity,
            resume="allow",
            dir=str(run.run_dir),
            config=dict(run.spec),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
        )
        return str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values of the step in one entry."""
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Log each picture as an image."""
        images = {name: wandb.Image(Image.open(BytesIO(png))) for name, png in pictures.items()}
        self._run.log(images, step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        """Write the values into the run's summary."""
        self._run.summary.update(dict(values))

    def end(self, *, finished: bool) -> None:
        """Finish the run, with exit code 1 where it stopped early."""
        self._run.finish(exit_code=0 if finished else 1)


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    return bool(wandb.login(prompt=False, relogin=False))
