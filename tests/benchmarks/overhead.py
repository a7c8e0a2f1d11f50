"""What kdcli adds to a training step: its whole loop against one written by hand.

    python -m tests.benchmarks.overhead [ROUNDS]

Logits KD and feature KD, ResNet-34 to ResNet-18 and cifar_resnet32 to cifar_resnet20, 32x32, batch 128.
Speeds take turns in one process; peak memory is that of a process with one side alone.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import torch

from tests.benchmarks.measure import THREADS, Row, child, machine, median_ratio, table
from tests.benchmarks.sides import BATCH, hand_side, kdcli_side, resident_megabytes

NAMES = {"resnet": "ResNet-34 to ResNet-18", "small": "cifar_resnet32 to cifar_resnet20"}
STEPS = 3


def speed(pair: str, jobs: str, rounds: int) -> Row:
    """Images a second of both loops."""
    samples = BATCH * STEPS * 4
    with ExitStack() as stack:
        sides = {
            "kdcli": stack.enter_context(kdcli_side(pair=pair, jobs=jobs, log_freq=STEPS, samples=samples)),
            "hand": stack.enter_context(hand_side(pair, jobs, steps=STEPS, samples=samples)),
        }
        ratio, seconds = median_ratio(sides, rounds, "hand", "kdcli")
    return Row(f"{NAMES[pair]}, {jobs}: images/s", f"{BATCH / seconds:,.0f}", ratio, 0.97)


def memory(pair: str, jobs: str) -> Row:
    """Peak memory of both loops, each in its own process."""
    peaks = {
        side: child("tests.benchmarks.overhead", "peak", side, pair, jobs)["mb"] for side in ("kdcli", "hand")
    }
    return Row(
        f"{NAMES[pair]}, {jobs}: peak memory",
        f"{peaks['kdcli']:,.0f} MB, by hand {peaks['hand']:,.0f} MB",
        peaks["kdcli"] / peaks["hand"],
        1.05,
        least=False,
    )


def peak(side: str, pair: str, jobs: str) -> float:
    """The peak of this process after some steps of one side."""
    samples = BATCH * 4
    made = (
        kdcli_side(pair=pair, jobs=jobs, log_freq=2, samples=samples)
        if side == "kdcli"
        else hand_side(pair, jobs, steps=2, samples=samples)
    )
    with made as go_on:
        for _ in range(2):
            go_on()
    return resident_megabytes()


def rows(rounds: int) -> list[Row]:
    """The whole comparison."""
    torch.set_num_threads(THREADS)
    cases = [(pair, jobs) for pair in NAMES for jobs in ("logits", "feature")]
    return [speed(*case, rounds) for case in cases] + [memory(*case) for case in (cases[0], cases[3])]


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        torch.set_num_threads(THREADS)
        print(json.dumps({"mb": peak(*sys.argv[2:5])}))
    else:
        print(machine())
        print(table("No overhead", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
