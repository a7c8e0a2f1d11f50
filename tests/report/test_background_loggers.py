"""Loggers beside the training: the loop never waits, servers come and go, and every step arrives once, in order."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.parallel import interrupts
from kdcli.records import Notice, Record
from kdcli.report.loggers import background
from kdcli.report.loggers.background import IDENTITIES, Loggers, Position
from kdcli.report.loggers.logger import LoggedRun, ServerAway, answers, is_away
from kdcli.report.run_files import MetricsWriter

from .samples import plan
from .test_loggers import evaluation, finished, logged, step

AGAIN = "kdcli train cfg.yaml --resume"


class Server:
    """What a logger sends goes here; `away` is raised, or called, in its place."""

    def __init__(self) -> None:
        self.runs: list[tuple[str | None, int]] = []
        self.received: list[tuple[int, str]] = []
        self.away: Callable[[], None] | None = None
        self.ended: list[bool] = []

    def ask(self) -> None:
        if self.away is not None:
            self.away()


class Plain:
    """A logger that sends every call at once."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def begin(self, run: LoggedRun) -> str:
        self.server.ask()
        self.server.runs.append((run.identity, run.resumed_step))
        return "id"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.server.ask()
        self.server.received.append((step, min(values)))

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None: ...

    def summary(self, values: Mapping[str, float]) -> None: ...

    def end(self, *, finished: bool) -> None:
        self.server.ask()
        self.server.ended.append(finished)


class Collecting(Plain):
    """A logger that sends what it has collected with `flush`; the server may fail after it has taken it."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.waiting: list[tuple[int, str]] = []
        self.times: list[float] = []

    def scalars(self, step: int, values: Mapping[str, float], time: float = 0.0) -> None:
        self.waiting.append((step, min(values)))
        self.times.append(time)

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        self.server.ask()
        self.server.received += waiting


class Training:
    """A training as the recorder tells it: each record is written to metrics.jsonl, then taken."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, logger: Any, *, resumed: int = 0
    ) -> None:
        monkeypatch.setattr(background, "_load", lambda name: logger)
        self.metrics = MetricsWriter(folder / "metrics.jsonl")
        self.metrics.truncate_after(resumed)
        self.loggers = Loggers(["own"], logged(folder), metrics=self.metrics.path, again=AGAIN)
        self.notices: list[Notice] = self.loggers.load()
        self.take(replace(plan(), resumed_step=resumed))

    def take(self, record: Record) -> None:
        self.metrics.write(record)
        self.notices += self.loggers.take(record)

    def close(self) -> list[str]:
        self.notices += self.loggers.close()
        self.metrics.close()
        return [notice.message for notice in self.notices]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(background, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(background, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(
        background, "END_SECONDS", 15.0
    )  # a working logger always ends, on a busy machine too
    monkeypatch.setattr(background, "STUCK_SECONDS", 0.1)
    yield
    interrupts._abandoned.clear()


def until(true: Callable[[], object]) -> None:
    """Wait for another thread; a test that waits in vain fails."""
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.002)


def refuse() -> None:
    raise ConnectionRefusedError(111, "Connection refused")


def test_a_server_that_comes_late_gets_every_step_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.away = refuse
    training = Training(tmp_path, monkeypatch, Plain(server))
    for number in range(1, 251):
        training.take(step(number))
    assert server.received == []
    until(lambda: training.loggers._running[0].notices or training.notices)
    server.away = None
    until(lambda: len(server.received) == 250)
    server.away = refuse
    for number in range(251, 300):
        training.take(step(number))
    time.sleep(0.05)
    server.away = None
    training.take(evaluation(299))
    training.take(replace(finished(tmp_path), step=299))
    messages = training.close()
    assert [number for number, _ in server.received] == [*range(1, 300), 299, 299]
    assert [first for _, first in server.received[-2:]] == ["test/top1", "test/teacher0/top1"]
    assert server.runs == [(None, 0)] and server.ended == [True]
    # Once away, once back: the second outage was of the same kind.
    assert len(messages) == 2
    assert "can't reach its server, training goes on: ConnectionRefusedError" in messages[0]
    assert "has its server back" in messages[1]


def test_a_flush_that_fails_is_repeated_with_all_since_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "CHUNK", 10)
    server, fails = Server(), iter([False, True, False, True, True])

    def sometimes() -> None:
        if next(fails, False):
            raise ServerAway("busy")

    logger = Collecting(server)
    training = Training(tmp_path, monkeypatch, logger)
    server.away = sometimes
    for number in range(1, 36):
        training.take(step(number))
    until(lambda: next(fails, None) is None)
    training.close()
    assert [number for number, _ in server.received] == list(range(1, 36))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert set(logger.times) == {json.loads(line)["time"] for line in lines}
    assert len(logger.times) > 35  # repeated


