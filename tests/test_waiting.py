"""A long wait is told with its name, a short one is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from kdcli import waiting as module
from kdcli.waiting import waiting


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    monkeypatch.delenv("RANK", raising=False)


def until(true: Callable[[], object]) -> None:
    """Wait for another thread, on a busy machine too; a test that waits in vain fails."""
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_long_wait_is_told_seldom_and_its_end_once(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting(lambda: "the cat", after=0.05):
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    # At 0.05, 0.1, 0.2 and 0.4 s at the earliest; a busy machine tells it later, and less often.
    assert 1 <= len(lines) - 1 <= 4
    assert all(line.startswith("waiting for the cat (") for line in lines[:-1])
    assert lines[-1].startswith("waited ") and lines[-1].endswith(" s for the cat")


def test_a_short_wait_and_a_wait_without_a_name_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise RuntimeError("the other one is gone")

    with waiting(lambda: "the cat"):
        time.sleep(0.05)
    for what in (lambda: None, broken):
        with waiting(what, after=0.02):
            time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_an_error_in_the_block_ends_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), waiting(lambda: "the cat", after=0.02):
        raise KeyError
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_other_processes_say_who_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    screen = ""

    def told() -> bool:
        nonlocal screen
        screen += capsys.readouterr().err
        return bool(screen)

    with waiting(lambda: "the cat", after=0.02):
        until(told)
    assert screen.startswith("process 3: waiting for the cat (")


def test_a_forked_process_has_a_watch_of_its_own() -> None:
    with waiting(lambda: "the cat"):
        child = os.fork()
        if child == 0:
            os._exit(int(bool(module._watch.waits) or module._watch.thread is not None))
        assert os.waitpid(child, 0)[1] == 0
