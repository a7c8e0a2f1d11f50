"""What comes before a run's or a stage's first step: networks compiled, methods prepared, heads looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.registered import unregistered
from kdcli.distill.taps import tensors_in
from kdcli.distill.trainee import ActiveLosses, DeployedStudent, is_own_method
from kdcli.errors import Diagnostic, RunError
from kdcli.models.module import is_task_loss
from kdcli.parallel.devices import to_device
from kdcli.parallel.settings import compile_mode, compiled_networks
from kdcli.records import Notice, Plan
from kdcli.spec.plugins import is_own
from kdcli.training.checkpoint import Progress, generator_state, restore_generators
from kdcli.training.guard import GuardResult, Reach
from kdcli.training.join_jobs import first_samples, require
from kdcli.training.run import Run, active_reach, trained_names


def plan_of(run: Run, guard: GuardResult, progress: Progress, lr: float, *, before_evaluation: bool) -> Plan:
    """The first record: what will be trained. lr: which the warm-up reaches."""
    size = run.options.flops_size
    return Plan(
        name=run.name,
        run_dir=run.folder.root,
        device=str(run.processes.device),
        processes=run.processes.world_size,
        precision=run.settings.precision,
        networks=tuple(
            # The guard's step has shown by now where a teacher stops.
            replace(
                one,
                flops=run.options.flops.get(one.name) if size else None,
                runs_until=run.teachers[one.name].taps.stopped_at
                if one.name in run.teachers
                else one.runs_until,
            )
            for one in run.networks
        ),
        flops_size=size,
        primary=run.task.primary,
        levels={
            name: metrics[run.task.primary]
            for name, metrics in progress.teachers.items()
            if run.task.primary in metrics
        },
        pairs=run.joined.pairs,
        pulls=guard.pulls,
        even_weights=guard.even_weights,
        constants=guard.constants,
        samples=run.facts.num_samples or 0,
        labelled=run.facts.labels != "none",
        batch_size=run.train_loader.batch_size,
        steps_per_epoch=run.steps_per_epoch,
        total_steps=run.total_steps,
        effective_lr=lr,
        resumed_step=progress.step,
        resumed_before_evaluation=before_evaluation,
    )


def compile_networks(run: Run) -> Iterator[Notice]:
    """Compile what `runtime.compile` names: the student, the teachers, or (true) all of them."""
    which, mode = compiled_networks(run.spec.runtime), compile_mode(run.spec.runtime)
    names = []
    if which in (True, "student") and run.trainee.taps is not None:
        run.trainee.taps.compile(mode)
        names.append("the student")
    if which in (True, "teachers"):
        for name, teacher in run.teachers.items():
            teacher.taps.compile(mode)
            names.append(name)
    if names:
        yield Notice(message=f"torch.compile makes {' and '.join(names)} faster: the first steps take longer")


def refuse_idle_stages(run: Run, reach: Reach) -> None:
    """Raise RunError KD700 for each stage that trains nothing, or no weight of the student that its losses are to move.

    reach: of each loss's name the parameters that its gradient reaches.
    """
    if run.spec.mimic is None or not run.spec.mimic.stages:
        return
    problems = []
    for index, plan in enumerate(run.stages):
        losses = active_reach(plan, reach)
        trained = trained_names(run.trainee, plan, losses)
        of_student = any(name.startswith("student.") for names in losses.values() for name in names)
        if trained and (not of_student or any(name.startswith("student.") for name in trained)):
            continue
        what = f"stage {index + 1}" if plan.name is None else f"stage `{plan.name}`"
        message, help = (
            f"{what} has no loss",
            "name a job of the spec in its `jobs`, or say `task_loss: true`",
        )
        if losses:
            message = (
                f"{what} trains no weight of the student: its losses reach none of those that `train` names"
            )
            help = "name the layers before the tapped one in its `train`, or leave `train` out"
        problems.append(Diagnostic(code="KD700", message=message, help=help, path=("mimic", "stages", index)))
    if problems:
        raise RunError(problems)


def look_at_the_stages(run: Run, reach: Reach, progress: Progress) -> Iterator[Notice]:
    """Set in `progress` which parameters of the student stay untrained, and whether its answers depend on them.

    reach: of each loss's name the parameters that its gradient reaches. A parameter is trained where a stage trains it
    and a loss of that stage reaches it, or where it was read from weights; one that the spec freezes is left alone.
    Raises RunError KD700 for a stage that trains nothing. Then tells own losses that don't read their teacher.
    """
    batch = to_device(dict(next(run.train_loader.batches(0))), run.processes.device)
    _refuse_unregistered(run, first_samples(batch))
    refuse_idle_stages(run, reach)
    trained: set[str] = set()
    for plan in run.stages:
        trained |= trained_names(run.trainee, plan, reach)
    idle = [
        name
        for name, parameter in run.student.named_parameters()
        if parameter.requires_grad and f"student.{name}" not in trained and name not in run.student.loaded
    ]
    why = _without_answers(run, idle, first_samples(batch))
    progress.untrained, progress.features_only = idle, why is not None
    if idle:
        yield Notice(message=f"KD243: {_idle_text(run, idle)}" + ("" if why is None else f"; {WITHOUT_HEAD}"))
    elif why is not None:
        yield Notice(message=f"KD243: {why}; {WITHOUT_HEAD}")
    yield from _kwargs_of_methods(run)
    yield from _blind_losses(run, batch)


def _refuse_unregistered(run: Run, batch: Mapping[str, Any]) -> None:
    """Raise RunError KD736 where the student computes with parameters that are none of its own."""
    with restored_state(run.trainee), torch.enable_grad():
        outputs = run.student.eval()(batch)  # in training BatchNorm takes no single sample
        lost = unregistered(run.trainee, list(outputs.values()))
    if lost:
        raise RunError(lost)


def _kwargs_of_methods(run: Run) -> Iterator[Notice]:
    """A notice for each loss of the spec that takes kwargs from a method that needs none of that name."""
    for name, job in (run.spec.mimic.jobs if run.spec.mimic is not None and run.spec.distils else {}).items():
        mimicker = run.trainee.mimickers[name]
        assert isinstance(mimicker, Mimicker)
        record = mimicker.kdcli_record
        for key, loss in job.losses.items() if record.extra_losses else ():
            default = record.losses.get(key)
            if default is None or default.type != loss.type:
                continue
            taken = ", ".join(
                f"{k}: {json.dumps(v)}" for k, v in default.kwargs.items() if k not in loss.kwargs
            )
            if taken:
                whose = f"the method `{job.mimic_ins_type}`, since its own kwargs don't say"
                yield Notice(message=f"`{name}.{key}` takes `{taken}` from {whose}")


def _blind_losses(run: Run, batch: Mapping[str, Any]) -> Iterator[Notice]:
    """A warning for each own loss of a job with teachers that is the same, bit for bit, whatever the teachers show.

    Computed twice on one batch from the same random state, the second time with other values in the teachers' place.
    """
    jobs = frozenset(
        name for name, job in run.joined.jobs.items() if job.teachers and any(_own_losses(run, name))
    )
    if not jobs:
        return
    before = run.trainee.active
    with restored_state(run.trainee) as put_back, torch.no_grad():
        try:
            run.trainee.train()
            run.trainee.active = ActiveLosses(jobs=jobs, task_loss=False)
            views = {n: run.teachers[n].view(batch) for n in require(run.joined, run.teachers, jobs, False)}
            others = {
                name: replace(view, features=_other(view.features), outputs=_other(view.outputs))
                for name, view in views.items()
            }
            state, values = generator_state(), []
            for shown in (views, others):
                restore_generators(state)
                put_back()
                with run.autocast or nullcontext():
                    values.append(run.trainee(batch, shown, StepInfo(), weighted=False))
        finally:
            run.trainee.active = before
    for job in sorted(jobs):
        for loss in _own_losses(run, job):
            for name in values[0]:
                if (
                    name.startswith(f"{job}.")
                    and name.endswith(f".{loss}")
                    and torch.equal(*(v[name] for v in values))
                ):
                    message = f"KD709: `{name}` is the same whatever the teacher shows: it does not read the teacher"
                    yield Notice(message=message, level="warning")


def _own_losses(run: Run, job: str) -> Iterator[str]:
    """The losses of a job that are not kdcli's own: of an own method all."""
    own = is_own_method(run.trainee.mimickers[job])
    yield from (name for name, loss in run.joined.jobs[job].losses.items() if own or is_own(loss.type))


