"""The loop: from a built run to records, step by step; it prints nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.mimickers.mimicker import Clock
from kdcli.distill.trainee import total_of
from kdcli.parallel.distributed import to_device
from kdcli.parallel.interrupts import Interrupts, listening, saved_at
from kdcli.parallel.sharding import whole
from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Saved, warnings
from kdcli.training.bad_samples import BadSamples
from kdcli.training.caches import flush_all
from kdcli.training.checkpoint import save_checkpoint, to_disk
from kdcli.training.compiling import compile_networks
from kdcli.training.consensus import Agreement
from kdcli.training.ddp import Wrapping
from kdcli.training.evaluate import evaluate, evaluation_mode
from kdcli.training.export import save_student
from kdcli.training.guard import prove_losses, prove_teachers
from kdcli.training.inheritance import inherited
from kdcli.training.loss_records import LossLog
from kdcli.training.nonfinite import FiniteCheck
from kdcli.training.optim import LearningRate, build_optimizer
from kdcli.training.prepare import prepare
from kdcli.training.probabilities import doubtful_logits
from kdcli.training.resume import Resumed, resume
from kdcli.training.run import Run
from kdcli.training.run_facts import write_facts
from kdcli.training.stages import StagePlan, matches
from kdcli.training.state import (
    Progress,
    fitting,
    restore_average,
    restore_optimizer,
    restore_trainee,
    run_state,
)
from kdcli.training.wiring import require


def train(run: Run, interrupts: Interrupts | None = None) -> Iterator[Record]:
    """Everything that happens in a run, in order; ends with Finished.

    interrupts: of a caller that listens already. Raises RunError where the run has to stop, Interrupted
    after a signal (its state is saved then).
    """
    with nullcontext(interrupts) if interrupts is not None else listening() as heard:
        yield from Session(run, heard).records()


class Session:
    """One process's pass through a run."""

    def __init__(self, run: Run, interrupts: Interrupts) -> None:
        self.run = run
        self.interrupts = interrupts
        self.progress = Progress()
        self.own = {name: p.requires_grad for name, p in run.trainee.named_parameters()}
        self.started = time.perf_counter()
        self.saved_at = self.started
        self.running: list[str] = []
        self.agreement = Agreement(run.processes)
        self.finite = FiniteCheck(run)
        self.log = LossLog(run)

    def records(self) -> Iterator[Record]:
        run = self.run
        for message in run.notices:
            yield Notice(message=message)
        resumed, notices = resume(run)
        yield from notices
        measured, told = prove_teachers(run)
        yield from (*told, *doubtful_logits(run))
        self.proven = prove_losses(run)
        yield from self.proven.notices()
        yield from prepare(run)
        yield from compile_networks(run)
        torch.manual_seed(run.spec.runtime.random_seed + run.processes.rank)
        if resumed is not None:
            self.progress = resumed.progress
            with fitting(resumed.path):
                restore_trainee(run, resumed.state)
        self.progress.teachers = measured
        self.wrapping = Wrapping(run, self.proven.reach)
        with nullcontext() if resumed is None else fitting(resumed.path):
            restore_average(run, None if resumed is None else resumed.state)
        self.bad_samples = BadSamples(run, self.progress)
        if run.processes.speaks:
            write_facts(run)
        with self.interrupts.noting():
            for index in range(self.progress.stage, len(run.stages)):
                yield from self.stage(index, resumed)
                resumed = None
        yield from self.finish()

    def stage(self, index: int, resumed: Resumed | None) -> Iterator[Record]:
        """One stage from its first step, or from where the state was taken."""
        run, plan = self.run, self.run.stages[index]
        run.trainee.force = plan.force
        if resumed is None:
            yield from inherited(run, index)
        self.running = require(run.wiring, run.teachers, plan.force.jobs, plan.force.task_loss)
        parameters = self.release(plan)
        self.optimizer = build_optimizer(plan.optimizer, parameters, plan.optimizer_path)
        self.rate = LearningRate(
            self.optimizer,
            plan.lr_scheduler,
            batch_size=run.train_loader.batch_size * run.accumulate,
            world_size=run.processes.world_size,
            steps_per_epoch=run.steps_per_epoch,
            path=plan.lr_path,
        )
        if resumed is not None:
            with fitting(resumed.path):
                restore_optimizer(run, resumed.state, self.optimizer, self.rate, changed=resumed.new_schedule)
        else:
            self.progress.stage, self.progress.stage_step = index, 0
        if index == 0 or resumed is not None:
            yield self.plan(before_evaluation=resumed is not None and self.at_end(plan))
        self.wrapping.new_stage()
        while self.progress.stage == index and not self.progress.over:
            yield from self.epoch(plan)

    def at_end(self, plan: StagePlan) -> bool:
        """Whether the last step of an epoch or of a stage is done, and not yet what follows it."""
        progress = self.progress
        ended = progress.stage_step >= plan.steps or progress.batch >= len(self.run.train_loader)
        return ended and not progress.over

    def release(self, plan: StagePlan) -> list[nn.Parameter]:
        """Let exactly those parameters train that this stage means and that a loss of it reaches."""
        trainee = self.run.trainee
        reached: set[str] = set()
        for name, names in self.proven.reach.items():
            job = name.partition(".")[0]
            if plan.force.task_loss if job == "task" else plan.force.jobs is None or job in plan.force.jobs:
                reached |= names
        parameters = []
        for name, parameter in trainee.named_parameters():
            meant = (
                plan.train is None
                or not name.startswith("student.")
                or matches(name.removeprefix("student."), plan.train)
            )
            parameter.requires_grad_(self.own[name] and meant and name in reached)
            if parameter.requires_grad:
                parameters.append(parameter)
        return parameters

    def epoch(self, plan: StagePlan) -> Iterator[Record]:
        """The rest of the epoch under way, or of the stage if that ends first."""
        run, progress = self.run, self.progress
        run.trainee.train()
        batches_due = len(run.train_loader)
        group: list[Mapping[str, Any]] = []
        # Resumed after the last step of an epoch or stage: only what follows it is left to do.
        first = progress.batch if progress.stage_step < plan.steps else batches_due
        with closing(run.train_loader.batches(progress.epoch, first)) as batches:  # type: ignore[type-var]
            for batch in batches:
                group.append(batch)
                if len(group) < run.accumulate and progress.batch + len(group) < batches_due:
                    continue
                self.step(plan, group)
                group = []
                yield from self.finite.told()
                if progress.step % run.spec.trainer.log_freq == 0:
                    yield from self.flush()
                stop, save = self.agreement.settle(self.interrupts.signal_number or 0, self.save_is_due())
                if stop:
                    yield from self.leave(stop)
                if progress.stage_step >= plan.steps:
                    break
                if save:
                    yield from self.flush()
                    yield self.save()
        yield from self.flush()
        flush_all(run.sources, run.processes)
        yield from self.after_epoch(plan)

    def flush(self) -> Iterator[Record]:
        """Read from the device what waits there: the losses so far, and whether all of them were finite."""
        yield from self.log.flush()
        self.finite.read()

    def step(self, plan: StagePlan, group: list[Mapping[str, Any]]) -> None:
        """One optimizer step over a group of batches."""
        run, progress = self.run, self.progress
        clock = Clock(
            step=progress.step,
            stage_step=progress.stage_step,
            epoch=progress.epoch + progress.batch / len(run.train_loader),
        )
        self.wrapping.follow(clock, self.optimizer)
        self.finite.begin(progress, group)
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[dict[str, Tensor]] = []
        images = 0
        for number, batch in enumerate(group):
            batch = to_device(dict(batch), run.processes.device)
            images += len(batch["image"])
            parts.append(self.backward(batch, clock, last=number == len(group) - 1, share=1.0 / len(group)))
        self.update(parts)
        progress.step += 1
        progress.stage_step += 1
        progress.batch += len(group)
        self.log.add(progress, parts, self.rate.now, images, plan.name)
        self.rate.advance(progress.last.get(run.task.primary))

    def backward(self, batch: dict[str, Any], clock: Clock, *, last: bool, share: float) -> dict[str, Tensor]:
        """Forward and backward of one batch; returns the detached parts."""
        run = self.run
        # Teachers first: their transient peak must not stack on the student's saved activations.
        views = {name: run.sources[name].view(batch) for name in self.running}
        with self.wrapping.gradients(last=last):
            with run.autocast or nullcontext():
                losses = self.wrapping.model(batch, views, clock)
            total = total_of(losses) * share
            (run.scaler.scale(total) if run.scaler is not None else total).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()}

    def update(self, parts: list[dict[str, Tensor]]) -> None:
        """Clip, check, step, average."""
        run = self.run
        parameters = [p for group_ in self.optimizer.param_groups for p in group_["params"]]
        if run.scaler is not None:
            run.scaler.unscale_(self.optimizer)
        if run.spec.trainer.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, run.spec.trainer.clip_grad_norm)
        if not self.finite.passes(self.progress, parts, parameters):
            return
        if run.scaler is not None:
            run.scaler.step(self.optimizer)
            run.scaler.update()
        else:
            self.optimizer.step()
        if run.ema is not None:
            run.ema.update()

    def after_epoch(self, plan: StagePlan) -> Iterator[Record]:
        """Evaluate and save where the spec says so, and at the very end."""
        run, progress, trainer = self.run, self.progress, self.run.spec.trainer
        yield from self.bad_samples.take()
        ended = progress.stage_step >= plan.steps
        whole_epoch = progress.batch >= len(run.train_loader)
        over = ended and progress.stage == len(run.stages) - 1
        number = progress.epoch + 1
        if over or (whole_epoch and number % trainer.test_freq == 0):
            yield from self.evaluate()
        if whole_epoch or ended:
            progress.epoch, progress.batch = number, 0
        progress.over = over
        if ended and not over:
            # No stop here: a state between two stages would have the optimizer of the old one.
            progress.stage, progress.stage_step = progress.stage + 1, 0
            return
        if over or (whole_epoch and number % trainer.save_freq == 0):
            yield self.save()
        if stop := self.agreement.agreed(self.interrupts.signal_number or 0):
            yield from self.leave(stop)

    def evaluate(self) -> Iterator[Record]:
        """Measure the student (its average where there is one), keep it where it is the best so far."""
        run, progress = self.run, self.progress
        began = time.perf_counter()
        told: list[str] = []
        # Each process has normalised by its own batches; what is measured and kept is the first's.
        run.processes.share(run.deployed.buffers())
        if run.ema is not None:
            run.processes.share(run.ema.buffers.values())
        with run.ema.in_place() if run.ema is not None else nullcontext():
            with evaluation_mode(run.deployed):
                metrics = evaluate(
                    run.deployed,
                    run.test_loader,
                    run.task,
                    run.processes,
                    autocast=run.autocast,
                    stop=lambda: self.interrupts.signal_number is not None,
                    name="the student",
                    told=told,
                )
            stop = self.agreement.agreed(self.interrupts.signal_number or 0)
            primary = run.task.primary
            best = not stop and (not progress.best or metrics[primary] > progress.best[primary])
            exported = self.exported() if best else None
        if stop:
            yield from self.leave(stop)
        yield from warnings(told)
        progress.last = metrics
        if exported is not None:
            progress.best, progress.best_step = metrics, progress.step
            if run.processes.speaks:
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

    def exported(self) -> dict[str, Tensor]:
        """What the student's file holds: copies, since an average is in place only for a while."""
        state = self.run.deployed.exported_state()
        copies: dict[str, Tensor] = whole({name: value.detach().clone() for name, value in state.items()})
        return copies

    def save(self) -> Saved:
        """A checkpoint on disk; every process waits for it."""
        run, progress = self.run, self.progress
        flush_all(run.sources, run.processes)
        state = run_state(run, progress, self.optimizer, self.rate)
        path = run.folder.checkpoints
        if run.processes.speaks:
            # What has been told by now must not be missing after a power cut that the checkpoint outlives.
            to_disk(run.folder.metrics)
            keep = 1 if run.spec.trainer.only_save_latest else run.spec.trainer.keep_checkpoints
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

    def leave(self, number: int) -> Iterator[Record]:
        """Save, and stop for a signal that came to any process."""
        self.interrupts.signal_number = number
        yield from self.flush()
        yield from self.bad_samples.take()
        yield self.save()
        command = self.run.options.again or f"kdcli train {self.run.parsed.source} --resume"
        raise saved_at(number, self.progress.step, command)

    def plan(self, *, before_evaluation: bool) -> Plan:
        """The first record."""
        run = self.run
        return Plan(
            name=run.name,
            run_dir=run.folder.root,
            device=str(run.processes.device),
            processes=run.processes.world_size,
            precision=run.precision,
            networks=run.networks,
            pairs=run.wiring.pairs,
            pulls=self.proven.pulls,
            samples=run.facts.num_samples or 0,
            batch_size=run.train_loader.batch_size,
            steps_per_epoch=run.steps_per_epoch,
            total_steps=run.total_steps,
            effective_lr=self.rate.target,
            resumed_step=self.progress.step,
            resumed_before_evaluation=before_evaluation,
        )

    def finish(self) -> Iterator[Record]:
        """Measure the teachers, write the student, close the run."""
        run, progress = self.run, self.progress
        for name, teacher in run.teachers.items():
            if name in progress.teachers:
                with evaluation_mode(teacher.net):
                    progress.teachers[name] = evaluate(
                        teacher.outputs,
                        run.test_loader,
                        run.task,
                        run.processes,
                        autocast=teacher.autocast,
                    )
        finished = Finished(
            step=progress.step,
            seconds=time.perf_counter() - self.started,
            run_dir=run.folder.root,
            student_path=run.folder.student,
            primary=run.task.primary,
            last=progress.last,
            best=progress.best,
            teachers=progress.teachers,
        )
        with run.ema.in_place() if run.ema is not None else nullcontext():
            exported = self.exported()
        if run.processes.speaks:
            save_student(run, run.folder.student, exported, progress, progress.last)
            run.folder.close(finished)
        yield finished
