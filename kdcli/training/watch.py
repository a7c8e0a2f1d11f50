"""The watch: a run that goes wrong says so, each thing once, as an Alarm with numbers and a remedy.

It reads the losses of every step, and looks closer at the first step of a stage and at the steps that end at a log
point: how far weights moved, how outputs and the last feature differ between images, how hard each loss pulls. What
a look finds stays on the device until the losses are read. Evaluations are looked at too. Only what the stage trains
is watched. The watch draws nothing at random and changes nothing: with and without it every bit is the same.
The rules are in `alarms.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.trainee import DeployedStudent, span_of, term_weight
from kdcli.errors import RunError
from kdcli.records import Alarm, Step
from kdcli.spec.schema import Job, LossSpec
from kdcli.training import alarms
from kdcli.training.alarms import IN_A_ROW, RULES, SETTLED, WINDOW, Memory
from kdcli.training.checkpoint import Progress, checkpoints
from kdcli.training.guard import GuardResult
from kdcli.training.looks import Look, LookRead, Looks, sampled, sums_of_squares
from kdcli.training.optim import LearningRate
from kdcli.training.run import Run, StagePlan


class Watch:
    """Looks at a run from inside the training loop; `judge` gives the alarms that are due.

    guard: which weights each loss reaches, and what a constant answer costs.
    """

    def __init__(self, run: Run, guard: GuardResult, progress: Progress) -> None:
        self.run, self.reach, self.progress = run, guard.reach, progress
        self.constants = guard.constants
        self.memory = Memory.of(progress.watch)
        self.looks = Looks(run)
        self.due: list[Alarm] = []
        self.plan: StagePlan | None = None
        self._factors: dict[str, tuple[Job, LossSpec] | None] = {}
        ema, task = run.ema, run.task.uninformed
        self.held = 0.0 if ema is None else alarms.start_held(ema.spec, run.total_steps)
        self.floor = None if task is None else self._guessing(torch.ones(run.facts.num_classes or 1), False)

    # the stage

    def new_stage(self, plan: StagePlan, parameters: Sequence[nn.Parameter], rate: LearningRate) -> None:
        """Begin a stage, or go on in one that the checkpoint was taken in."""
        self.plan, self.rate = plan, rate
        self.looks.parameters = list(parameters)
        self.first_step = self.progress.step - self.progress.stage_step
        if self.memory.stage != self.progress.stage:
            self.memory = Memory(told=self.memory.told, stage=self.progress.stage)
        self.targets = torch.tensor(self.memory.targets, dtype=torch.float64)
        self.labels: list[Tensor] = []
        self.warm_until = 0 if rate.spec is None else rate.spec.warmup_iter

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        self._count_labels()
        self.memory.targets = self.targets.tolist()
        return asdict(self.memory)

    def trains_outputs(self, plan: StagePlan) -> bool:
        """Whether a stage trains what the student answers: by the task's loss, or one on logits or on their layer."""
        if plan.active.task_loss:
            return True
        if isinstance(self.run.deployed, DeployedStudent):
            return False
        layer = None if self.looks.seen.path is None else f"student.{self.looks.seen.path}."
        for name, names in self.reach.items():
            job = name.partition(".")[0]
            if job == "task" or (plan.active.jobs is not None and job not in plan.active.jobs):
                continue
            spec = self.run.trainee.specs.get(job)
            if spec is not None and "logits" in spec.student.mimic_name:
                return True
            if layer is not None and any(one.startswith(layer) for one in names):
                return True
        return False

    # a step

    def begin(self, group: Sequence[Mapping[str, Any]]) -> None:
        """A step begins; group: its batches, still where the loader made them."""
        self.looks.forget()
        progress, task = self.progress, self.run.task.uninformed
        if task is not None and self.plan is not None and self.plan.active.task_loss:
            for batch in group:
                self.memory.mixed |= "mixed_labels" in batch
                labels = task.labels(batch)
                if labels is not None and len(self.targets):
                    # Copies, as what gave the batch may use its memory again. The first ones are counted at once, so
                    # that labels that can't be counted fail there.
                    self.labels.append(labels.clone())
                    continue
                self._count_labels()
                self._count(task.targets(batch))
            if len(self.labels) >= WINDOW:
                self._count_labels()
        step = progress.step + 1
        if step % self.run.spec.trainer.log_freq == 0 or progress.stage_step == 0:
            self.looks.begin(Look(step, progress.stage_step + 1, self.rate.now))

    def _count_labels(self) -> None:
        """Count the labels of the batches since the last call."""
        labels, self.labels = self.labels, []
        task = self.run.task.uninformed
        if labels and task is not None:
            self._count(task.targets({"labels": torch.cat(labels)}))

    def _count(self, targets: Tensor | None) -> None:
        """Add up targets; there may be more classes in one batch than in another."""
        if targets is not None:
            self.targets = _padded(self.targets, len(targets))
            self.targets[: len(targets)].add_(targets)

    # an evaluation

    def evaluated(self, *, over: bool) -> Iterator[Alarm]:
        """Alarms of what an evaluation showed; over: it is the run's last."""
        plan = self.plan
        assert plan is not None
        found, self.looks.evaluated = self.looks.evaluated, None
        settled = over or self._settled(self.progress.stage_step, self.rate.now)
        if found is not None and settled and self.trains_outputs(plan):
            if alarms.all_alike(found.spread):
                self._alike(self.progress.step, found.spread, at_evaluation=True)
            if alarms.mostly_dead(found.alive):
                self._dead(self.progress.step, found.alive, at_evaluation=True)
        yield from self._told()

    def over(self) -> Iterator[Alarm]:
        """Alarms of a run that has taken its last step and is measured and saved."""
        run, progress = self.run, self.progress
        if run.ema is not None:
            average = dict(run.ema.parameters)
            live = [sampled(p) for name, p in run.ema.net.named_parameters() if name in average]
            kept = [sampled(average[name]) for name, _ in run.ema.net.named_parameters() if name in average]
            apart = sums_of_squares(torch._foreach_sub(live, kept)).sum()
            gap, size = run.processes.sum(torch.stack([apart, sums_of_squares(live).sum()])).tolist()
            distance = math.sqrt(gap / size) if size > 0 else 0.0
            if alarms.lags(distance):
                what = (
                    "the moving average, which is measured and exported, ends away from the weights that were trained: "
                    f"by {distance:.2g} times their norm"
                )
                self._alarm("KD787", progress.step, what, {"distance": distance}, at_evaluation=True)
        classes = run.facts.num_classes or 0
        samples = run.test_loader.facts.num_samples or 0
        trained = any(self.trains_outputs(plan) for plan in run.stages) or isinstance(
            run.deployed, DeployedStudent
        )
        if (
            trained
            and run.task.by_chance in progress.last
            and run.task.near_chance(progress.last, classes, samples)
        ):
            metric, chance = run.task.by_chance, run.task.chance(classes)
            self._alarm(
                "KD788",
                progress.step,
                f"the student ends with {metric} {progress.last[metric]:.1f}; guessing scores {chance:.1f}",
                {metric: progress.last[metric], "guessing": chance},
                at_evaluation=True,
            )
        yield from self._told()

    # judging

    def take(self, record: Step) -> None:
        """Take in the losses of a step, means over the processes."""
        memory = self.memory
        stage_step = record.step - self.first_step
        for name, loss in record.losses.items():
            factor = self._factor(name, stage_step - 1)
            if factor and math.isfinite(loss):
                if stage_step > self.warm_until and name in self.constants:
                    share = min(abs(factor) / self._weight(name), 1.0)
                    memory.felt[name] = memory.felt.get(name, 0.0) + share
                self._against_start(record.step, name, loss / abs(factor))
        task = self.run.task.uninformed
        loss_of_task = None if task is None else record.losses.get(f"task.{task.loss_name}")
        if loss_of_task is None:
            return
        if not memory.epoch:
            memory.epoch, memory.unsettled = [0.0, 0.0, record.lr], False
        memory.epoch[0] += loss_of_task
        memory.epoch[1] += 1
        memory.unsettled |= stage_step <= self.warm_until
        if record.step_in_epoch >= record.steps_per_epoch:
            self._epoch_over(record)

    def judge(self) -> Iterator[Alarm]:
        """The alarms that are due after the losses were read; raises RunError where `on_collapse` says stop."""
        self._average()
        for look, numbers in self.looks.read():
            self._judge(look, numbers)
        yield from self._told()

    def _told(self) -> Iterator[Alarm]:
        due, self.due = self.due, []
        yield from due
        stopping = [alarm for alarm in due if RULES[alarm.code].stops]
        if stopping and self.run.spec.trainer.on_collapse == "stop":
            raise self._stop(stopping[0])

    def _stop(self, alarm: Alarm) -> RunError:
        again = self.run.options.again or f"kdcli train {self.run.parsed.source} --resume"
        kept = checkpoints(self.run.folder.checkpoints)
        go_on = (
            f"the checkpoint {kept[0].name} is whole; to go on from it all the same: {again} trainer.on_collapse=warn"
            if kept
            else "nothing was saved yet; to train all the same: `trainer.on_collapse: warn`"
        )
        what = alarm.message.partition(": ")[2].removesuffix(f"; {alarm.remedy}")
        return RunError.of(alarm.code, what, f"{alarm.remedy}; {go_on}")

    def _judge(self, look: Look, numbers: LookRead) -> None:
        memory, plan = self.memory, self.plan
        assert plan is not None
        settled = self._settled(look.stage_step, look.lr)
        if numbers.change is not None:
            self._updates(look, numbers.change, rising=look.lr > memory.lr * (1 + 1e-9))
        memory.lr = look.lr
        if settled and self.trains_outputs(plan):
            if numbers.spread is not None:
                memory.alike = memory.alike + 1 if alarms.all_alike(numbers.spread) else 0
                if memory.alike == IN_A_ROW:
                    self._alike(look.step, numbers.spread)
            if numbers.alive is not None:
                self._units(look.step, numbers.alive)
        for name, pull in numbers.pulls.items():
            factor = self._factor(name, look.stage_step - 1)
            if factor and math.isfinite(pull):
                self._pull(look.step, name, pull / abs(factor))

    def _settled(self, stage_step: int, lr: float) -> bool:
        """Whether the warm-up is long over, and the lr not rising."""
        return stage_step - self.warm_until >= SETTLED and lr <= self.memory.lr * (1 + 1e-9)

    def _against_start(self, step: int, name: str, loss: float) -> None:
        memory = self.memory
        start = memory.starts.setdefault(name, loss)
        window = memory.windows.setdefault(name, [0.0, 0.0])
        window[0] += loss
        window[1] += 1
        if window[1] < WINDOW:
            return
        mean = window[0] / window[1]
        memory.windows[name] = [0.0, 0.0]
        if name in self.constants:
            self._against_constant(step, name, mean * self._weight(name), self.constants[name])
        of_task = name.startswith("task.")
        limit = alarms.ABOVE if of_task and self.floor is not None else alarms.ABOVE_OTHER
        # Of losses that are one sum, one may begin with nothing: a detector's boxes, while it proposes none.
        group = name.rpartition(".")[0]
        floor = max(value for other, value in memory.starts.items() if other.rpartition(".")[0] == group)
        above = alarms.far_above(start, mean, floor=max(floor, (self.floor or 0.0) * of_task), limit=limit)
        memory.above[name] = memory.above.get(name, 0) + 1 if above else 0
        if memory.above[name] == 2:
            self._alarm(
                "KD780",
                step,
                f"`{name}` is {mean:.3g} over the last {WINDOW} steps; it began with {start:.3g}",
                {"loss": mean, "start": start},
                about=name,
            )

    def _against_constant(self, step: int, name: str, mean: float, constant: float) -> None:
        """Judge the mean loss of a window, at its full weight, against that of a constant answer."""
        memory, plan = self.memory, self.plan
        assert plan is not None
        if name in memory.better:
            return
        if not alarms.no_better_than_constant(mean, constant):
            memory.better.append(name)
            return
        felt = memory.felt.get(name, 0.0)
        known = self._known(name)
        start, end = (0, plan.steps) if known is None else span_of(*known, plan.steps)
        if felt >= alarms.steps_to_learn(end - start):
            self._alarm(
                "KD790",
                step,
                f"`{name}` is {mean:.4g} over the last {WINDOW} steps and was never much below {constant:.4g}, which a "
                "student costs that answers the teacher's mean at every place of every image: it has taught no more",
                {"loss": mean, "constant": constant},
                about=name,
            )

    def _weight(self, name: str) -> float:
        """The full weight of a loss's job."""
        known = self._known(name)
        return 1.0 if known is None else abs(known[0].loss_weight)

    def _epoch_over(self, record: Step) -> None:
        """Judge the epochs since the last judgement, once they are long enough."""
        memory = self.memory
        total, count, first_lr = memory.epoch
        rising = record.lr > first_lr * (1 + 1e-9)
        if count < SETTLED and not (memory.unsettled or rising):
            return
        self._count_labels()
        classes = self.run.facts.num_classes or 0
        counts, self.targets = _padded(self.targets, classes), self.targets.new_zeros(0)
        memory.epoch, mixed, memory.mixed = [], memory.mixed, False
        if memory.unsettled or rising:
            return
        guessing = self._guessing(self.run.processes.sum(counts.to(self.run.processes.device)), mixed)
        mean = total / count
        if guessing is not None and alarms.knows_nothing(mean, guessing):
            self._alarm(
                "KD781",
                record.step,
                f"the task's loss is {mean:.4g} over the last {count:.0f} steps; the same answer for every image, by "
                f"how frequent the classes are, gives {guessing:.4g}",
                {"loss": mean, "guessing": guessing},
            )

    def _guessing(self, targets: Tensor, mixed: bool) -> float | None:
        task = self.run.task.uninformed
        return None if task is None else task.value(self.run.student, targets.cpu().double(), mixed=mixed)

    def _updates(self, look: Look, change: float, *, rising: bool) -> None:
        memory = self.memory
        numbers = {"change": change, "lr": look.lr}
        if not alarms.stands_still(change):
            memory.still, memory.moving = 0, memory.moving + 1
        elif look.stage_step > self.warm_until and not rising:
            if not memory.still:
                memory.still_since = look.stage_step - 1
            memory.still += 1
            since = look.stage_step - memory.still_since
            # The end of a schedule: an epoch of it is told, the last steps of a cosine are not.
            long = memory.moving < IN_A_ROW or since >= self.run.steps_per_epoch
            if memory.still >= IN_A_ROW and look.stage_step >= WINDOW and long:
                what = (
                    f"the last {memory.still} updates that were looked at changed the weights by {change:.1g} of their "
                    f"norm; the lr is {look.lr:.3g}"
                )
                self._alarm("KD784", look.step, what, numbers)
        memory.large = memory.large + 1 if change > alarms.OVERSHOT else 0
        if memory.large == 2 or change > alarms.OVERSHOT_FAR:
            what = f"one update changed the weights by {change:.3g} times their norm; the lr is {look.lr:.3g}"
            self._alarm("KD785", look.step, what, numbers)

    def _units(self, step: int, alive: Sequence[float]) -> None:
        """Add up which units were alive; five looks together decide."""
        memory = self.memory
        if len(memory.alive) != len(alive):
            memory.alive, memory.alive_looks = [0.0] * len(alive), 0
        memory.alive = [one + other for one, other in zip(memory.alive, alive, strict=True)]
        memory.alive_looks += 1
        if memory.alive_looks >= 5:
            if alarms.mostly_dead(memory.alive):
                self._dead(step, memory.alive)
            memory.alive, memory.alive_looks = [], 0

    def _pull(self, step: int, name: str, pull: float) -> None:
        before = self.memory.pulls.setdefault(name, [])
        if alarms.drifted(before, pull):
            usual = statistics.median(before)
            self._alarm(
                "KD789",
                step,
                f"the gradient of `{name}` at the layer that it reads is {pull:.3g}; its median so far is {usual:.3g}",
                {"gradient": pull, "median": usual},
                about=name,
            )
        before.append(pull)
        del before[1 : -alarms.HISTORY]

    def _average(self) -> None:
        if self.held > alarms.HELD:
            what = (
                f"after the {self.run.total_steps:,} steps of this run the moving average, which is measured and "
                f"exported, still is to {100 * self.held:.3g} % what the student began with"
            )
            self._alarm("KD786", self.progress.step, what, {"share": self.held}, of_run=True)

    def _alike(self, step: int, spread: float, *, at_evaluation: bool = False) -> None:
        where = "of the test images" if at_evaluation else "of the images of a batch"
        self._alarm(
            "KD782",
            step,
            f"the logits {where} differ by {spread:.2g} (standard deviation): the student answers every image the same",
            {"spread": spread},
            at_evaluation=at_evaluation,
        )

    def _dead(self, step: int, alive: Sequence[float], *, at_evaluation: bool = False) -> None:
        dead = sum(not one for one in alive)
        layer = self.looks.measured.path if at_evaluation else self.looks.seen.path
        self._alarm(
            "KD783",
            step,
            f"{dead:,} of the {len(alive):,} units that `{layer}` reads give every image the same: they are dead",
            {"dead": dead / len(alive)},
            at_evaluation=at_evaluation,
        )

    def _factor(self, name: str, stage_step: int) -> float | None:
        """What a loss was multiplied by at a step, None or 0 where it was out of force."""
        known = self._known(name)
        return 1.0 if known is None else term_weight(*known, stage_step)

    def _known(self, name: str) -> tuple[Job, LossSpec] | None:
        """The job and the spec of a loss; None of the task's."""
        if name not in self._factors:
            job, _, rest = name.partition(".")
            spec = self.run.trainee.specs.get(job)
            losses = {} if spec is None else self.run.trainee.mimickers[job].losses_of(spec)  # type: ignore[operator]
            loss = losses.get(rest.rpartition(".")[2])
            self._factors[name] = None if spec is None or loss is None else (spec, loss)
        return self._factors[name]

    def _alarm(
        self,
        code: str,
        step: int,
        what: str,
        numbers: Mapping[str, float],
        *,
        about: str = "",
        of_run: bool = False,
        at_evaluation: bool = False,
    ) -> None:
        """Note an alarm, unless the rule has said it of this loss in this stage (of_run: in this run)."""
        assert self.plan is not None
        rule, stage = RULES[code], None if of_run else self.plan.name
        key = " ".join([code, *([] if of_run else [str(self.memory.stage)]), about]).strip()
        if key in self.memory.told:
            return
        self.memory.told.append(key)
        place = "" if stage is None else f" in stage `{stage}`"
        self.due.append(
            Alarm(
                message=f"{code}: {rule.name}, step {step}{place}: {what}; {rule.remedy}",
                step=step,
                code=code,
                name=rule.name,
                numbers=dict(numbers),
                remedy=rule.remedy,
                stage=stage,
                at_evaluation=at_evaluation,
            )
        )


def _padded(values: Tensor, length: int) -> Tensor:
    """Values [n] with zeros up to a length."""
    return values if len(values) >= length else nn.functional.pad(values, (0, length - len(values)))
