"""Whole runs whose logger's server is closed, silent or goes away: the steps, Ctrl-C and a resume as without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdcli.commands.init import copy_sample
from kdcli.commands.samples import sample_specs

pytestmark = pytest.mark.slow

OWN = '''
"""A logger that has no timeout of its own: each number is sent, and an answer waited for."""
import os, socket

class Logger:
    def begin(self, run):
        self.server = socket.create_connection(("127.0.0.1", int(os.environ["LOG_PORT"])))
        self.say(f"begin {run.resumed_step}")
        return "it"
    def say(self, line):
        self.server.sendall(line.encode() + b"\\n")
        if not self.server.recv(1):
            raise ConnectionResetError("the server is gone")
    def scalars(self, step, values):
        self.say(f"{step} {min(values)}")
    def pictures(self, step, pictures): ...
    def summary(self, values): ...
    def end(self, *, finished):
        self.say("end")
'''


class LineServer:
    """Takes lines and answers each with one byte, until it is silenced or closed."""

    def __init__(self, *, silent: bool = False) -> None:
        self.lines: list[str] = []
        self.silent = silent
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            for line in client.makefile():
                while self.silent:
                    time.sleep(0.1)
                self.lines.append(line.strip())
                client.sendall(b"k")

    def close(self) -> None:
        for one in (self._socket, *self._clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@dataclass(frozen=True)
class Times:
    """Seconds: from the start of the process to its first step, between two steps at most, from SIGINT to the end."""

    first: float
    gap: float
    stop: float


class Training:
    """`kdcli train` on the digits, a step a line in metrics.jsonl."""

    def __init__(self, folder: Path, logger: str | None, port: int, *more: str) -> None:
        (folder / "mylab.py").write_text(OWN)
        spec = folder / "digits_kd.yaml"
        if not spec.exists():
            copy_sample(sample_specs()["digits_kd"], folder)
        self.folder = folder
        self.metrics = folder / "runs/digits_kd/metrics.jsonl"
        command = [sys.executable, "-m", "kdcli.cli", "train", str(spec), "--no-check", "--plugin", "mylab"]
        command += [f"trainer.loggers=[{logger or ''}]", "trainer.log_freq=1", "trainer.save_freq=3", *more]
        address = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "LOG_PORT": str(port),
            "MLFLOW_TRACKING_URI": os.environ.get("STORE", address),
            "WANDB_BASE_URL": address,
            "WANDB_API_KEY": "a" * 40,
        }
        self.began = time.time()
        with (folder / "screen.txt").open("a") as screen:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=screen, stderr=screen, start_new_session=True
            )

    def steps(self) -> list[float]:
        """When each step so far was written down."""
        text = self.metrics.read_text() if self.metrics.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line["time"] for line in lines if line["kind"] == "step"]

    def until(self, steps: int) -> None:
        """Wait for so many steps."""
        while len(self.steps()) < steps:
            assert self.process.poll() is None and time.time() < self.began + 90, self.screen()
            time.sleep(0.05)

    def run_for(self, seconds: float) -> None:
        """Let it run."""
        time.sleep(seconds)
        assert self.process.poll() is None, self.screen()

    def until_shown(self, text: str) -> None:
        """Wait for some words on the screen."""
        while text not in self.screen():
            assert self.process.poll() is None and time.time() < self.began + 180, self.screen()
            time.sleep(0.1)

    def interrupted(self) -> Times:
        """Stop it by SIGINT."""
        asked, steps = time.time(), self.steps()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=60) == 130, self.screen()
        gap = max(after - before for before, after in zip(steps, [*steps[1:], asked], strict=True))
        return Times(steps[0] - self.began, gap, time.time() - asked)

    def screen(self) -> str:
        """All that was shown."""
        return (self.folder / "screen.txt").read_text()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Times:
    """The times of a run without a logger, on this machine, now."""
    training = Training(tmp_path_factory.mktemp("usual"), None, 1, "trainer.max_epoch=1000")
    training.until(20)
    training.run_for(8)
    return training.interrupted()


@pytest.fixture
def server() -> Iterator[LineServer]:
    with closing(LineServer()) as server:
        yield server


def kept_going(times: Times, usual: Times) -> None:
    # On a busy machine the imports of the library alone take long.
    assert times.first < max(15.0, 2 * usual.first)
    # Measured alone the gap is 0.5 s; a loop that waited for its logger would stand for a call's 10 s and more.
    assert times.gap < 5.0 + usual.gap
    assert times.stop < 4.0 + usual.stop


@pytest.mark.parametrize("logger", ["mylab:Logger", "mlflow", "wandb"])
@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_without_an_answer_training_goes_on(
    logger: str, silent: bool, tmp_path: Path, usual: Times, server: LineServer
) -> None:
    if ":" not in logger:
        pytest.importorskip(logger)
    server.silent = True
    if not silent:
        server.close()
    training = Training(tmp_path, f"'{logger}'", server.port, "trainer.max_epoch=1000")
    training.until(20)
    expected = "the run is kept offline" if logger == "wandb" else "training goes on"
    training.until_shown(expected)
    training.run_for(5)
    kept_going(training.interrupted(), usual)
    assert training.screen().count(expected) == 1, training.screen()
    if logger == "wandb":
        assert "wandb sync" in training.screen()
        assert list((tmp_path / "runs/digits_kd/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("mode", ["killed", "silenced"])
def test_a_server_that_goes_away_in_mid_run_gets_the_rest_after_a_resume(
    mode: str, tmp_path: Path, usual: Times, server: LineServer
) -> None:
    training = Training(tmp_path, "'mylab:Logger'", server.port, "trainer.max_epoch=1000")
    training.until(20)
    training.run_for(3)
    if mode == "killed":
        server.close()
    else:
        server.silent = True
    training.until_shown("training goes on")
    training.run_for(3)
    kept_going(training.interrupted(), usual)
    assert training.screen().count("training goes on") == 1, training.screen()
    before = list(server.lines)
    with closing(LineServer()) as later:
        epochs = len(training.steps()) // 22 + 2
        more = (f"trainer.max_epoch={epochs}", "--resume", "--allow-changed", "trainer.max_epoch")
        assert Training(tmp_path, "'mylab:Logger'", later.port, *more).process.wait(timeout=120) == 0
        lines = before + later.lines
    sent = [int(line.split()[0]) for line in lines if line.endswith("epoch")]
    assert sent == list(range(1, epochs * 22 + 1))


@pytest.mark.filterwarnings("ignore")
def test_after_kill_9_and_a_resume_mlflow_has_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("STORE", store)
    training = Training(tmp_path, "mlflow", 1, "trainer.max_epoch=200", "trainer.test_freq=100")
    marks = training.metrics.with_name("loggers.json")
    # Not while it makes its database: MLflow itself does not survive that.
    while not marks.exists() or json.loads(marks.read_text())["mlflow"]["has"]["step"] < 100:
        training.run_for(0.05)
    training.process.kill()
    training.process.wait()
    assert 100 <= len(training.steps()) < 22 * 200
    more = ("trainer.max_epoch=200", "trainer.test_freq=100")
    assert Training(tmp_path, "mlflow", 1, *more, "--resume").process.wait(timeout=300) == 0
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("kdcli").experiment_id])
    lines = [json.loads(line) for line in training.metrics.read_text().splitlines()]
    history = client.get_metric_history(run.info.run_id, "loss/total")
    logged = sorted((metric.step, metric.value) for metric in history)
    assert logged == [(line["step"], line["total"]) for line in lines if line["kind"] == "step"]