def test_without_flush_only_the_call_that_failed_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, calls = Server(), iter(range(100))

    def fifth_and_ninth() -> None:
        if next(calls) in (5, 9):
            raise TimeoutError

    server.away = fifth_and_ninth
    training = Training(tmp_path, monkeypatch, Plain(server))
    for number in range(1, 21):
        training.take(step(number))
    until(lambda: len(server.received) >= 20)
    training.close()
    assert [number for number, _ in server.received] == list(range(1, 21))


def test_a_call_that_never_returns_holds_up_neither_the_steps_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(background, "END_SECONDS", 0.3)
    server, never = Server(), threading.Event()
    server.away = never.wait  # type: ignore[assignment]
    training = Training(tmp_path, monkeypatch, Plain(server))
    began = time.monotonic()
    for number in range(1, 101):
        training.take(step(number))
        time.sleep(0.001)
    assert time.monotonic() - began < 5.0
    training.take(replace(finished(tmp_path), step=100))
    messages = training.close()
    assert 0.3 < time.monotonic() - began < 10.0
    assert len(messages) == 2 and "has waited 0 s for an answer, training goes on" in messages[0]
    assert messages[1].endswith(
        f"none has arrived, all are in {tmp_path}/metrics.jsonl, `{AGAIN}` sends the rest"
    )
    assert interrupts._abandoned.is_set()
    never.set()


def test_an_interrupted_run_waits_for_a_logger_that_works_and_not_for_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "INTERRUPTED_SECONDS", 30.0)
    server = Server()
    training = Training(tmp_path, monkeypatch, Plain(server))
    server.away = lambda: time.sleep(0.02)
    for number in range(1, 21):
        training.take(step(number))
    assert training.close() == [] and len(server.received) == 20 and server.ended == [False]
    (tmp_path / "hanging").mkdir()
    never = threading.Event()
    server.away = never.wait  # type: ignore[assignment]
    training = Training(tmp_path / "hanging", monkeypatch, Plain(server))
    training.take(step(1))
    began = time.monotonic()
    assert "could not end in time" in training.close()[0]
    assert time.monotonic() - began < 10.0
    never.set()


