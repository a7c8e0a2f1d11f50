"""The training loop: yields what happens as records, step by step; it prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.disk import flush_to_disk
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.distill.taps import begin_batch
from kdcli.distill.trainee import total_of
from kdcli.errors import RunError
from kdcli.failures import doing
from kdcli.losses.parts.reduce import times
from kdcli.parallel.devices import Copies
from kdcli.parallel.distributed import Consensus
from kdcli.parallel.interrupts import Interrupts, listening, saved_at
from kdcli.parallel.pulse import begin_step, end_step, end_steps, saving
from kdcli.parallel.sharding import whole
from kdcli.records import Evaluation, Finished, Notice, Record, Saved, better, rising, warnings
from kdcli.tasks.mimicry import has_learnt_more, primary_of
from kdcli.tasks.probe.probe import LINEAR
from kdcli.training.caches import damaged_rows, flush_all
from kdcli.training.checkpoint import (
    Progress,
    fitting,
    restore_average,
    restore_optimizer,
    restore_trainee,
    run_state,
    save_checkpoint,
    save_student,
    step_info_of,
)
from kdcli.training.ddp import DistributedTrainee
from kdcli.training.evaluate import (
    comes_due,
    evaluate,
    evaluation_mode,
    measure_mimicry,
    probe_once,
    probe_where_due,
    with_heads,
    with_probe,
)
from kdcli.training.first_step import prove_first_step, refuse_strong_pulls
from kdcli.training.guard import GuardResult, prove_losses, prove_teachers
from kdcli.training.health import BadSamples, FiniteCheck, doubtful_logits
from kdcli.training.join_jobs import require
from kdcli.training.loss_records import DeviceNotices, LossRecords, watched_waits
from kdcli.training.optim import LearningRate, build_optimizer, clear_gradients
from kdcli.training.resume import Resumed, resume
from kdcli.training.run import Run, StagePlan, train_only
from kdcli.training.run_folder import write_facts
from kdcli.training.start import compile_networks, inherited, look_at_the_stages, plan_of, prepare
from kdcli.training.watch import Watch
from kdcli.waiting import waiting

FORWARD_SECONDS = 60.0
"""After so long a forward pass is told: code of the user's may hang in it."""


