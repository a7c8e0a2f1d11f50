"""MLflow: a run of experiment `kdcli`, or of $MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient

from kdcli.report.loggers.logger import LoggedRun, flat

BATCH, PARAMETERS, VALUE_LENGTH = 500, 100, 500
SECONDS = 5.0


class MlflowLogger:
    """One MLflow run, at $MLFLOW_TRACKING_URI or wherever mlflow itself keeps runs.

    Numbers are sent together, at most five seconds late.
    """

    def begin(self, run: LoggedRun) -> str:
        """Start a run, or continue the one of `run.identity`."""
        # mlflow logs on standard error how it makes its database.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=mlflow.get_tracking_uri())
        self._waiting: list[Metric] = []
        self._sent_at = time.monotonic()
        if run.identity is not None:
            self._client.update_run(run.identity, status=RunStatus.to_string(RunStatus.RUNNING))
            self._id = run.identity
            return self._id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdcli")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        self._id = str(self._client.create_run(experiment_id, run_name=run.name).info.run_id)
        facts = [Param(_name(key), str(value)[:VALUE_LENGTH]) for key, value in flat(run.spec)]
        for start in range(0, len(facts), PARAMETERS):
            self._client.log_batch(self._id, params=facts[start : start + PARAMETERS])
        self._client.log_text(self._id, run.spec_text, "spec.resolved.yaml")
        return self._id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value as a metric; NaN and infinities are left out, because stores refuse them."""
        now = int(time.time() * 1000)
        self._waiting += [
            Metric(_name(key), value, now, step) for key, value in values.items() if math.isfinite(value)
        ]
        if len(self._waiting) >= BATCH or time.monotonic() - self._sent_at >= SECONDS:
            self._send()

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Log each picture as an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            for name, png in pictures.items():
                path = Path(folder) / f"{name.replace('/', '_')}.png"
                path.write_bytes(png)
                self._client.log_artifact(self._id, str(path), "report")

    def summary(self, values: Mapping[str, float]) -> None:
        """Log each value as a metric at step 0."""
        self.scalars(0, values)

    def end(self, *, finished: bool) -> None:
        """Send the metrics that wait and close the run."""
        self._send()
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._sent_at = time.monotonic()
        for start in range(0, len(waiting), BATCH):
            self._client.log_batch(self._id, metrics=waiting[start : start + BATCH])


def _name(text: str) -> str:
    """A name with the characters that MLflow allows."""
    return "".join(sign if sign.isalnum() or sign in "_-. :/" else "_" for sign in text)[:250]
