"""Weights & Biases: a run of project `kdcli`, or of $WANDB_PROJECT."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import wandb
from PIL import Image

from kdcli.report.loggers.logger import LoggedRun, answers

ANSWER_SECONDS = 5.0
"""How long the server may take to answer at all; without an answer the run is kept offline."""

LIMITS = {"init_timeout": 20.0, "finish_timeout": 10.0, "finish_timeout_raises": True}
"""Seconds for wandb's own waits at start and end, which are 90 and without end; older versions lack some of them."""


class WandbLogger:
    """One wandb run; its files lie in <run folder>/wandb.

    WANDB_MODE is obeyed; without it, and without a login or a server that answers, the run is kept offline for a
    later `wandb sync`: no training waits for a password.
    """

    def __init__(self) -> None:
        # wandb sends reports on its own use, and at exit waits 10 s for a server that does not take them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.messages: list[str] = []
        self.later: str | None = None
        self._run: Any = None

    def begin(self, run: LoggedRun) -> str:
        """Start a run, or continue the one of `run.identity`."""
        identity = run.identity or uuid.uuid4().hex[:8]
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        if mode == "online" and not answers(server := str(wandb.setup().settings.base_url), ANSWER_SECONDS):
            self.messages.append(f"{server} does not answer, the run is kept offline")
            mode = "offline"
        try:
            self._run = _init(run, identity, mode)
        except wandb.errors.CommError as error:
            self.messages.append(f"the run is kept offline: {error}")
            mode = "offline"
            self._run = _init(run, identity, mode)
        self._offline = mode == "offline"
        # A resumed run has a folder for each start.
        folders = f"{shlex.quote(str(run.run_dir / 'wandb'))}/{'offline-' if self._offline else ''}run-*"
        self.later = f"`wandb sync {folders}` uploads it"
        return identity

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
        if self._offline:
            self.messages.append(f"kept offline, {self.later}")


def _init(run: LoggedRun, identity: str, mode: str) -> Any:
    start: Any = wandb.init
    known = getattr(wandb.Settings, "model_fields", {})
    limits = {name: value for name, value in LIMITS.items() if name in known}
    return start(
        project=os.environ.get("WANDB_PROJECT", "kdcli"),
        name=run.name,
        id=identity,
        resume="allow",
        dir=str(run.run_dir),
        config=dict(run.spec),
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True, **limits),
    )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    return bool(wandb.login(prompt=False, relogin=False))
