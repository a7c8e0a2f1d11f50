"""The guard against silence: before the first step, every loss must move the student.

Each declared loss is differentiated alone and unweighted on real batches, so that a warm-up weight of
0 can't hide one that is dead. Random state and buffers are restored afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.trainee import ActiveLosses, total_of
from kdcli.errors import Diagnostic, RunError, SpecPath
from kdcli.losses import loss_of
from kdcli.parallel.devices import to_device
from kdcli.records import Notice, warnings
from kdcli.training.evaluate import evaluate, evaluation_mode
from kdcli.training.join_jobs import require
from kdcli.training.run import Run

BATCHES = 20
TEACHER_SAMPLES = 512

FAINT = 0.01
"""Below this share of the task's gradient a loss is hardly felt."""

Reach = Mapping[str, frozenset[str]]
"""For each loss the names of the trainee's parameters that its gradient reaches."""


@dataclass(frozen=True, slots=True)
class GuardResult:
    """What the guard found: the parameters that each loss reaches, and how hard each pulls.

    pulls: for each loss of a job the norm of its gradient on the student, at the job's full weight, over
    that of the task's losses together, on this process's first batch; empty without a task loss.
    logged_only: losses that are meant to move nothing, with the option that says so.
    """

    reach: Reach
    pulls: Mapping[str, float]
    logged_only: Mapping[str, str]

    def notices(self) -> list[Notice]:
        """Warn of each loss whose gradient is very small beside the task's; name each that is logged alone."""
        return [
            Notice(message=f"`{name}` is logged and moves nothing: {why}")
            for name, why in self.logged_only.items()
        ] + [
            Notice(
                message=f"`{name}` pulls the student {pull:.1g} times as hard as the task's loss, on the first "
                "batch: raise its `loss_weight` if it is to be felt",
                level="warning",
            )
            for name, pull in self.pulls.items()
            if pull < FAINT
        ]


@dataclass(frozen=True, slots=True)
class Finding:
    """One loss on one batch: the parameters that its gradient reaches, and whether anything was wrong.

    pull: the norm of its gradient on the student.
    """

    reached: frozenset[str]
    value: float
    finite: bool
    moves_student: bool
    has_path: bool
    pull: float = 0.0


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
    trainee.train()
    trainee.active = ActiveLosses(task_loss=task_loss)
    running = require(run.joined, run.teachers, None, task_loss)
    try:
        with restored_state(trainee):
            for batch in islice(run.train_loader.batches(0), BATCHES):
                batch = to_device(dict(batch), run.processes.device)
                views = {name: run.teachers[name].view(batch) for name in running}
                losses = trainee(batch, views, StepInfo(), weighted=False)
                for name, loss in losses.items():
                    if name not in findings or not findings[name].moves_student:
                        findings[name] = _differentiate(run, name, loss)
                if of_task is None:
                    of_task = _pull_of_task(run, losses, findings)
                problems = [p for name, finding in findings.items() if (p := _problem(run, name, finding))]
                fatal = any(problem.code != "KD702" for problem in problems)
                if run.processes.any(fatal) or not run.processes.any(bool(problems)):
                    break
    finally:
        trainee.active = before
    everywhere = [problem for there in run.processes.gather(problems) for problem in there]
    if everywhere:
        unique = {(problem.code, problem.message): problem for problem in everywhere}
        raise RunError(unique.values())
    return GuardResult(
        _reach_everywhere(run, {name: finding.reached for name, finding in findings.items()}),
        {
            name: trainee.specs[job].loss_weight * finding.pull / of_task
            for name, finding in findings.items()
            if (job := name.partition(".")[0]) in trainee.specs and of_task and finding.pull
        },
        {name: why for name in findings if (why := _logged_only(run, name)) is not None},
    )


