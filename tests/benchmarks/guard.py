"""What the guard before the first step costs: its peak memory and its time, to those of a training step.

    python -m tests.benchmarks.guard [STEPS]

Every figure is of a fresh process: the most that it held beyond what it held before the run was built, weights
included. 32x32 images; a large batch is mostly activations, a small one mostly weights and gradients.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
import yaml

from kdcli.parallel.interrupts import listening
from kdcli.records import Step
from kdcli.training.checkpoint import Progress
from kdcli.training.guard import GuardResult, prove_losses
from kdcli.training.run import Run
from kdcli.training.train import TrainLoop
from tests.benchmarks.measure import THREADS, Row, child, machine, table
from tests.benchmarks.sides import kdcli_run, spec_text

CASES = (
    ("resnet", "logits", 16),
    ("resnet", "feature", 64),
    ("small", "feature", 64),
    ("small", "many", 128),
)
MANY = {"at": {"type": "at"}, "sp": {"type": "sp"}, "nst": {"type": "nst"}, "l2": {"type": "l2_loss"}}
"""Four losses over one pair of layers."""


def rows(steps: int) -> list[Row]:
    """Memory and seconds of the guard, each to a step's."""
    found = []
    for pair, jobs, batch in CASES:
        given = ("tests.benchmarks.guard", pair, jobs, str(batch), str(steps))
        guard, step = child(*given, "guard"), child(*given, "step")
        what = f"{pair}, {jobs}, batch {batch}"
        memory = f"{guard['mb']:,.0f} MB, a step {step['mb']:,.0f} MB"
        found.append(Row(f"{what}: peak memory", memory, guard["mb"] / step["mb"], 1.05, least=False))
        seconds = guard["seconds"] / step["seconds"]
        found.append(Row(f"{what}: time in steps", f"{guard['seconds']:.2f} s", seconds))
    return found


def one(pair: str, jobs: str, batch: int, steps: int, what: str) -> dict[str, float]:
    """Peak megabytes and seconds of the guard, or of a training step."""
    torch.set_num_threads(THREADS)
    torch.nn.Linear(8, 8)(torch.zeros(2, 8)).sum().backward()  # type: ignore[no-untyped-call]
    base = _megabytes("VmRSS")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = spec_text(
            pair, "feature" if jobs == "many" else jobs, folder, log_freq=1, batch=batch, samples=batch * 64
        )
        if jobs == "many":
            spec = yaml.safe_load(text)
            spec["mimic"]["cfgs"] = MANY
            text = yaml.safe_dump(spec, sort_keys=False)
        with kdcli_run(text, folder) as run:
            # The peak so far, of building, is forgotten.
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            began = time.perf_counter()
            if what == "guard":
                prove_losses(run)
                seconds = time.perf_counter() - began
            else:
                seconds = _step(run, steps)
            return {"mb": _megabytes("VmHWM") - base, "seconds": seconds}


def _step(run: Run, steps: int) -> float:
    """Seconds of a step, in a run that has not been proved."""
    everything = frozenset(name for name, _ in run.trainee.named_parameters())
    reach = {name: everything for name in ("task.loss", *(f"{job}.teacher0.loss" for job in run.joined.jobs))}
    with listening() as heard:
        records = TrainLoop(run, heard, GuardResult(reach, {}, {}), Progress()).stage(0, None)
        taken = [record.seconds for record in islice((r for r in records if isinstance(r, Step)), steps)]
    return sorted(taken)[len(taken) // 2]


def _megabytes(line: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(float(row.split()[1]) / 1e3 for row in status.splitlines() if row.startswith(line))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(one(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])))
    else:
        print(machine())
        print(table("Guard", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 4)))
