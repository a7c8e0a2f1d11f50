"""Everything that trains, as one module (Trainee), and the student that is measured and exported of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdcli.distill.layouts import read_as
from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.taps import Taps, View, tensors_in
from kdcli.distill.terms import schedule_weight
from kdcli.errors import Diagnostic, RunError, SpecError, SpecPath
from kdcli.failures import doing
from kdcli.losses.parts.reduce import is_scalar, no_scalar, times
from kdcli.models.heads import HITS, ClsPostProcess
from kdcli.models.module import is_task_loss
from kdcli.models.network import Network
from kdcli.spec.schema import Job, LossSpec, Mimic


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveLosses:
    """Which losses are in force: the jobs of a stage (None: all of them), and the task's own loss."""

    jobs: frozenset[str] | None = None
    task_loss: bool = True


class Trainee(nn.Module):
    """The student and everything trained with it; `forward` gives named, weighted losses.

    taps: of the student, already entered. jobs: each job's spec and its mimicker. The names are
    `task.<output>` for the task's losses and `<job>.<teacher>.<loss>` for the others.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Taps | None,
        jobs: Mapping[str, Job],
        mimickers: Mapping[str, Mimicker],
    ) -> None:
        super().__init__()
        self.student = student
        self.taps = taps
        self.specs = dict(jobs)
        self.mimickers = nn.ModuleDict(mimickers)
        self.active = ActiveLosses()
        self._losses = {
            name: mimickers[name].losses_of(job) for name, job in jobs.items() if name in mimickers
        }
        self.observer: Callable[[View], None] | None = None
        """Is shown the student's view of each batch; None where nobody looks."""
        self._unread = _unread_hits(student, jobs, mimickers)

    def forward(
        self,
        batch: Mapping[str, Any],
        teachers: Mapping[str, View],
        step_info: StepInfo,
        weighted: bool = True,
    ) -> dict[str, Tensor]:
        """Scalar losses by name, each already weighted for this step (1.0 where weighted is False).

        A loss out of force at this step is left out.
        """
        view = View({})
        if self.reads_student:
            with doing("the student's forward pass"):
                view = self.view(batch)
        if self.observer is not None:
            self.observer(view)
        losses: dict[str, Tensor] = {}
        if self.active.task_loss:
            if not weighted and (wrong := list(no_scalars(view.outputs))):
                raise RunError(wrong)
            losses.update(
                (f"task.{name}", value) for name, value in view.outputs.items() if is_task_loss(name)
            )
        for job, mimicker in self.mimickers.items():
            if self.active.jobs is not None and job not in self.active.jobs:
                continue
            spec = self.specs[job]
            assert isinstance(mimicker, Mimicker)
            weights = {
                name: term_weight(spec, loss, step_info.stage_step) if weighted else 1.0
                for name, loss in self._losses[job].items()
            }
            in_force = {name: weight for name, weight in weights.items() if weight is not None}
            if in_force:
                teacher_views = {name: teachers[name] for name in spec.teachers if name in teachers}
                with doing(f"job `{job}`", ("mimic", "jobs", job)):
                    before = [] if weighted else versions_of(view, *teacher_views.values())
                    values = mimicker(view, teacher_views, batch, step_info, in_force)
                    if not weighted:  # as the guard asks for them, before the first step
                        refuse_writing(job, before)
                        refuse_left_out(job, mimicker, in_force.keys(), values)
                    for name, value in values.items():
                        losses[f"{job}.{name}"] = times(value, in_force[name.rpartition(".")[2]])
        return losses

    @property
    def reads_student(self) -> bool:
        """Whether any active loss reads the student's view."""
        if self.active.task_loss:
            return True
        jobs = self.mimickers.keys() if self.active.jobs is None else self.active.jobs
        mimickers = [self.mimickers[job] for job in jobs]
        return any(m.reads_student for m in mimickers if isinstance(m, Mimicker))

    def view(self, batch: Mapping[str, Any]) -> View:
        """The student's view of a batch."""
        for counter in self._unread:
            counter.counts_hits = False
        try:
            return self._view(batch)
        finally:
            for counter in self._unread:  # called by others, it counts them as ever
                counter.counts_hits = True

    def _view(self, batch: Mapping[str, Any]) -> View:
        if self.taps is None:
            return View({}, dict(self.student(batch)))
        return self.taps.view(batch)