@pytest.mark.parametrize("repeats", [False, True])
def test_after_a_kill_and_a_resume_no_step_is_sent_twice(
    repeats: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, resumed = Server(), Server()
    logger = Plain(killed)
    logger.repeats = repeats  # type: ignore[attr-defined]
    training = Training(tmp_path, monkeypatch, logger)
    for number in range(1, 8):
        training.take(step(number))
    training.take(evaluation(7))
    until(lambda: _mark(tmp_path).get("names") == ["step", "evaluation student"])
    assert _mark(tmp_path)["step"] == 7
    # Killed here, after a checkpoint at step 5: what follows it is trained again.
    logger.server = Server()
    again = Plain(resumed)
    again.repeats = repeats  # type: ignore[attr-defined]
    training.metrics.close()
    training = Training(tmp_path, monkeypatch, again, resumed=5)
    for number in range(6, 10):
        training.take(step(number))
        if number == 7:
            training.take(evaluation(7))
    training.close()
    assert killed.received[-1] == (7, "test/top1")
    first = 6 if repeats else 8
    assert resumed.runs == [("id", first - 1)]
    expected = [number for number in (6, 7, 7, 8, 9) if number >= first]
    assert [number for number, _ in resumed.received] == expected


def _mark(folder: Path) -> dict[str, Any]:
    try:
        has: dict[str, Any] = json.loads((folder / IDENTITIES).read_text())["own"]["has"]
        return has
    except (OSError, ValueError):
        return {}


def test_an_evaluation_that_a_resume_repeats_is_told_from_its_step() -> None:
    lines = [{"kind": "step", "step": 4}, {"kind": "evaluation", "network": "student", "step": 4}]
    position = Position().after(lines[0], 50)
    assert position.has(lines[0]) and not position.has(lines[1])
    assert position.has({"kind": "evaluation", "network": "student", "step": 3})
    assert position.after(lines[1], 90) == Position(step=4, names=("step", "evaluation student"), offset=90)
    assert position.repeated_from(4) is position
    assert position.repeated_from(2).has({"kind": "step", "step": 2})
    assert not position.repeated_from(2).has({"kind": "step", "step": 3})


def test_identities_of_an_older_kdcli_go_on_after_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / IDENTITIES).write_text('{"own": "old"}')
    server = Server()
    training = Training(tmp_path, monkeypatch, Plain(server), resumed=3)
    training.take(step(4))
    training.close()
    assert server.runs == [("old", 3)] and [number for number, _ in server.received] == [4]


def test_a_stopped_run_waits_for_what_is_written_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    logger = Plain(server)
    logger.local = True  # type: ignore[attr-defined]
    server.away = lambda: time.sleep(0.3)  # longer than a call to a server may take
    training = Training(tmp_path, monkeypatch, logger)
    training.take(step(1))
    assert training.close() == [] and server.ended == [False]


def test_a_run_that_stops_before_its_first_numbers_has_begun_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    training = Training(tmp_path, monkeypatch, Plain(server))
    assert training.close() == [] and server.runs == []


def test_an_interrupted_run_stops_sending_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "INTERRUPTED_SECONDS", 0.1)
    server = Server()
    server.away = lambda: time.sleep(0.02)
    training = Training(tmp_path, monkeypatch, Plain(server))
    for number in range(1, 51):
        training.take(step(number))
    assert "`kdcli train cfg.yaml --resume` sends the rest" in training.close()[0]
    assert 0 < len(server.received) < 50


def test_records_wait_in_the_file_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, never = Server(), threading.Event()
    server.away = never.wait  # type: ignore[assignment]
    training = Training(tmp_path, monkeypatch, Plain(server))
    training.take(step(1))
    tracemalloc.start()
    for number in range(2, 1002):
        training.loggers.take(step(number))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000, "a thousand records hold 300 bytes each at least"
    training.close()
    never.set()


def test_a_logger_and_its_thread_leave_random_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(1)
    before = random.getstate(), torch.get_rng_state()
    training = Training(tmp_path, monkeypatch, Plain(Server()))
    training.take(step(1))
    training.close()
    assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())


def test_what_counts_as_a_server_that_is_away() -> None:
    class Answer(OSError):
        def __init__(self, status: int) -> None:
            self.response = type("Response", (), {"status_code": status})()

    assert is_away(TimeoutError()) and is_away(OSError("no number, as requests has it"))
    assert is_away(OSError(113, "No route to host")) and is_away(Answer(503))
    assert not is_away(Answer(404)) and not is_away(ValueError()) and not is_away(OSError(28, "disk full"))


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_a_server_that_answers_with_an_error_answers(status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert answers(f"http://127.0.0.1:{server.server_port}", 5.0)
        thread.join()


def test_a_closed_and_a_silent_port_do_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert not answers(url, 0.1)
    assert not answers(url, 5.0) and not answers("no address", 5.0)


def test_an_abandoned_thread_lets_the_process_end_without_exit_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(interrupts.os, "_exit", left.append)
    with pytest.raises(SystemExit) as caught:
        interrupts.leave(1)
    assert caught.value.code == 1 and left == []
    interrupts.abandon_threads()
    interrupts.leave(130)
    assert left == [130]
