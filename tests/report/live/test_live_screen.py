"""The bar of counted work: on a terminal alone, and from the first word of progress on."""

from __future__ import annotations

import io

import pytest

from kdcli.report.live.live_screen import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_is_told_nothing() -> None:
    stream = io.StringIO()
    with progress("looking at images", stream) as update:
        assert update is None
    assert stream.getvalue() == ""


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress("looking at images", stream) as update:
        assert update is not None and stream.getvalue() == ""
        update(256, 1000)
        update(1000, 1000)
    assert "looking at images" in stream.getvalue() and "1000/1000" in stream.getvalue()


def test_short_work_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress("looking at images", stream):
        pass
    assert stream.getvalue() == ""