def _unread_hits(
    student: nn.Module, jobs: Mapping[str, Job], mimickers: Mapping[str, Mimicker]
) -> tuple[ClsPostProcess, ...]:
    """The postprocess whose hits nothing reads: no module after it, no tap, no method of one's own. At most one."""
    last = next(reversed(list(student.children())), None)
    own = any(not type(mimicker).__module__.startswith("kdcli.") for mimicker in mimickers.values())
    taps = [tap for job in jobs.values() for tap in job.student.mimic_name]
    if type(last) is ClsPostProcess and not own and not any(HITS in tap for tap in taps):
        return (last,)
    return ()


@contextmanager
def constant_costs(trainee: Trainee) -> Iterator[Callable[[], dict[str, float]]]:
    """Ask for what a constant answer costs, by the name of each loss that has such a cost, in the block's forward pass.

    Gives a function that reads the costs, each at the job's full weight; those alone that are finite.
    """
    mimickers = {job: one for job, one in trainee.mimickers.items() if isinstance(one, Mimicker)}
    costs: dict[str, dict[str, Tensor]] = {job: {} for job in mimickers}
    for job, mimicker in mimickers.items():
        mimicker.constants = costs[job]
    try:
        yield lambda: {
            f"{job}.{name}": abs(trainee.specs[job].loss_weight) * value
            for job, found in costs.items()
            for name, cost in found.items()
            if math.isfinite(value := float(cost))
        }
    finally:
        for mimicker in mimickers.values():
            mimicker.constants = None


def is_own_method(mimicker: nn.Module) -> bool:
    """Whether a method is code of the user's, and none of kdcli's."""
    return not type(mimicker).__module__.startswith("kdcli.")


