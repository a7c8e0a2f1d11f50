"""The guard against silence: before the first step, every loss must move the student.

Each declared loss is differentiated alone and unweighted on real batches, under the run's own autocast and scaler, so
that a warm-up weight of 0 can't hide one that is dead. Random state and buffers are restored afterwards.

Memory: a forward pass for each loss, whose graph its backward pass frees, and each gradient is let go of as soon as it
has been looked at. So the peak is at most that of a training step (`python -m tests.benchmarks.guard`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.taps import View
from kdcli.distill.terms import binding_of
from kdcli.distill.trainee import ActiveLosses, constant_costs, total_of
from kdcli.errors import Diagnostic, RunError, SpecPath
from kdcli.losses import loss_of
from kdcli.parallel.devices import to_device
from kdcli.records import Notice, warnings
from kdcli.spec.in_memory import is_given
from kdcli.tasks.task import one_answer
from kdcli.training.checkpoint import generator_state, restore_generators
from kdcli.training.evaluate import class_words, counted, evaluation_mode, remarks
from kdcli.training.health import or_images
from kdcli.training.join_jobs import require
from kdcli.training.run import Run

BATCHES = 20
MORE_LOOKS = 8
"""So many more batches are looked at where a parameter has got no gradient: its block may be skipped at random."""

TEACHER_SAMPLES = 512
WEAK_TEACHER = (
    "check its weights, its pixels and the order of the classes, or allow it: `allow_weak_teacher: true`"
)

FAINT = 0.01
"""Below this share of the task's gradient a loss is hardly felt."""

STRONG = 100.0
"""Above this multiple of the task's gradient a loss hardly lets the task be felt."""

SCALE_STEP = 16.0
"""A gradient that is not finite under the scaler is tried again with a scale so many times smaller, down to 1."""

