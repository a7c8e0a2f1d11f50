"""What it saves to stop a network after the deepest layer that is needed.

    python -m tests.benchmarks.truncation [ROUNDS]

ResNet-34 to ResNet-18 tapped at layer2, 32x32, batch 128: the same run of kdcli with networks cut, and run to
their ends.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import torch

from tests.benchmarks.measure import THREADS, Row, machine, median_ratio, table
from tests.benchmarks.sides import BATCH, kdcli_side

STEPS = 3


def rows(rounds: int) -> list[Row]:
    """With the task's loss (the teacher is cut), and with hints alone (both are)."""
    torch.set_num_threads(THREADS)
    return [
        _row("teacher cut after layer2", rounds, task_loss=True, due=1.18),
        _row("hints alone, both cut after layer2", rounds, task_loss=False, due=1.47),
    ]


def _row(what: str, rounds: int, *, task_loss: bool, due: float) -> Row:
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                kdcli_side(
                    pair="resnet",
                    jobs="feature",
                    taps=["model.layer2"],
                    log_freq=STEPS,
                    samples=BATCH * STEPS * 2,
                    task_loss=task_loss,
                    uncut=name == "uncut",
                )
            )
            for name in ("cut", "uncut")
        }
        ratio, seconds = median_ratio(sides, rounds, "uncut", "cut")
    return Row(f"{what}: images/s to the uncut run's", f"{BATCH / seconds:,.0f}", ratio, due)


if __name__ == "__main__":
    print(machine())
    print(table("Truncation", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
