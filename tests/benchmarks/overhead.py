"""What kdcli adds to a training step: its whole loop against one written by hand.

    python -m tests.benchmarks.overhead [ROUNDS]

Logits KD and feature KD, ResNet-34 to ResNet-18 and cifar_resnet32 to cifar_resnet20, 32x32, batch 128.
Speeds take turns in one process; peak memory is that of a process with one side alone. What the host does in a step
besides computing is the CPU time of two tiny networks on a batch of 4, where nearly nothing else is left: of all
threads, as many as the row says.

    python -m tests.benchmarks.overhead host [ROUNDS]      # that alone, on one thread
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack

import torch

from tests.benchmarks.measure import THREADS, Row, child, machine, median_ratio, milliseconds, table
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


def host(jobs: str, rounds: int) -> Row:
    """CPU time a step of both loops with two tiny networks, and the difference."""
    steps, batch = 50, 4
    samples = batch * steps * (rounds + 3)
    fields = {"pair": "tiny", "jobs": jobs, "samples": samples, "batch": batch, "clock": time.process_time}
    with ExitStack() as stack:
        sides = {
            "kdcli": stack.enter_context(kdcli_side(log_freq=steps, **fields)),
            "hand": stack.enter_context(hand_side(steps=steps, **fields)),
        }
        ratio, seconds = median_ratio(sides, rounds, "kdcli", "hand")
    more = milliseconds((ratio - 1) * seconds)
    threads = torch.get_num_threads()
    what = f"tiny networks, {jobs}: CPU time a step of {threads} thread{'s' * (threads > 1)}"
    return Row(what, f"{milliseconds(seconds)} by hand, {more} more", ratio)


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
    return [
        *(speed(*case, rounds) for case in cases),
        *(host(jobs, 4 * rounds) for jobs in ("logits", "feature")),
        *(memory(*case) for case in (cases[0], cases[3])),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        torch.set_num_threads(THREADS)
        print(json.dumps({"mb": peak(*sys.argv[2:5])}))
    elif sys.argv[1:2] == ["host"]:
        torch.set_num_threads(1)
        rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
        print(table("The host's work", [host(jobs, rounds) for jobs in ("logits", "feature")]))
    else:
        print(machine())
        print(table("No overhead", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