def no_scalars(outputs: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """KD439 for each of the task's losses among a student's outputs that is no scalar."""
    for name, loss in outputs.items():
        if is_task_loss(name) and not is_scalar(loss):
            found, help = no_scalar(loss)
            message = f"the student's own loss `{name}` is no scalar: {found}"
            yield Diagnostic(code="KD439", message=message, help=help, path=("net",), on_key=True)


def refuse_left_out(job: str, mimicker: Mimicker, in_force: Set[str], values: Mapping[str, Any]) -> None:
    """Raise RunError KD437 where a method leaves a loss of its job out that is in force, or gives another one.

    kdcli's own may have made no term for one, where the job names no layers for it.
    """
    due = in_force
    if not is_own_method(mimicker):
        due = in_force & {key.rpartition(":")[2] for key in mimicker.terms}
    strange = sorted(name for name in values if name.rpartition(".")[2] not in in_force)
    if strange:
        message = f"the method of `{job}` gives a loss `{strange[0]}`, and the job has none of that name"
        help = f"name it in the spec (`cfgs: {{{strange[0].rpartition('.')[2]}: {{type: ...}}}}`), or leave it out"
        raise RunError.of("KD437", message, help)
    left_out = sorted(due - {name.rpartition(".")[2] for name in values})
    if left_out:
        raise RunError.of(
            "KD437",
            f"the loss `{job}.{left_out[0]}` is not computed: the method's `features` gives nothing for it",
            "let `features` give each key of `self.terms`, or take the loss out of the spec",
        )


def versions_of(*views: View) -> list[tuple[Tensor, int]]:
    """The tensors of the views with their counts of in-place changes."""
    shown = [value for view in views for value in (*view.features.values(), *view.outputs.values())]
    return [(tensor, tensor._version) for tensor in tensors_in(shown) if not tensor.is_inference()]


def refuse_writing(job: str, before: Iterable[tuple[Tensor, int]]) -> None:
    """Raise RunError KD437 where a job has changed what the networks showed it."""
    if any(tensor._version != version for tensor, version in before):
        raise RunError.of(
            "KD437",
            f"a loss of job `{job}` changes its input in place: other losses read the same tensor",
            "let it work on a copy: `teacher = teacher * 0` in place of `teacher.mul_(0)`",
        )


def term_weight(job: Job, loss: LossSpec, step: int) -> float | None:
    """The factor of one loss of a job at a step of its stage: job weight, warm-up, schedule."""
    factor = schedule_weight(
        step,
        start=job.start_iter if loss.start_iter is None else loss.start_iter,
        end=job.end_iter if loss.end_iter is None else loss.end_iter,
        decay=job.decay if loss.decay is None else loss.decay,
        warm_up=job.warm_up_iters,
    )
    return None if factor is None else job.loss_weight * factor


def span_of(job: Job, loss: LossSpec, steps: int) -> tuple[int, int]:
    """The first step of a stage of so many at which one loss of a job is in force, and the first at which no longer."""
    start = job.start_iter if loss.start_iter is None else loss.start_iter
    end = job.end_iter if loss.end_iter is None else loss.end_iter
    return start, steps if end is None else min(end, steps)


def total_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the losses, which is differentiated; raises RunError KD218 where none is in force."""
    parts = list(tensors_in(list(losses.values())))
    if not parts:
        raise RunError.of(
            "KD218",
            "no loss is in force at this step",
            "let the jobs' `start_iter` and `end_iter` cover the whole training, or say `task_loss: true`",
        )
    return sum(parts[1:], start=parts[0])


def active_names(trainee: Trainee, step_info: StepInfo, names: Iterable[str]) -> frozenset[str]:
    """Of these loss names those that are computed at this step."""
    found = set()
    for name in names:
        job, _, rest = name.partition(".")
        if job == "task":
            if trainee.active.task_loss:
                found.add(name)
        elif trainee.active.jobs is None or job in trainee.active.jobs:
            mimicker, spec = trainee.mimickers[job], trainee.specs[job]
            assert isinstance(mimicker, Mimicker)
            loss = mimicker.losses_of(spec)[rest.rpartition(".")[2]]
            if term_weight(spec, loss, step_info.stage_step) is not None:
                found.add(name)
    return frozenset(found)


END = "_end"
"""The new end's name among the modules; no module of a spec can be called so."""


class DeployedStudent(nn.Module):
    """A network up to the feature `tap`, then `end`, which turns it into `logits`.

    Its modules are the network's own, under their own names, and the end as `_end`: weights have the names
    they have in the network. What comes after the tap in the network is kept and not run.
    """

    def __init__(self, net: Network, tap: str, end: nn.Module) -> None:
        super().__init__()
        for name, child in net.named_children():
            self.add_module(name, child)
        self.add_module(END, end)
        self.tap = tap
        # Taps are no module: the network's children are registered once, above.
        self.taps = Taps(net, [tap], ())

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`logits` [B, K]."""
        with self.taps:
            if self.taps.counts is None:
                self.taps.learn(batch)
            feature = self.taps.view(batch).features[self.tap]
            (found,) = self.taps.layouts[self.tap]
            layout = found.handed_on
            if isinstance(feature, Tensor) and layout.in_grid:
                feature = read_as(feature, layout, "grid")
        return {"logits": self.get_submodule(END)(feature)}

    def training_only(self) -> frozenset[str]:
        """Names of the modules that serve training alone and are not exported."""
        net = self.taps.net
        assert isinstance(net, Network)
        return net.training_only()

    def exported_state(self) -> dict[str, Tensor]:
        """The network's exported state, and the end's."""
        dropped = self.training_only()
        return {key: value for key, value in self.state_dict().items() if key.split(".", 1)[0] not in dropped}


def deployed_student(student: nn.Module, mimickers: Mapping[str, Mimicker], mimic: Mimic | None) -> nn.Module:
    """The student itself, or with the end that one of the methods gives it.

    Raises SpecError KD448 where the task's loss would train the end that is thrown away, KD449 where
    two methods give an end.
    """
    ends = {
        name: found for name, mimicker in mimickers.items() if (found := mimicker.student_end()) is not None
    }
    if not ends or mimic is None:
        return student
    if len(ends) > 1:
        second = list(ends)[1]
        raise SpecError.at(
            ("mimic", "jobs", second),
            "KD449",
            f"jobs {' and '.join(f'`{name}`' for name in ends)} both replace the student's classifier",
            "keep one of them",
        )
    for path in _with_task_loss(mimic):
        raise SpecError.at(
            path,
            "KD448",
            f"job `{next(iter(ends))}` replaces the student's classifier, which the task's loss would train",
            "write `task_loss: false` under `mimic`",
        )
    ((tap, end),) = ends.values()
    assert isinstance(student, Network)
    return DeployedStudent(student, tap, end)


def _with_task_loss(mimic: Mimic) -> list[SpecPath]:
    """The places where the task's loss is on."""
    if not mimic.stages:
        return [("mimic", "task_loss")] if mimic.task_loss else []
    return [
        ("mimic", "stages", index)
        for index, stage in enumerate(mimic.stages)
        if (mimic.task_loss if stage.task_loss is None else stage.task_loss)
    ]
