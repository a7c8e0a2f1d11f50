"""CPU seconds of single training steps of two specs, by turns in one process: a ratio that a busy machine gives too."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import yaml

from tests.benchmarks.runs import Spec

LEAST_PAIRS, MOST_PAIRS, MEASURED_SECONDS = 16, 200, 20.0
"""How many steps are measured: at least so many, then more until so much CPU time has gone by."""


def in_process(spec: Spec) -> Spec:
    """The spec with its data read in the process of the run, whose clock sees no other; changed in place."""
    dataset = spec["dataset"]
    dataset.setdefault("dataloader", {"type": "base"})
    for owner in (dataset, dataset["train"], dataset["test"]):
        if "dataloader" in owner:  # a side's own stands in place of the one of both
            owner["dataloader"].setdefault("kwargs", {})["num_workers"] = 0
    return spec


def steps_of(spec: Spec, folder: Path, stack: ExitStack) -> Iterator[float]:
    """The CPU seconds of each step of a run in this process; the first has all that comes before it."""
    import torch

    from kdcli.parallel.distributed import Processes
    from kdcli.records import Step
    from kdcli.spec.parse import parse
    from kdcli.training.build import built
    from kdcli.training.run import RunOptions
    from kdcli.training.train import train

    torch.set_num_threads(1)
    spec["saver"] = {"save_dir": str(folder)}
    spec["trainer"] |= {"test_freq": 10**6, "save_freq": 10**6, "log_freq": 1}  # records come by log_freq
    start = time.process_time()
    parsed = parse(yaml.safe_dump(spec, sort_keys=False), "cost.yaml", base_dir=None)
    run = stack.enter_context(
        built(parsed, RunOptions(overwrite=True), Processes(device=torch.device("cpu")))
    )
    for record in train(run):
        if isinstance(record, Step):
            yield time.process_time() - start
            start = time.process_time()


def filled(spec: Spec, views: int, folder: Path) -> tuple[Spec, float]:
    """The spec with a whole cache of so many views, and the CPU seconds of `kdcli cache`."""
    import torch

    from kdcli.parallel.distributed import Processes
    from kdcli.spec.parse import parse
    from kdcli.training.make_caches import make_caches
    from kdcli.training.run import RunOptions

    torch.set_num_threads(1)
    spec = copy.deepcopy(spec)
    spec["saver"] = {"save_dir": str(folder / "unused")}
    mimic = spec["mimic"]
    for job in (mimic, *(value for key, value in mimic.items() if key.startswith("mimic_job"))):
        if "teacher0" in job:
            job["teacher0"]["cache"] |= {"views": views, "dir": str(folder)}
    start = time.process_time()
    parsed = parse(yaml.safe_dump(spec, sort_keys=False), "cost.yaml", base_dir=None)
    for _ in make_caches(parsed, RunOptions(), Processes(device=torch.device("cpu"))):
        pass
    return spec, time.process_time() - start


def by_turns(one: Spec, other: Spec, folder: Path, stack: ExitStack) -> list[tuple[float, float]]:
    """The CPU seconds of a step of both, taken by turns; the first two steps of each are left out.

    folder: for their runs. stack: both are closed with it.
    """
    sides = [steps_of(spec, folder / name, stack) for spec, name in ((one, "one"), (other, "other"))]
    for side in sides:
        next(side), next(side)  # the first has all that comes before it, the second warms up
    pairs: list[tuple[float, float]] = []
    begun = time.process_time()
    while len(pairs) < LEAST_PAIRS or (
        len(pairs) < MOST_PAIRS and time.process_time() - begun < MEASURED_SECONDS
    ):
        order = (0, 1) if len(pairs) % 2 else (1, 0)
        seconds = {place: next(sides[place]) for place in order}
        pairs.append((seconds[0], seconds[1]))
    return pairs
