"""What the watch costs: the time of a training step with it and without it, in turns in one process.

    python -m tests.benchmarks.watch_cost [ROUNDS]

Logits KD and feature KD at the default `log_freq` of 20: each turn is 20 steps with one look among them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from kdcli.records import Step
from kdcli.training.train import LoopType, TrainLoop, train
from tests.benchmarks.measure import THREADS, Row, machine, median_ratio, milliseconds, table
from tests.benchmarks.sides import kdcli_run, spec_text

NAMES = {"resnet": "ResNet-34 to ResNet-18", "small": "cifar_resnet32 to cifar_resnet20"}
STEPS, BATCH = 20, 64


class NoLooks:
    """Looks at nothing."""

    def evaluation(self) -> Any:
        """A block in which nothing is looked at."""
        return nullcontext()

    def __getattr__(self, name: str) -> Callable[..., tuple[()]]:
        return lambda *_, **__: ()


class NoWatch(NoLooks):
    """Stands where the watch does, and says nothing."""

    looks = NoLooks()

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}


class Unwatched(TrainLoop):
    """The training loop without its watch."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.watch = NoWatch()  # type: ignore[assignment]


@contextmanager
def side(pair: str, jobs: str, loop: LoopType) -> Iterator[Callable[[], float]]:
    """Seconds a step of 20 steps; each call goes on."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        text = spec_text(pair, jobs, folder, samples=BATCH * STEPS * 2, log_freq=STEPS, batch=BATCH)
        records = train(stack.enter_context(kdcli_run(text, folder)), loop_type=loop)
        stack.callback(records.close)  # type: ignore[attr-defined]

        def go_on() -> float:
            start, steps = time.perf_counter(), 0
            for record in records:
                steps += isinstance(record, Step)
                if steps == STEPS:
                    break
            return (time.perf_counter() - start) / STEPS

        go_on()
        yield go_on


def rows(rounds: int) -> list[Row]:
    """One line for each pair and kind of distillation."""
    torch.set_num_threads(THREADS)
    found = []
    for pair in NAMES:
        for jobs in ("logits", "feature"):
            with side(pair, jobs, TrainLoop) as watched, side(pair, jobs, Unwatched) as unwatched:
                sides = {"with": watched, "without": unwatched}
                ratio, seconds = median_ratio(sides, rounds, "with", "without")
            what = f"{NAMES[pair]}, {jobs}: a step"
            found.append(Row(what, f"{milliseconds(seconds)} without", ratio, 1.01, least=False))
    return found


if __name__ == "__main__":
    print(machine())
    print(table("The watch", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