def _reach_everywhere(run: Run, reach: Reach) -> Reach:
    """What each loss reaches in any process: a block that is skipped at random may have been skipped in one."""
    everywhere = run.processes.gather(reach)
    return {name: frozenset[str]().union(*(there.get(name, ()) for there in everywhere)) for name in reach}


def prove_teachers(run: Run) -> tuple[dict[str, dict[str, float]], list[Notice]]:
    """Metrics of each teacher with a head on up to 512 test samples, and notices about it.

    A teacher of other classes than the data's is not measured. Raises RunError KD703 near chance.
    """
    measured = {}
    notices: list[Notice] = []
    messages: list[str] = []
    problems = []
    classes = run.facts.num_classes or 0
    for name, teacher in run.teachers.items():
        with evaluation_mode(teacher.net):
            probe = to_device(dict(next(run.test_loader.batches(0))), run.processes.device)
            with torch.no_grad():
                outputs = teacher.outputs(probe)
            if not run.task.judges(outputs, run.facts, weights=_has_weights(run, name)):
                continue
            matching = run.task.matching
            why = None if matching is None else matching.not_scored(name, teacher.labels, outputs, run.facts)
            if why is not None:
                notices.append(Notice(message=why))
                continue
            metrics = evaluate(
                teacher.outputs,
                run.test_loader,
                run.task,
                run.processes,
                autocast=teacher.autocast,
                most_samples=TEACHER_SAMPLES,
                name=name,
                messages=messages,
            )
        measured[name] = metrics
        samples = min(TEACHER_SAMPLES, run.test_loader.facts.num_samples or TEACHER_SAMPLES)
        if name not in run.allowed_weak_teachers and run.task.near_chance(metrics, classes, samples):
            problems.append(
                Diagnostic(
                    code="KD703",
                    message=f"{name} scores {run.task.by_chance} {metrics[run.task.by_chance]:.1f} on this data; "
                    f"guessing scores {run.task.chance(classes):.1f}",
                    help="check its weights, normalisation and the order of the classes, "
                    "or say `allow_weak_teacher: true` beside its mimic_name",
                )
            )
    if problems:
        raise RunError(problems)
    return measured, [*notices, *warnings(messages)]


def _has_weights(run: Run, name: str) -> bool:
    """Whether a job gives the teacher's weights."""
    jobs = run.joined.jobs.values()
    return any(name in job.teachers and job.teachers[name].teacher_weight is not None for job in jobs)


def _differentiate(run: Run, name: str, loss: Tensor) -> Finding:
    named = [(n, p) for n, p in run.trainee.named_parameters() if p.requires_grad]
    if not loss.requires_grad:
        return Finding(frozenset(), float(loss.detach()), bool(loss.isfinite()), False, False)
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    reached = {n: g for (n, _), g in zip(named, gradients, strict=True) if g is not None}
    finite = bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in reached.values())
    meant = (
        {n: g for n, g in reached.items() if n.startswith("student.")}
        if _trains_student(run, name)
        else reached
    )
    moves = any(bool(g.any()) for g in meant.values())
    pull = _norm(g for n, g in reached.items() if n.startswith("student."))
    return Finding(frozenset(reached), float(loss.detach()), finite, moves, bool(meant), pull)


def _pull_of_task(run: Run, losses: Mapping[str, Tensor], findings: Mapping[str, Finding]) -> float:
    """Gradient norm of the task's losses together on the student; 0 without them."""
    own = {name: loss for name, loss in losses.items() if name.startswith("task.") and loss.requires_grad}
    if len(own) < 2:
        return sum(findings[name].pull for name in own)
    student = [p for p in run.trainee.student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total_of(own), student, retain_graph=True, allow_unused=True)
    return _norm(g for g in gradients if g is not None)


def _norm(gradients: Iterable[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


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
        return _about(
            run,
            name,
            "KD701",
            f"has a value ({finding.value:g}) or a gradient that is not finite",
            _why_not_finite(),
        )
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


def _why_not_finite() -> str:
    return (
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
