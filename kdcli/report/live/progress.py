"""A bar on standard error for long work that is counted: for a terminal alone, gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdcli.report.console import console_for, is_terminal


@contextmanager
def progress(what: str, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None] | None]:
    """A function that is told (done, of how many) and draws it from its first call on; None without a terminal."""
    stream = sys.stderr if stream is None else stream
    if not is_terminal(stream):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console_for(stream), transient=True)
    task = bar.add_task(what, total=None)

    def told(done: int, total: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield told
    finally:
        bar.stop()
