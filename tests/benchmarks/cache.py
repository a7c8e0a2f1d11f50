"""A run that reads its teacher from a cache, against training the student alone.

    python -m tests.benchmarks.cache [ROUNDS]

ResNet-34 to ResNet-18, 32x32, batch 128; the cache is made beforehand, so every step is of a second pass.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from kdcli.parallel.distributed import Processes
from kdcli.spec.parse import parse
from kdcli.training.make_caches import make_caches
from kdcli.training.run import RunOptions
from tests.benchmarks.measure import THREADS, Row, machine, median_ratio, table
from tests.benchmarks.sides import BATCH, hand_side, kdcli_side, spec_text

STEPS = 3


def rows(rounds: int) -> list[Row]:
    """Cached logits and a cached feature, to the student alone and to a live teacher by hand."""
    torch.set_num_threads(THREADS)
    found = []
    for jobs in ("logits", "feature"):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            spec: dict[str, Any] = {"pair": "resnet", "log_freq": STEPS, "samples": BATCH * STEPS * 2}
            cached = {**spec, "jobs": jobs, "cache": {"dir": str(folder / "cache")}}
            here = Processes(device=torch.device("cpu"))
            parsed = parse(spec_text(folder=folder, **cached), "spec.yaml", base_dir=None)
            for _ in make_caches(parsed, RunOptions(), here):
                pass
            sides = {
                "cached": stack.enter_context(kdcli_side(**cached)),
                "alone": stack.enter_context(kdcli_side(**spec, jobs="alone")),
                "by hand": stack.enter_context(
                    hand_side("resnet", jobs, steps=STEPS, samples=spec["samples"])
                ),
            }
            ratio, seconds = median_ratio(sides, rounds, "alone", "cached")
            found.append(
                Row(f"cached {jobs}: images/s to the student alone", f"{BATCH / seconds:,.0f}", ratio, 0.95)
            )
            ratio, _ = median_ratio(sides, max(1, rounds // 2), "by hand", "cached")
            found.append(Row(f"cached {jobs}: images/s to a live teacher by hand", "", ratio))
    return found


if __name__ == "__main__":
    print(machine())
    print(table("Teacher cache", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
