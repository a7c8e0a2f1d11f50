"""What comes before a run's or a stage's first step: networks compiled, methods prepared, state of earlier stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext

from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.parallel.devices import to_device
from kdcli.records import Notice
from kdcli.training.join_jobs import require
from kdcli.training.run import Run


def compile_networks(run: Run) -> Iterator[Notice]:
    """Compile what `runtime.compile` names: the student, the teachers, or (true) all of them."""
    which = run.spec.runtime.compile
    names = []
    if which in (True, "student") and run.trainee.taps is not None:
        run.trainee.taps.compile()
        names.append("the student")
    if which in (True, "teachers"):
        for name, teacher in run.teachers.items():
            teacher.taps.compile()
            names.append(name)
    if names:
        yield Notice(message=f"torch.compile makes {' and '.join(names)} faster: the first steps take longer")


def prepare(run: Run) -> Iterator[Notice]:
    """Show the training data once, not augmented, to the methods that prepare themselves; also in a resumed run.

    It ends where they have seen as many images as they ask for. What they make of it is a function of the data alone;
    a checkpoint holds only what training changes, and what is kept from the run's own start counts. Teachers run
    themselves: a cache holds what they show of augmented samples.
    """
    asking = {
        name: run.trainee.mimickers[name] for name, needs in run.joined.requirements.items() if needs.prepare
    }
    if not asking:
        return
    loader = run.unaugmented()
    how = (
        "augmented, as the data itself does that"
        if loader is None
        else "with the transforms of the test data"
    )
    methods = [method for method in asking.values() if isinstance(method, Mimicker)]
    asked = [method.images_to_prepare for method in methods]
    enough = None if None in asked else max(number for number in asked if number is not None)
    few = enough is not None and enough < (run.facts.num_samples or 0)
    what = f"{enough:,} images of the training data" if few else "one pass over the training data"
    yield Notice(message=f"{what} for {', '.join(asking)}, {how}")
    running = require(run.joined, run.teachers, frozenset(asking), False)
    seen = 0
    with (
        closing(loader) if loader is not None else nullcontext(run.train_loader) as batches,
        closing(batches.batches(0)) as shown,  # type: ignore[type-var]
    ):
        for batch in shown:
            batch = to_device(dict(batch), run.processes.device)
            views = {name: run.teachers[name].view(batch) for name in running}
            for method in methods:
                method.prepare(views, batch)
            seen += len(batch["indices"]) * run.processes.world_size
            if enough is not None and seen >= enough:
                break
    for method in methods:
        method.prepared()


def inherited(run: Run, index: int) -> Iterator[Notice]:
    """Pass state from earlier stages' mimickers to this stage's; warn where none fits."""
    mimickers = run.trainee.mimickers

    def jobs_of(number: int) -> list[str]:
        active = run.stages[number].active.jobs
        return [name for name in mimickers if active is None or name in active]

    earlier = [mimickers[name] for number in range(index) for name in jobs_of(number)]
    ancestors = [mimicker for mimicker in earlier if isinstance(mimicker, Mimicker)]
    for name in jobs_of(index):
        mimicker = mimickers[name]
        assert isinstance(mimicker, Mimicker)
        others = [ancestor for ancestor in ancestors if ancestor is not mimicker]
        for message in mimicker.inherit(others):
            yield Notice(message=message, level="warning")