def _other(value: Any) -> Any:
    """The same structure with other values in its tensors of floats."""
    if isinstance(value, Tensor):
        return 0.3 - 0.7 * value.flip(0) if value.is_floating_point() and value.dim() else value
    if isinstance(value, Mapping):
        return {key: _other(one) for key, one in value.items()}
    return [_other(one) for one in value] if isinstance(value, list) else value


WITHOUT_HEAD = "the student is measured by what it learns of its teachers and exported as a backbone"


def _without_answers(run: Run, idle: Sequence[str], batch: Mapping[str, Any]) -> str | None:
    """Why the student's answers mean nothing; None where its head is trained. idle: parameters never trained."""
    if not run.spec.distils or (not idle and any(plan.active.task_loss for plan in run.stages)):
        return None
    if run.student.headless and not isinstance(run.deployed, DeployedStudent):
        return "the student was made without a classifier"
    parameters = dict(run.student.named_parameters())
    with restored_state(run.trainee), torch.enable_grad():
        outputs = run.deployed.eval()(batch)
        if not run.task.answers(outputs):
            return "the student has no head"
        if "logits" not in outputs:
            outputs = {
                name: value for name, value in run.student.train()(batch).items() if is_task_loss(name)
            }
        answers = [
            one for one in tensors_in(outputs.get("logits", list(outputs.values()))) if one.requires_grad
        ]
        if not answers or not idle:
            return None
        gradients = torch.autograd.grad(
            [one.float().sum() for one in answers], [parameters[name] for name in idle], allow_unused=True
        )
    return "its head is not trained" if any(one is not None for one in gradients) else None


def _idle_text(run: Run, idle: Sequence[str]) -> str:
    """How many parameters get no gradient, and where they are."""
    parameters = dict(run.student.named_parameters())
    count = sum(parameters[name].numel() for name in idle)
    places = list(dict.fromkeys(".".join(name.split(".")[:-1][:2]) or name for name in idle))
    listed = ", ".join(f"`{place}`" for place in places[:4]) + (", ..." if len(places) > 4 else "")
    return f"{count:,} parameters of the student get no gradient in this run and stay as they were made: {listed}"


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
