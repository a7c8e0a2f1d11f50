"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from kdcli.report.loggers.logger import LoggedRun, flat
from kdcli.training.run_folder import TENSORBOARD


class TensorBoardLogger:
    """Writes into <run folder>/tensorboard; a resumed run goes on there, without its repeated steps."""

    local, repeats = True, True

    def begin(self, run: LoggedRun) -> str:
        """Open the event file; a new run removes those of a run that it overwrites."""
        folder = run.run_dir / TENSORBOARD
        if run.identity is None:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        purge = run.resumed_step + 1 if run.identity is not None else None
        writer: Any = SummaryWriter(str(folder), purge_step=purge)
        self._writer = writer
        self._writer.add_text("spec", "\n".join(f"    {line}" for line in run.spec_text.splitlines()), 0)
        if run.identity is None:
            summaries: Any = hparams
            for summary in summaries(dict(flat(run.spec)), {}):
                writer.file_writer.add_summary(summary)
        return TENSORBOARD

    def scalars(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        """Add each value as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=time)

    def flush(self) -> None:
        """Write what was added to the disk."""
        self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Add each picture as an image."""
        for name, png in pictures.items():
            pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def summary(self, values: Mapping[str, float]) -> None:
        """Nothing: the best metrics are among the scalars already."""

    def end(self, *, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()
