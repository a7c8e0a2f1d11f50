"""How the cost of a step grows with teachers, taps and processes.

    python -m tests.benchmarks.cost [STEPS]

cifar_resnet32 to cifar_resnet20, 32x32, batch 64 a process; every line is a fresh process (or two), its
peak memory that of the largest. The first steps are left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.measure import THREADS, Row, child, machine, milliseconds, table
from tests.benchmarks.sides import kdcli_side, resident_megabytes, spec_text

BATCH = 64
TAPS = [f"model.layer{layer}.{block}" for layer in (1, 2, 3) for block in range(3)][:8]


def rows(steps: int) -> list[Row]:
    """Time a step and peak memory, each as ratio to the first line of its kind."""
    found = []
    first: dict[str, float] | None = None
    for teachers in (1, 2, 4):
        cost = child("tests.benchmarks.cost", "one", str(teachers), "1", str(steps))
        first = first or cost
        found.append(_row(f"{teachers} teacher{'s' * (teachers > 1)}, 1 tap", cost, first))
    for taps in (2, 4, 8):
        cost = child("tests.benchmarks.cost", "one", "1", str(taps), str(steps))
        assert first is not None
        found.append(_row(f"1 teacher, {taps} taps", cost, first))
    alone = processes(1, steps)
    found.append(_row("1 process of 1 thread", alone, alone))
    found.append(_row("2 processes of 1 thread", processes(2, steps), alone))
    return found


def _row(what: str, cost: dict[str, float], first: dict[str, float]) -> Row:
    value = milliseconds(cost["seconds"])
    if "mb" in cost:
        value += f", {cost['mb']:,.0f} MB ({cost['mb'] / first['mb']:.2f})"
    return Row(f"{what}: a step", value, cost["seconds"] / first["seconds"])


def one(teachers: int, taps: int, steps: int) -> dict[str, float]:
    """A step's seconds and this process's peak."""
    torch.set_num_threads(THREADS)
    # The deepest tap stays the same, so that more taps are not also more of the teacher.
    names = TAPS[-taps:]
    with kdcli_side(
        pair="small",
        jobs="feature",
        teachers=teachers,
        taps=names,
        log_freq=2,
        batch=BATCH,
        samples=BATCH * 4,
    ) as go_on:
        seconds = statistics.median(go_on() for _ in range(steps))
    return {"seconds": seconds, "mb": resident_megabytes()}


def processes(count: int, steps: int) -> dict[str, float]:
    """A step's seconds in a run of so many processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = spec_text("small", "feature", folder, log_freq=1, batch=BATCH, samples=BATCH * 4)
        (folder / "spec.yaml").write_text(text)
        command = [sys.executable, "-m", "kdcli.cli", "train", str(folder / "spec.yaml")]
        command += [f"trainer.max_iter={2 * steps + 2}", "--device", "cpu", "--nproc", str(count), "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if line["kind"] == "step"]
    return {"seconds": statistics.median(seconds[2:])}


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(*(int(word) for word in sys.argv[2:5]))))
    else:
        print(machine())
        print(table("How cost grows", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 4)))
