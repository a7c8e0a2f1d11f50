"""The loop: from a built run to records, step by step; it prints nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdcli.distill.mimickers.mimicker import Clock, Mimicker
from kdcli.distill.trainee import names_in_force, total_of
from kdcli.engine.checkpoint import save_checkpoint
from kdcli.engine.distributed import to_device
from kdcli.engine.evaluate import evaluate, evaluation_mode
from kdcli.engine.export import save_student
from kdcli.engine.folder import environment, write_facts
from kdcli.engine.guard import prove_losses, prove_teachers
from kdcli.engine.interrupts import Interrupts, listening
from kdcli.engine.losslog import LossLog
from kdcli.engine.numbers import FiniteCheck
from kdcli.engine.optim import LearningRate, build_optimizer
from kdcli.engine.records import Evaluation, Finished, Notice, Plan, Record, Saved
from kdcli.engine.resume import resume
from kdcli.engine.run import Run
from kdcli.engine.stages import StagePlan, matches
from kdcli.engine.state import Progress, restore_generators, run_state
from kdcli.engine.wiring import require
from kdcli.errors import Diagnostic, Interrupted


def train(run: Run) -> Iterator[Record]:
    """Everything that happens in a run, in order; ends with Finished.

    Raises RunError where the run has to stop, Interrupted after a signal (its state is saved then).
    """
    with listening() as interrupts:
        yield from _Session(run, interrupts).records()


class _Session:
    """One process's pass through a run."""

    def __init__(self, run: Run, interrupts: Interrupts) -> None:
        self.run = run
        self.interrupts = interrupts
        self.progress = Progress()
        self.own = {name: p.requires_grad for name, p in run.trainee.named_parameters()}
        self.started = time.perf_counter()
        self.saved_at = self.started
        self.model: nn.Module = run.trainee
        self.in_force: frozenset[str] = frozenset()
        self.running: list[str] = []
        self.finite = FiniteCheck(run)
        self.log = LossLog(run)

    def records(self) -> Iterator[Record]:
        run = self.run
        for message in run.notices:
            yield Notice(message=message)
        self.progress.teachers = prove_teachers(run)
        self.reach = prove_losses(run)
        yield from self.prepare()
        torch.manual_seed(run.spec.runtime.random_seed + run.processes.rank)
        state, notices = resume(run)
        yield from notices
        if state is not None:
            self.progress = Progress(**state["progress"])
            run.trainee.load_state_dict(state["trainee"])
            if run.ema is not None:
                run.ema.load_state_dict(state["ema"])
        elif run.ema is not None:
            run.ema.restart()
        if run.processes.speaks:
            facts = environment(str(run.processes.device), run.processes.world_size)
            write_facts(
                run.folder, given=run.parsed.text, resolved=run.parsed.resolved_yaml(), environment=facts
            )
        for index in range(self.progress.stage, len(run.stages)):
            yield from self.stage(index, state)
            state = None
        yield from self.finish()

    def prepare(self) -> Iterator[Record]:
        """The pass over the training data that some methods ask for."""
        run = self.run
        asking = [name for name, needs in run.wiring.needs.items() if needs.prepare]
        if not asking:
            return
        yield Notice(message=f"one pass over the training data for {', '.join(asking)}")
        running = require(run.wiring, run.teachers, frozenset(asking), False)
        for batch in run.train_loader.batches(0):
            batch = to_device(dict(batch), run.processes.device)
            views = {name: run.teachers[name].view(batch) for name in running}
            for name in asking:
                mimicker = run.trainee.mimickers[name]
                assert isinstance(mimicker, Mimicker)
                mimicker.prepare(views, batch)
        for name in asking:
            mimicker = run.trainee.mimickers[name]
            assert isinstance(mimicker, Mimicker)
            mimicker.prepared()

    def stage(self, index: int, state: dict[str, Any] | None) -> Iterator[Record]:
        """One stage from its first step, or from where the state was taken."""
        run, plan = self.run, self.run.stages[index]
        run.trainee.force = plan.force
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
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.rate.load_state_dict(state["rate"])
            if run.scaler is not None and state["scaler"] is not None:
                run.scaler.load_state_dict(state["scaler"])
            restore_generators(state["generators"][run.processes.rank])
        else:
            self.progress.stage, self.progress.stage_step = index, 0
        if index == 0 or state is not None:
            yield self.plan()
        self.in_force = frozenset()
        while self.progress.stage == index and self.progress.stage_step < plan.steps:
            yield from self.epoch(plan)

    def release(self, plan: StagePlan) -> list[nn.Parameter]:
        """Let exactly those parameters train that this stage means and that a loss of it reaches."""
        trainee = self.run.trainee
        reached: set[str] = set()
        for name, names in self.reach.items():
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
        for batch in run.train_loader.batches(progress.epoch, progress.batch):
            group.append(batch)
            if len(group) < run.accumulate and progress.batch + len(group) < batches_due:
                continue
            self.step(plan, group)
            group = []
            yield from self.log.due()
            if self.stop_asked():
                yield from self.log.flush()
                yield self.save()
                raise self.interrupted()
            if progress.stage_step >= plan.steps:
                break
            if self.save_is_due():
                yield from self.log.flush()
                yield self.save()
        yield from self.log.flush()
        whole = progress.batch >= batches_due
        if whole:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        yield from self.after_epoch(plan, whole)

    def step(self, plan: StagePlan, group: list[Mapping[str, Any]]) -> None:
        """One optimizer step over a group of batches."""
        run, progress = self.run, self.progress
        clock = Clock(
            step=progress.step,
            stage_step=progress.stage_step,
            epoch=progress.epoch + progress.batch / len(run.train_loader),
        )
        self.wrap(clock)
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[dict[str, Tensor]] = []
        images = 0
        for number, batch in enumerate(group):
            batch = to_device(dict(batch), run.processes.device)
            images += len(batch["image"])
            parts.append(self.backward(batch, clock, last=number == len(group) - 1, share=1.0 / len(group)))
        self.update(parts, group)
        progress.step += 1
        progress.stage_step += 1
        progress.batch += len(group)
        self.log.add(progress, parts, self.rate.now, images, plan.name)
        self.rate.advance(progress.last.get(run.task.primary))

    def backward(self, batch: dict[str, Any], clock: Clock, *, last: bool, share: float) -> dict[str, Tensor]:
        """Forward and backward of one batch; returns the detached parts."""
        run = self.run
        # Teachers first: their transient peak must not stack on the student's saved activations.
        views = {name: run.teachers[name].view(batch) for name in self.running}
        quiet = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            with run.autocast or nullcontext():
                losses = self.model(batch, views, clock)
            total = total_of(losses) * share
            (run.scaler.scale(total) if run.scaler is not None else total).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()}

    def update(self, parts: list[dict[str, Tensor]], group: list[Mapping[str, Any]]) -> None:
        """Clip, check, step, average."""
        run = self.run
        parameters = [p for group_ in self.optimizer.param_groups for p in group_["params"]]
        if run.scaler is not None:
            run.scaler.unscale_(self.optimizer)
        if run.spec.trainer.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, run.spec.trainer.clip_grad_norm)
        if not self.finite.passes(self.progress, parts, parameters, group):
            return
        if run.scaler is not None:
            run.scaler.step(self.optimizer)
            run.scaler.update()
        else:
            self.optimizer.step()
        if run.ema is not None:
            run.ema.update()

    def wrap(self, clock: Clock) -> None:
        """Keep DDP's set of parameters equal to what the losses in force reach."""
        run = self.run
        if run.processes.world_size == 1:
            return
        in_force = names_in_force(run.trainee, clock, self.reach)
        if in_force == self.in_force:
            return
        self.in_force = in_force
        reached = frozenset[str]().union(*(self.reach[name] for name in in_force))
        mine = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter in run.trainee.named_parameters():
            parameter.requires_grad_(id(parameter) in mine and name in reached)
        ignored = [f"mimickers.{n}" for n, _ in run.trainee.mimickers.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(run.trainee, ignored)
        device = run.processes.device
        self.model = DistributedDataParallel(
            run.trainee,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def after_epoch(self, plan: StagePlan, whole: bool) -> Iterator[Record]:
        """Evaluate and save where the spec says so, and at the very end."""
        run, progress, trainer = self.run, self.progress, self.run.spec.trainer
        ended = progress.stage_step >= plan.steps
        over = ended and progress.stage == len(run.stages) - 1
        if over or (whole and progress.epoch % trainer.test_freq == 0):
            yield from self.evaluate()
        if ended and not over:
            progress.stage, progress.stage_step = progress.stage + 1, 0
            if not whole:
                progress.epoch, progress.batch = progress.epoch + 1, 0
        elif over or (whole and progress.epoch % trainer.save_freq == 0):
            yield self.save()

    def evaluate(self) -> Iterator[Record]:
        """Measure the student (its average where there is one), keep it where it is the best so far."""
        run, progress = self.run, self.progress
        began = time.perf_counter()
        with run.ema.in_place() if run.ema is not None else nullcontext():
            with evaluation_mode(run.student):
                metrics = evaluate(
                    run.student, run.test_loader, run.task, run.processes, autocast=run.autocast
                )
            primary = run.task.primary
            best = not progress.best or metrics[primary] > progress.best[primary]
            progress.last = metrics
            if best:
                progress.best, progress.best_step = metrics, progress.step
                if run.processes.speaks:
                    save_student(run, run.folder.best_student, progress, metrics)
        yield Evaluation(
            step=progress.step,
            epoch=progress.epoch,
            network="student",
            metrics=metrics,
            primary=primary,
            best=best,
            seconds=time.perf_counter() - began,
        )

    def save(self) -> Saved:
        """A checkpoint on disk; every process waits for it."""
        run, progress = self.run, self.progress
        state = run_state(run, progress, self.optimizer, self.rate)
        path = run.folder.checkpoints
        if run.processes.speaks:
            keep = 1 if run.spec.trainer.only_save_latest else run.spec.trainer.keep_checkpoints
            path = save_checkpoint(run.folder.checkpoints, progress.step, state, keep=keep)
        self.saved_at = time.perf_counter()
        run.processes.wait()
        return Saved(step=progress.step, path=path)

    def save_is_due(self) -> bool:
        """Whether `save_every_minutes` have passed; rank 0's clock decides."""
        minutes = self.run.spec.trainer.save_every_minutes
        if minutes is None or self.progress.step % self.run.spec.trainer.log_freq:
            return False
        return bool(self.run.processes.broadcast(time.perf_counter() - self.saved_at >= 60.0 * minutes))

    def stop_asked(self) -> bool:
        """Whether a signal came to any process: all of them stop at the same step."""
        return self.run.processes.any(self.interrupts.signal_number is not None)

    def interrupted(self) -> Interrupted:
        """What the user is told after a signal."""
        number = self.interrupts.signal_number or signal.SIGTERM
        return Interrupted(
            Diagnostic(
                code="KD714",
                severity="warning",
                message=f"stopped by {signal.Signals(number).name} at step {self.progress.step}; everything is saved",
                help=f"continue with `kdcli train {self.run.parsed.source} --resume`",
            ),
            number,
        )

    def plan(self) -> Plan:
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
            samples=run.facts.num_samples or 0,
            batch_size=run.train_loader.batch_size,
            steps_per_epoch=run.steps_per_epoch,
            total_steps=run.total_steps,
            effective_lr=self.rate.target,
            resumed_step=self.progress.step,
        )

    def finish(self) -> Iterator[Record]:
        """Measure the teachers, write the student, close the run."""
        run, progress = self.run, self.progress
        for name, teacher in run.teachers.items():
            if name in progress.teachers:
                with evaluation_mode(teacher.net):
                    progress.teachers[name] = evaluate(
                        lambda batch, teacher=teacher: teacher.net(teacher.pixels_of(batch)),
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
        if run.processes.speaks:
            with run.ema.in_place() if run.ema is not None else nullcontext():
                save_student(run, run.folder.student, progress, progress.last)
            run.folder.close(finished)
        yield finished
