"""How the benchmarks measure: sides take turns, medians are compared, a row says what is due."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision

THREADS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. due: what the ratio should reach; least: whether it is a lower bound."""

    what: str
    value: str
    ratio: float | None = None
    due: float | None = None
    least: bool = True

    def text(self) -> str:
        """As a line of a markdown table."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        due = "" if self.due is None else f"{'≥' if self.least else '≤'} {self.due:.2f}"
        return f"| {self.what} | {self.value} | {ratio} | {due} |"


def median_ratio(
    sides: Mapping[str, Callable[[], float]], rounds: int, one: str, other: str
) -> tuple[float, float]:
    """The median over rounds of one side's value over the other's, and the median of the other's value.

    Each pair is taken side by side, after one to warm up; the order turns round by round.
    """
    ratios, values = [], []
    for number in range(rounds + 1):
        order = (one, other) if number % 2 else (other, one)
        pair = {name: sides[name]() for name in order}
        if number:
            ratios.append(pair[one] / pair[other])
            values.append(pair[other])
    return statistics.median(ratios), statistics.median(values)


def child(module: str, *arguments: str, threads: int = THREADS) -> dict[str, Any]:
    """What `python -m module arguments` prints as its last line, as JSON."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        # Freed memory goes back at once, so that a peak is what was needed and not what was kept.
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def machine() -> str:
    """Where and with what was measured."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return (
        f"{name}, {THREADS} threads of {os.cpu_count()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def table(title: str, rows: Sequence[Row]) -> str:
    """A markdown table."""
    head = f"\n**{title}**\n\n| | | ratio | due |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(row.text() for row in rows) + "\n"


def milliseconds(seconds: float) -> str:
    """12.3 ms, or 1.23 ms."""
    return f"{seconds * 1e3:.{1 if seconds >= 0.01 else 2}f} ms"