Reach = Mapping[str, frozenset[str]]
"""For each loss the names of the trainee's parameters that its gradient reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """How hard one loss of a job pulls the student, on this process's first batch and at the job's full weight.

    to_task: the norm of its gradient on the student over that of the task's losses together. gradient: that norm.
    weights: the norm of the student's weights that it reaches. even: the `loss_weight` with which it would pull as
    hard as the task, of the job, or in the loss's `kwargs` where the job has several; remedy: that in words.
    """

    to_task: float
    gradient: float
    weights: float
    even: float
    remedy: str


@dataclass(frozen=True, slots=True)
class GuardResult:
    """What the guard found: the parameters that each loss reaches, and how hard each pulls.

    strengths: of each loss of a job; empty without a task loss. logged_only: losses that are meant to move
    nothing, with the option that says so. constants: of losses on features, what a student would cost that answers the
    same at every place of every image (the teacher's mean on the first batch), at the job's full weight.
    """

    reach: Reach
    strengths: Mapping[str, Pull]
    logged_only: Mapping[str, str]
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def pulls(self) -> dict[str, float]:
        """Of each loss of a job its gradient on the student over the task's."""
        return {name: pull.to_task for name, pull in self.strengths.items()}

    @property
    def even_weights(self) -> dict[str, float]:
        """Of each loss of a job that pulls at all, the `loss_weight` with which it would pull as hard as the task."""
        return {name: pull.even for name, pull in self.strengths.items() if pull.to_task}

    def notices(self) -> list[Notice]:
        """A notice of each loss that is logged alone, or pulls very weakly or strongly beside the task's."""
        return [
            Notice(message=f"`{name}` is logged and moves nothing: {why}")
            for name, why in self.logged_only.items()
        ] + [
            Notice(
                message=f"`{name}` pulls the student {pull.to_task:.2g} times as hard as the task's loss, on the "
                + (
                    "first batch: raise its `loss_weight` if it is to be felt"
                    if pull.to_task < FAINT
                    else f"first batch; with {pull.remedy} it would pull as hard as the task"
                ),
                level="warning" if pull.to_task < FAINT else "info",
            )
            for name, pull in self.strengths.items()
            if not FAINT <= pull.to_task <= STRONG
        ]


@dataclass(frozen=True, slots=True)
class Finding:
    """One loss on one batch: the parameters that its gradient reaches, and whether anything was wrong.

    pull: the norm of its gradient on the student. weights: the norm of the student's weights that it moves.
    """

    reached: frozenset[str]
    value: float
    finite: bool
    moves_student: bool
    has_path: bool
    pull: float = 0.0
    weights: float = 0.0


def prove_losses(run: Run) -> GuardResult:
    """Differentiate every loss alone: which parameters it reaches, and how large its gradient is.

    Raises RunError: KD700 where a loss has no path to the student, KD701 where a loss or its gradient
    is not finite, KD702 where the gradient stays zero on 20 batches. A loss that is logged only has to be
    finite and no more.
    """
    trainee, before = run.trainee, run.trainee.active
    task_loss = any(stage.active.task_loss for stage in run.stages)
    findings: dict[str, Finding] = {}
    problems: list[Diagnostic] = []
    of_task: float | None = None
    constants: dict[str, float] | None = None
    draws = False
    trainee.train()
    trainee.active = ActiveLosses(task_loss=task_loss)
    running = require(run.joined, run.teachers, None, task_loss)
    try:
        with restored_state(trainee) as put_back:
            for batch in islice(run.train_loader.batches(0), BATCHES):
                batch = to_device(dict(batch), run.processes.device)
                views = {name: run.teachers[name].view(batch) for name in running}
                passes = _Passes(run, batch, views, put_back, constants=constants is None)
                constants = passes.constants if constants is None else constants
                draws = draws or passes.draws
                for name in passes.names:
                    # All processes go through the same losses: some of them wait for each other.
                    done = name in findings and findings[name].moves_student
                    if run.processes.any(not done):
                        finding = passes.differentiate(name)
                        findings[name] = findings[name] if done else finding
                if of_task is None:
                    of_task = passes.pull_of_task(findings)
                problems = or_images((_problem(run, *found) for found in findings.items()), batch)
                fatal = any(problem.code != "KD702" for problem in problems)
                if run.processes.any(fatal) or not run.processes.any(bool(problems)):
                    break
            wrong = run.processes.any(bool(problems))
            if not wrong and run.processes.any(draws):
                _look_again(run, running, findings, put_back)
    finally:
        trainee.active = before
    everywhere = [problem for there in run.processes.gather(problems) for problem in there]
    if everywhere:
        unique = {(problem.code, problem.message): problem for problem in everywhere}
        raise RunError(unique.values())
    return GuardResult(
        _reach_everywhere(run, {name: finding.reached for name, finding in findings.items()}),
        {
            name: _strength(run, name, finding, of_task)
            for name, finding in findings.items()
            if of_task and finding.pull and _beside_the_task(run, name)
        },
        {name: why for name in findings if (why := _logged_only(run, name)) is not None},
        _everywhere(run, constants or {}),
    )


def _everywhere(run: Run, constants: Mapping[str, float]) -> dict[str, float]:
    """The costs of constant answers as means over the processes, of the losses that have one in each of them."""
    there = run.processes.gather(dict(constants))
    return {
        name: sum(one[name] for one in there) / len(there)
        for name in constants
        if all(name in one for one in there)
    }


def _look_again(
    run: Run, running: Sequence[str], findings: dict[str, Finding], put_back: Callable[[], None]
) -> None:
    """Add what each loss reaches on more batches, while a parameter of the student has got no gradient yet."""
    more = islice(run.train_loader.batches(0, 1), MORE_LOOKS)
    while _unreached(run, findings) and (batch := next(more, None)) is not None:
        batch = to_device(dict(batch), run.processes.device)
        passes = _Passes(run, batch, {name: run.teachers[name].view(batch) for name in running}, put_back)
        seen = passes.differentiate(*passes.names).reached
        known = frozenset[str]().union(*(one.reached for one in findings.values()))
        if run.processes.any(not seen <= known):
            for name in passes.names:
                reached = findings[name].reached | passes.differentiate(name).reached
                findings[name] = replace(findings[name], reached=reached)


def _unreached(run: Run, findings: Mapping[str, Finding]) -> list[str]:
    """Parameters of the student that may train and that no loss reaches, in any process."""
    reach = _reach_everywhere(run, {name: finding.reached for name, finding in findings.items()})
    reached = frozenset[str]().union(*reach.values())
    student = ((n, p) for n, p in run.trainee.named_parameters() if n.startswith("student."))
    return [name for name, parameter in student if parameter.requires_grad and name not in reached]


def _strength(run: Run, name: str, finding: Finding, of_task: float) -> Pull:
    job_name, _, rest = name.partition(".")
    job = run.trainee.specs[job_name]
    to_task = abs(job.loss_weight) * finding.pull / of_task
    mimicker = run.trainee.mimickers[job_name]
    assert isinstance(mimicker, Mimicker)
    losses = mimicker.losses_of(job)
    loss = losses[rest.rpartition(".")[2]]
    even = math.copysign(of_task / finding.pull, job.loss_weight)
    remedy = f"`loss_weight: {even:.2g}` at the job (now {job.loss_weight:g})"
    if len(losses) > 1 and to_task:
        weight = binding_of(loss_of(loss.type)).weight_of(loss.kwargs)
        even = weight / to_task
        remedy = f"`loss_weight: {even:.2g}` in its `kwargs` (now {weight:g})"
    return Pull(
        to_task=to_task,
        gradient=abs(job.loss_weight) * finding.pull,
        weights=finding.weights,
        even=even,
        remedy=remedy,
    )


def _beside_the_task(run: Run, name: str) -> bool:
    """Whether this is a loss of a job that some stage trains together with the task's loss."""
    job = name.partition(".")[0]
    return job in run.trainee.specs and any(
        stage.active.task_loss and (stage.active.jobs is None or job in stage.active.jobs)
        for stage in run.stages
    )


def _reach_everywhere(run: Run, reach: Reach) -> Reach:
    """What each loss reaches in any process: a block that is skipped at random may have been skipped in one."""
    everywhere = run.processes.gather(reach)
    return {name: frozenset[str]().union(*(there.get(name, ()) for there in everywhere)) for name in reach}


def prove_teachers(run: Run) -> tuple[dict[str, dict[str, float]], list[Notice]]:
    """Metrics of each teacher with a head on up to 512 test samples, and notices about it.

    A teacher of other classes than the data's is not measured. Raises RunError KD703 near chance, or for one answer.
    """
    measured = {}
    notices: list[Notice] = []
    messages: list[str] = []
    problems = []
    classes = run.facts.num_classes or 0
    for name, teacher in run.teachers.items():
        with evaluation_mode(teacher.net):
            probe = to_device(dict(next(run.test_loader.batches(0))), run.processes.device)
            outputs = torch.no_grad()(teacher.outputs)(probe)
            judged = run.task.judges(outputs, run.facts, weights=_has_weights(run, name))
            if not (judged and run.scores(teacher)):
                continue
            matching = run.task.matching
            why = None if matching is None else matching.not_scored(name, teacher.labels, outputs, run.facts)
            if why is not None:
                notices.append(Notice(message=why))
                continue
            loader = run.test_loader
            meter, sums = counted(
                teacher.outputs,
                loader,
                run.task,
                run.processes,
                autocast=teacher.autocast,
                most_samples=TEACHER_SAMPLES,
                name=name,
            )
        measured[name] = metrics = meter.result(sums)
        messages += remarks(name, meter, sums, run.processes, loader)
        samples = min(TEACHER_SAMPLES, loader.facts.num_samples or TEACHER_SAMPLES)
        answer, near = one_answer(meter, sums), run.task.near_chance(metrics, classes, samples)
        if name not in run.allowed_weak_teachers and (near or answer is not None):
            says = f"{name} scores {run.task.by_chance} {metrics[run.task.by_chance]:.1f} on this data; "
            says += f"guessing scores {run.task.chance(classes):.1f}" if near else ""
            if answer is not None:
                says += f"{', and ' if near else ''}it answers every image with {class_words(answer, loader)}"
            problems.append(Diagnostic(code="KD703", message=says, help=WEAK_TEACHER))
    if problems:
        raise RunError(problems)
    return measured, [*notices, *warnings(messages)]


def _has_weights(run: Run, name: str) -> bool:
    """Whether a job gives the teacher's weights, or the teacher itself was given."""
    if is_given(run.spec.teachers[name]):
        return True
    jobs = run.joined.jobs.values()
    return any(name in job.teachers and job.teachers[name].teacher_weight is not None for job in jobs)


class _Passes:
    """Forward and backward passes over one batch, one for each loss, all from the same random state and buffers.

    put_back: restores the buffers. draws: whether the forward pass draws random numbers. constants: what a constant
    answer costs by each loss that has such a cost, at the job's full weight; empty where nobody asks.
    """

    def __init__(
        self,
        run: Run,
        batch: dict[str, Any],
        views: Mapping[str, View],
        put_back: Callable[[], None],
        *,
        constants: bool = False,
    ) -> None:
        self.run, self.batch, self.views, self.put_back = run, batch, views, put_back
        self.generators = generator_state()
        with constant_costs(run.trainee) if constants else nullcontext(dict) as costs:
            self.unused: dict[str, Tensor] | None = self._forward()
        self.constants: dict[str, float] = costs()
        after = generator_state()
        self.draws = any(not torch.equal(after[name], before) for name, before in self.generators.items())
        self.names = list(self.unused)

    def differentiate(self, *names: str) -> Finding:
        """The sum of these losses alone; where its gradient overflows under the scaler, at ever smaller scales."""
        scale = 1.0 if self.run.scaler is None else self.run.scaler.get_scale()
        while True:
            finding = _differentiate(self.run, names[0], self._take(names), scale)
            overflows = not finding.finite and math.isfinite(finding.value) and scale > 1.0
            if not self.run.processes.any(overflows):
                return finding
            scale = max(1.0, scale / SCALE_STEP)

    def pull_of_task(self, findings: Mapping[str, Finding]) -> float:
        """Gradient norm of the task's losses together on the student; 0 without them."""
        own = [name for name in self.names if name.startswith("task.")]
        if len(own) < 2:
            return sum(findings[name].pull for name in own)
        return self.differentiate(*own).pull

    def _take(self, names: Sequence[str]) -> Tensor:
        """The sum of these losses, of a graph that nothing else holds."""
        losses = self.unused or self._forward()
        self.unused = None
        return total_of({name: losses[name] for name in names})

    def _forward(self) -> dict[str, Tensor]:
        restore_generators(self.generators)
        self.put_back()
        with self.run.autocast or nullcontext():
            return self.run.trainee(self.batch, self.views, StepInfo(), weighted=False)  # type: ignore[no-any-return]


def _differentiate(run: Run, name: str, loss: Tensor, scale: float) -> Finding:
    """What the gradient of a loss, multiplied by `scale` on the way, shows; frees the loss's graph."""
    value = float(loss.detach())
    if not loss.requires_grad:
        return Finding(frozenset(), value, bool(loss.isfinite()), False, False)
    named = {n: p for n, p in run.trainee.named_parameters() if p.requires_grad}
    facts: dict[str, Tensor] = {}

    def look(parameter: nn.Parameter, name: str) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        norm = torch.linalg.vector_norm(values.float()) / scale
        facts[name] = torch.stack([norm, values.isfinite().all().to(norm), values.any().to(norm)])

    with ExitStack() as stack:
        for n, parameter in named.items():
            hook = parameter.register_post_accumulate_grad_hook(lambda p, n=n: look(p, n))  # type: ignore[no-untyped-call]
            stack.callback(hook.remove)
        (loss if scale == 1.0 else loss * scale).backward()  # type: ignore[no-untyped-call]
    reached = {n: facts[n] for n in named if n in facts}
    if not reached:
        return Finding(frozenset(), value, bool(loss.isfinite()), False, False)
    norms, finites, any_ = torch.stack(list(reached.values())).T.cpu()
    student = [number for number, n in enumerate(reached) if n.startswith("student.")]
    meant = student if _trains_student(run, name) else list(range(len(reached)))
    moved = [named[n] for n in reached if n.startswith("student.")]
    return Finding(
        frozenset(reached),
        value,
        finite=bool(loss.isfinite()) and bool(finites.all()),
        moves_student=bool(any_[meant].any()),
        has_path=bool(meant),
        pull=float(torch.linalg.vector_norm(norms[student])) if student else 0.0,
        weights=float(torch.stack([torch.linalg.vector_norm(p.detach().float()) for p in moved]).norm())
        if moved
        else 0.0,
    )


def _trains_student(run: Run, name: str) -> bool:
    """Whether a loss is meant to move the student; some learn from the teacher alone."""
    job, _, rest = name.partition(".")
    if job == "task":
        return True
    mimicker = run.trainee.mimickers[job]
    assert isinstance(mimicker, Mimicker)
    return mimicker.moves_student(rest)


def _logged_only(run: Run, name: str) -> str | None:
    """The option that keeps a loss from moving anything; None where it is meant to."""
    job, _, rest = name.partition(".")
    if job == "task":
        return None
    mimicker = run.trainee.mimickers[job]
    assert isinstance(mimicker, Mimicker)
    return mimicker.logged_only.get(rest.rpartition(".")[2])


def _problem(run: Run, name: str, finding: Finding) -> Diagnostic | None:
    if not finding.finite:
        what = f"has a value ({finding.value:g}) or a gradient that is not finite"
        return _about(run, name, "KD701", what, NOT_FINITE)
    if _logged_only(run, name) is not None:
        return None
    if not finding.has_path:
        return _about(
            run,
            name,
            "KD700",
            "gives the student no gradient: nothing it reads depends on a weight that trains",
            "the student's tapped layers, or all before them, are frozen; name later layers or unfreeze them",
        )
    if not finding.moves_student:
        return _about(
            run,
            name,
            "KD702",
            f"has a gradient of exactly zero on {BATCHES} batches (value {finding.value:g})",
            _why_zero(run, name),
        )
    return None


def _about(run: Run, name: str, code: str, what: str, help: str) -> Diagnostic:
    job_name, _, rest = name.partition(".")
    path: SpecPath | None = None
    layers = ""
    if job_name in run.joined.jobs:
        job = run.joined.jobs[job_name]
        path = ("mimic", "jobs", job_name, "losses", rest.rpartition(".")[2])
        teacher = rest.rpartition(".")[0]
        teacher_taps = job.teachers[teacher].mimic_name if teacher in job.teachers else ()
        layers = f" (student {_names(job.student.mimic_name)}" + (
            f", {teacher} {_names(teacher_taps)})" if teacher_taps else ")"
        )
    return Diagnostic(code=code, message=f"the loss `{name}`{layers} {what}", help=help, path=path)


def _names(taps: tuple[str, ...]) -> str:
    return ", ".join(f"`{tap}`" for tap in taps[:4]) + (" ..." if len(taps) > 4 else "")


NOT_FINITE = (
    "look at the teacher's weights and the data's normalisation; raise the temperature `T`, or lower the "
    "loss's exponents"
)


def _why_zero(run: Run, name: str) -> str:
    job_name, _, rest = name.partition(".")
    if job_name == "task":
        return run.task.why_zero
    if job_name in run.joined.jobs:
        job = run.joined.jobs[job_name]
        method = run.trainee.mimickers[job_name]
        losses = method.losses_of(job)  # type: ignore[operator]
        loss = losses.get(rest.rpartition(".")[2])
        if loss is not None and loss_of(loss.type).rectifies:
            return f"{loss.type} passes both sides through a ReLU, and nothing positive is left; for logits use kd_loss"
        if loss is not None and loss.kwargs.get("loss_weight") == 0:
            return "its own `loss_weight` is 0: leave the loss out instead"
    return "student and teacher show the same values, or a ReLU cuts all of them off; look at the two layers"
