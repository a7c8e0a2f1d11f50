"""The pass over the training data that some methods ask for, before the first step."""

from __future__ import annotations

from collections.abc import Iterator

from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.parallel.distributed import to_device
from kdcli.records import Notice
from kdcli.training.run import Run
from kdcli.training.wiring import require


def prepare(run: Run) -> Iterator[Notice]:
    """Show every training batch once to the methods that prepare themselves; also in a resumed run.

    What they make of it is a function of the data alone; a checkpoint holds only what training changes.
    """
    asking = {name: run.trainee.mimickers[name] for name, needs in run.wiring.needs.items() if needs.prepare}
    if not asking:
        return
    yield Notice(message=f"one pass over the training data for {', '.join(asking)}")
    running = require(run.wiring, run.teachers, frozenset(asking), False)
    methods = [method for method in asking.values() if isinstance(method, Mimicker)]
    for batch in run.train_loader.batches(0):
        batch = to_device(dict(batch), run.processes.device)
        views = {name: run.sources[name].view(batch) for name in running}
        for method in methods:
            method.prepare(views, batch)
    for method in methods:
        method.prepared()
