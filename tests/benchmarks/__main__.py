"""The whole table of speeds: `python -m tests.benchmarks [ROUNDS]`, on a machine that does nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.benchmarks import (
    cache,
    cheaper,
    cost,
    data_path,
    detection,
    guard,
    overhead,
    start,
    truncation,
    watch_cost,
)
from tests.benchmarks.measure import Row, machine, table


def main(rounds: int) -> None:
    """Prints every table as it is ready."""
    began = time.perf_counter()
    print(machine(), flush=True)
    parts: dict[str, Callable[[], list[Row]]] = {
        "No overhead: kdcli's loop to one by hand": lambda: overhead.rows(rounds),
        "Truncation": lambda: truncation.rows(rounds),
        "A cheaper teacher, to the fp32 loop by hand": lambda: cheaper.rows(max(1, rounds // 2)),
        "Teacher cache": lambda: cache.rows(rounds),
        "How cost grows, to the first line of its kind": lambda: cost.rows(rounds),
        "Detection": lambda: detection.rows(rounds),
        "Start": lambda: start.rows(rounds),
        "The watch, to none": lambda: watch_cost.rows(rounds),
        "Guard, to a training step": lambda: guard.rows(rounds),
    }
    for title, rows in parts.items():
        print(table(title, rows()), flush=True)
    print("\n**Data path**\n", flush=True)
    data_path.main(rounds)
    print(f"\n{time.perf_counter() - began:.0f} seconds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
