"""MLflow: a run of experiment `kdcli`, or of $MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from kdcli.report.loggers.logger import LoggedRun, ServerAway, flat, worth_another_try

BATCH, PARAMETERS, VALUE_LENGTH = 500, 100, 500

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables of MLflow where the user has not set them: by itself it tries a request for minutes."""

ATTEMPT = "kdcli.attempt"
"""The tag by which a run is found whose creation the server has done but not answered."""


class MlflowLogger:
    """One MLflow run, at $MLFLOW_TRACKING_URI or wherever mlflow itself keeps runs.

    No number is logged twice: how far the server is, it is asked when a run is continued and after a request that
    failed, which it may have carried out all the same.
    """

    def __init__(self) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        scheme = urlsplit(str(mlflow.get_tracking_uri())).scheme
        self.local = scheme in ("", "file") or scheme.startswith("sqlite")
        self._id: str | None = None
        self._attempt: str | None = None
        self._in_doubt, self._time = False, 0.0
        self._last_steps: dict[str, int] = {}
        self._waiting: list[Metric] = []

    def begin(self, run: LoggedRun) -> str:
        """Start a run, or continue the one of `run.identity`."""
        # mlflow logs on standard error how it makes its database.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        with away_told_apart():
            self._client = MlflowClient(tracking_uri=mlflow.get_tracking_uri())
            if run.identity is not None:
                self._client.update_run(run.identity, status=RunStatus.to_string(RunStatus.RUNNING))
                self._id, self._in_doubt = run.identity, True
                return run.identity
            self._id = self._id or self._create(run.name)
            facts = [Param(_name(key), str(value)[:VALUE_LENGTH]) for key, value in flat(run.spec)]
            for start in range(0, len(facts), PARAMETERS):
                self._client.log_batch(self._id, params=facts[start : start + PARAMETERS])
            self._client.log_text(self._id, run.spec_text, "spec.resolved.yaml")
            return self._id

    def scalars(self, step: int, values: Mapping[str, float], time: float = 0.0) -> None:
        """Collect each value as a metric; NaN and infinities are left out, because stores refuse them."""
        self._time = time
        self._waiting += [
            Metric(_name(key), value, int(time * 1000), step)
            for key, value in values.items()
            if math.isfinite(value)
        ]

    def flush(self) -> None:
        """Log the metrics that were collected, but for those that the server has."""
        waiting, self._waiting = self._waiting, []
        assert self._id is not None
        with away_told_apart():
            if self._in_doubt:
                # The public form of a run's metrics that holds their steps.
                latest = self._client.get_run(self._id).data.to_proto().metrics
                self._last_steps = {metric.key: metric.step for metric in latest}
            self._in_doubt = True
            last = self._last_steps
            waiting = [metric for metric in waiting if not 0 < metric.step <= last.get(metric.key, 0)]
            for start in range(0, len(waiting), BATCH):
                self._client.log_batch(self._id, metrics=waiting[start : start + BATCH])
            self._in_doubt = False

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Log each picture as an artifact."""
        with away_told_apart(), tempfile.TemporaryDirectory() as folder:
            for name, png in pictures.items():
                path = Path(folder) / f"{name.replace('/', '_')}.png"
                path.write_bytes(png)
                self._client.log_artifact(self._id, str(path), "report")

    def summary(self, values: Mapping[str, float]) -> None:
        """Collect each value as a metric at step 0, which no other metric has."""
        self.scalars(0, values, self._time)

    def end(self, *, finished: bool) -> None:
        """Close the run."""
        with away_told_apart():
            self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _create(self, name: str) -> str:
        """Make a run in the experiment, or find the one that an unanswered request has made."""
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdcli")
        experiment = self._client.get_experiment_by_name(wanted)
        place = self._client.create_experiment(wanted) if experiment is None else experiment.experiment_id
        if self._attempt is not None:
            for run in self._client.search_runs([place], f"tags.`{ATTEMPT}` = '{self._attempt}'"):
                return str(run.info.run_id)
        self._attempt = self._attempt or uuid.uuid4().hex
        return str(self._client.create_run(place, run_name=name, tags={ATTEMPT: self._attempt}).info.run_id)


@contextmanager
def away_told_apart() -> Iterator[None]:
    """Raise ServerAway for MLflow's exceptions of a server that can't be reached, or that failed itself."""
    try:
        yield
    except MlflowException as error:
        if worth_another_try(error.get_http_status_code()):
            raise ServerAway(str(error)) from error
        raise


def _name(text: str) -> str:
    """A name with the characters that MLflow allows."""
    return "".join(sign if sign.isalnum() or sign in "_-. :/" else "_" for sign in text)[:250]