def train(
    run: Run, interrupts: Interrupts | None = None, loop_type: LoopType | None = None
) -> Iterator[Record]:
    """Train a built run; yields everything that happens, in order, and ends with Finished.

    interrupts: of a caller that listens already. loop_type: makes the loop, TrainLoop by default. Raises
    RunError where the run has to stop, Interrupted after a signal (its state is saved then).
    """
    started = time.perf_counter()
    with nullcontext(interrupts) if interrupts is not None else listening() as heard:
        for message in run.notices:
            yield Notice(message=message)
        with doing("reading the checkpoint"):
            resumed, notices = resume(run)
        yield from notices
        with doing("looking at the teachers before training"):
            teacher_metrics, notices = prove_teachers(run)
            yield from (*notices, *doubtful_logits(run))
        with doing("looking at each loss before training"):
            guard = prove_losses(run)
        yield from guard.notices()
        with doing("preparing the methods"):
            yield from prepare(run)
        yield from compile_networks(run)
        torch.manual_seed(run.spec.runtime.random_seed + run.processes.rank)
        progress = Progress() if resumed is None else resumed.progress
        progress.teachers = teacher_metrics
        if resumed is None:
            yield from look_at_the_stages(run, guard.reach, progress)
        else:
            with fitting(resumed.path):
                restore_trainee(run, resumed.state)  # before the loop shards it; its average after
        loop = (loop_type or TrainLoop)(run, heard, guard, progress)
        with nullcontext() if resumed is None else fitting(resumed.path):
            restore_average(run, None if resumed is None else resumed.state)
        if run.processes.speaks:
            run.folder.check_claim()
            write_facts(run)
            if not progress.over:
                run.folder.reopen()
        with heard.noting():
            with doing(lambda: f"epoch {progress.epoch + 1}"):
                for index in range(progress.stage, len(run.stages)):
                    yield from loop.stage(index, resumed)
                    resumed = None
        with doing("ending the run"):
            yield from loop.finish(started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The current stage: its plan, the teachers that run in it, its optimizer, its parameters, its learning rate."""

    plan: StagePlan
    teachers: Sequence[str]
    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    rate: LearningRate


class TrainLoop:
    """The steps of one process: train, evaluate and save, stage by stage."""

    def __init__(self, run: Run, interrupts: Interrupts, guard: GuardResult, progress: Progress) -> None:
        self.run, self.interrupts, self.guard, self.progress = run, interrupts, guard, progress
        self.trainable = {name: p.requires_grad for name, p in run.trainee.named_parameters()}
        self.ddp = DistributedTrainee(run, guard.reach)
        self.consensus = Consensus(run.processes)
        self.finite = FiniteCheck(run)
        self.bad_samples = BadSamples(run, progress)
        self.losses, self.device = LossRecords(run), DeviceNotices(run, progress)
        self.watch = Watch(run, guard, progress)
        self.data_waits = watched_waits(run)
        pinned = run.spec.dataset.train.dataloader.kwargs.pin_memory is not False
        self.copies = Copies(run.processes.device, beside=pinned)
        self.saved_at = time.perf_counter()

    def stage(self, index: int, resumed: Resumed | None) -> Iterator[Record]:
        """Run one stage from its first step, or from where the checkpoint was taken."""
        run, progress, plan = self.run, self.progress, self.run.stages[index]
        run.trainee.active = plan.active
        if resumed is None:
            yield from inherited(run, index)
        teachers = require(run.joined, run.teachers, plan.active.jobs, plan.active.task_loss)
        parameters = train_only(run.trainee, plan, self.trainable, self.guard.reach)
        optimizer = build_optimizer(plan.optimizer, parameters, plan.optimizer_path, run.trainee)
        rate = LearningRate(
            optimizer,
            plan.lr_scheduler,
            batch_size=run.train_loader.batch_size * run.accumulate,
            world_size=run.processes.world_size,
            steps_per_epoch=run.schedule_unit,
            path=plan.lr_path,
            steps=plan.steps,
        )
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        stage = Stage(plan=plan, teachers=teachers, optimizer=optimizer, parameters=trained, rate=rate)
        if resumed is not None:
            with fitting(resumed.path):
                restore_optimizer(run, resumed.state, optimizer, rate, changed=resumed.new_schedule)
        else:
            progress.stage, progress.stage_step = index, 0
            prove_first_step(run, plan, optimizer, rate.target, self.finite.notices)
        if index == 0 or resumed is not None:
            at_end = plan.steps <= progress.stage_step or progress.batch >= len(run.train_loader)
            before_evaluation = resumed is not None and at_end and not progress.over
            yield plan_of(run, self.guard, progress, rate.target, before_evaluation=before_evaluation)
            if resumed is None:
                refuse_strong_pulls(run, self.guard, plan, rate.target)
            yield from probe_once(run, progress, self.primary, stop=self.stopped)
        self.ddp.new_stage()
        self.watch.new_stage(plan, parameters, rate)
        while progress.stage == index and not progress.over:
            yield from self.epoch(stage)

    def epoch(self, stage: Stage) -> Iterator[Record]:
        """Run the rest of the current epoch, or of the stage if that ends first."""
        run, progress, steps = self.run, self.progress, stage.plan.steps
        run.trainee.train()
        self.losses.begin()
        batches_due = len(run.train_loader)
        group: list[Mapping[str, Any]] = []
        # Resumed after the last step of an epoch or stage: only what follows it is left to do.
        first = progress.batch if progress.stage_step < steps else batches_due
        with closing(run.train_loader.batches(progress.epoch, first)) as batches:  # type: ignore[type-var]
            for batch in self.data_waits.timed(batches):
                group.append(batch)
                if len(group) < run.accumulate and progress.batch + len(group) < batches_due:
                    continue
                with doing(f"training step {progress.step + 1} of {run.total_steps}"):
                    self.step(stage, group)
                group = []
                yield from self.finite.take_notices()
                if progress.step % run.spec.trainer.log_freq == 0:
                    yield from self.flush()
                stop, save = self.consensus.settle(self.interrupts.signal_number or 0, self.save_is_due())
                if stop:
                    yield from self.leave(stage, stop)
                if progress.stage_step >= steps:
                    break
                if save:
                    yield from self.flush()
                    yield self.save(stage)
        if progress.batch == first < batches_due:
            raise RunError.of(
                "KD756",
                f"epoch {progress.epoch + 1} gave no batch, and {steps - progress.stage_step} steps are left",
                "an own dataset must be readable as often as there are epochs: no generator that ends",
            )
        end_steps()
        yield from self.flush()
        flush_all(run.sources, run.processes)
        yield from warnings(damaged_rows(run.sources, run.processes))
        yield from self.after_epoch(stage)

    def flush(self) -> Iterator[Record]:
        """Yield the losses that wait on the device, and alarms; raises RunError KD730 where one was not finite."""
        for record in self.data_waits.reading(self.losses.flush()):
            yield record
            self.watch.take(record)
        self.finite.read()
        self.run.folder.check_claim()
        yield from self.device.notices()
        yield from self.watch.judge()
        yield from self.data_waits.judge(self.progress.step)

    def step(self, stage: Stage, group: list[Mapping[str, Any]]) -> None:
        """One optimizer step over a group of batches."""
        run, progress = self.run, self.progress
        begin_step()
        step_info = step_info_of(progress, len(run.train_loader))
        self.ddp.follow(step_info, stage.optimizer)
        self.finite.begin(progress, group)
        self.watch.begin(group)
        clear_gradients(stage.optimizer)
        parts: list[dict[str, Tensor]] = []
        images = 0
        for number, batch in enumerate(group):
            batch = self.copies(dict(batch))
            images += len(batch["image"])
            last = number == len(group) - 1
            parts.append(self.backward(stage, batch, step_info, last=last, share=1.0 / len(group)))
        self.update(stage, parts)
        self.watch.looks.end()
        progress.step += 1
        progress.stage_step += 1
        progress.batch += len(group)
        self.losses.add(progress, parts, stage.rate.now, images, stage.plan.name)
        stage.rate.advance()
        end_step()

    def backward(
        self, stage: Stage, batch: dict[str, Any], step_info: StepInfo, *, last: bool, share: float
    ) -> dict[str, Tensor]:
        """Forward and backward of one batch; returns its losses, detached."""
        run = self.run
        number = step_info.step + 1
        replays = begin_batch(run.trainee.taps, *(teacher.taps for teacher in run.teachers.values()))
        with self.ddp.gradients(last=last):
            with waiting(lambda: f"the forward pass of step {number}", FORWARD_SECONDS):
                # Teachers first: their transient peak must not stack on the student's saved activations.
                views = {}
                for name in stage.teachers:
                    with doing(f"the forward pass of {name}"):
                        views[name] = run.sources[name].view(batch)
                with run.autocast or nullcontext():
                    losses = self.ddp.model(batch, views, step_info)
            if last:
                self.watch.looks.differentiate(losses)
            total = times(total_of(losses), share)
            with run.processes.meeting_at(f"the gradients of step {number}"):
                (run.scaler.scale(total) if run.scaler is not None else total).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach().clone() if replays else loss.detach() for name, loss in losses.items()}

    def update(self, stage: Stage, parts: list[dict[str, Tensor]]) -> None:
        """Clip and check the gradients, step the optimizer, update the average."""
        run, optimizer, parameters = self.run, stage.optimizer, stage.parameters
        if run.scaler is not None:
            run.scaler.unscale_(optimizer)
        norm = None
        if run.spec.trainer.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, run.spec.trainer.clip_grad_norm)
        if not self.finite.passes(self.progress, parts, parameters, norm):
            return
        self.watch.looks.before_update()
        if run.scaler is not None:
            self.device.step(optimizer)
        else:
            optimizer.step()
        if run.ema is not None:
            run.ema.update()

    def after_epoch(self, stage: Stage) -> Iterator[Record]:
        """Evaluate and save where the spec says so, and at the end of the run."""
        run, progress, trainer = self.run, self.progress, self.run.spec.trainer
        yield from self.bad_samples.take()
        ended = progress.stage_step >= stage.plan.steps
        whole_epoch = progress.batch >= len(run.train_loader)
        over = ended and progress.stage == len(run.stages) - 1
        number = progress.epoch + 1
        due = whole_epoch and comes_due(run, number, trainer.test_freq)
        if over or due:
            yield from self.evaluate(stage)
            yield from self.watch.evaluated(over=over)
        if due:
            stage.rate.evaluated(rising(self.primary, progress.last))
        # A run that ends in mid-epoch keeps its place: made longer, it goes on with the same epoch.
        if whole_epoch or (ended and not over):
            progress.epoch, progress.batch = number, 0
        progress.over = over
        if ended and not over:
            # No stop here: a state between two stages would have the optimizer of the old one.
            progress.stage, progress.stage_step = progress.stage + 1, 0
            return
        if over or (whole_epoch and comes_due(run, number, trainer.save_freq)):
            yield self.save(stage)
        if over:
            yield from self.watch.over()
        if stop := self.consensus.agreed(self.interrupts.signal_number or 0):
            yield from self.leave(stage, stop)

    def evaluate(self, stage: Stage) -> Iterator[Record]:
        """Measure the student (its average where there is one), and save its weights where it is the best so far."""
        run, progress = self.run, self.progress
        began = time.perf_counter()
        messages: list[str] = []
        # Each process has normalised by its own batches; what is measured and kept is the first's.
        run.processes.share(run.deployed.buffers())
        if run.ema is not None:
            run.processes.share(run.ema.buffers.values())
        with run.ema.in_place() if run.ema is not None else nullcontext():
            with evaluation_mode(run.deployed), self.watch.looks.evaluation():
                metrics = self.measured(stage, messages)
                metrics = {**metrics, **probe_where_due(run, progress, messages, self.stopped)}
            stop = self.consensus.agreed(self.interrupts.signal_number or 0)
            primary = self.primary_among(metrics)
            # A probe may leave this evaluation out.
            counts = not stop and (run.probe is None or primary in metrics)
            best = counts and (not progress.best or self.is_better(metrics, progress.best))
            exported = self.exported() if best else None
        if stop:
            yield from self.leave(stage, stop)
        yield from warnings(messages)
        progress.last = metrics
        if exported is not None:
            progress.best, progress.best_step = metrics, progress.step
            if run.processes.speaks:
                run.folder.check_claim()
                save_student(run, run.folder.best_student, exported, progress, metrics)
        yield Evaluation(
            step=progress.step,
            epoch=progress.epoch + (progress.batch >= len(run.train_loader)),
            network="student",
            metrics=metrics,
            primary=primary,
            best=best,
            seconds=time.perf_counter() - began,
        )

    def stopped(self) -> bool:
        """Whether a signal has come to this process."""
        return self.interrupts.signal_number is not None

    def measured(self, stage: Stage, messages: list[str]) -> dict[str, float]:
        """The student's metrics: against labels, or without them by what it has learnt of its teachers."""
        run, progress = self.run, self.progress

        if not self.without_labels:
            return evaluate(
                run.deployed,
                run.test_loader,
                run.task,
                run.processes,
                autocast=run.autocast,
                stop=self.stopped,
                name="the student",
                messages=messages,
            )
        with run.whole_test_loader() as loader:
            metrics = measure_mimicry(
                run.joined,
                run.teachers,
                loader,
                run.task,
                run.processes,
                agrees=() if progress.features_only else with_heads(run.joined, run.teachers),
                seed=run.spec.runtime.random_seed,
                autocast=run.autocast,
                step_info=step_info_of(progress, len(run.train_loader)),
                stop=self.stopped,
            )
        require(run.joined, run.teachers, stage.plan.active.jobs, stage.plan.active.task_loss)
        return metrics

    @property
    def without_labels(self) -> bool:
        """Whether the student is measured by what it learns of its teachers: no labels, or no trained head."""
        return self.progress.features_only or not self.run.tests_labels

    def primary_among(self, metrics: Mapping[str, float]) -> str:
        """The metric that decides which student is the best."""
        if not self.without_labels:
            return self.run.task.primary
        return LINEAR if self.run.probe is not None else primary_of(metrics)

    def is_better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether the student of these metrics is better than that of others."""
        if self.without_labels and self.run.probe is None:
            return has_learnt_more(new, old)
        primary = self.primary_among(new)
        return primary not in old or better(primary, new, old)

    @property
    def primary(self) -> str:
        """The metric that decides, as of the last evaluation."""
        return self.primary_among(self.progress.last)

    def exported(self) -> dict[str, Tensor]:
        """Copies of the weights in the student's file: an average is in place only for a while."""
        state = self.run.deployed.exported_state()
        copies: dict[str, Tensor] = whole({name: value.detach().clone() for name, value in state.items()})
        return copies

    def save(self, stage: Stage) -> Saved:
        """Write a checkpoint; every process waits for it."""
        run, progress = self.run, self.progress
        flush_all(run.sources, run.processes)
        progress.watch = self.watch.state()
        state = run_state(run, progress, stage.optimizer, stage.rate)
        path = run.folder.checkpoints
        if run.processes.speaks:
            run.folder.check_claim()
            # What has been told by now must not be missing after a power cut that the checkpoint outlives.
            flush_to_disk(run.folder.metrics)
            keep = 1 if run.spec.trainer.only_save_latest else run.spec.trainer.keep_checkpoints
            with saving():
                path = save_checkpoint(path, progress.step, state, keep=keep, best=progress.best_step)
        self.saved_at = time.perf_counter()
        run.processes.wait()
        return Saved(step=progress.step, path=path)

    def save_is_due(self) -> bool:
        """Whether `save_every_minutes` have passed on this process; the first one's clock decides."""
        minutes, freq = self.run.spec.trainer.save_every_minutes, self.run.spec.trainer.log_freq
        if minutes is None or self.progress.step % freq or not self.run.processes.speaks:
            return False
        return time.perf_counter() - self.saved_at >= 60.0 * minutes

    def leave(self, stage: Stage, number: int) -> Iterator[Record]:
        """Save, and stop after a signal that came to any process."""
        self.interrupts.signal_number = number
        yield from self.flush()
        yield from self.bad_samples.take()
        yield self.save(stage)
        command = self.run.options.again or f"kdcli train {self.run.parsed.source} --resume"
        raise saved_at(number, self.progress.step, command)

    def finish(self, started: float) -> Iterator[Record]:
        """Measure the teachers, save the student, close the run."""
        run, progress = self.run, self.progress
        yield from self.device.notices(over=True)
        for name, teacher in run.teachers.items():
            if name in progress.teachers:
                with evaluation_mode(teacher.net):
                    progress.teachers[name] = evaluate(
                        teacher.outputs,
                        run.test_loader,
                        run.task,
                        run.processes,
                        autocast=teacher.autocast,
                        name=name,
                    )
        finished = Finished(
            step=progress.step,
            seconds=time.perf_counter() - started,
            run_dir=run.folder.root,
            student_path=run.folder.student,
            primary=self.primary,
            last=progress.last,
            best=progress.best,
            teachers=with_probe(progress.teachers, progress),
        )
        with run.ema.in_place() if run.ema is not None else nullcontext():
            exported = self.exported()
        if run.processes.speaks:
            run.folder.check_claim()
            save_student(run, run.folder.student, exported, progress, progress.last)
            run.folder.close(finished)
        yield finished


LoopType = Callable[[Run, Interrupts, GuardResult, Progress], TrainLoop]
