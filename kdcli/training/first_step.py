"""The proof at the first real step: the optimizer moves the weights, by a finite amount, and downhill.

A loss that would throw the weights away in that step is refused before it.

Nothing is copied or undone: hooks on the optimizer look at up to 256 elements of each parameter, spread over it, before
and after the step that it takes anyway (a megabyte for a ResNet-50), until one step is the proof. The loss itself is
not asked: at a good lr it may rise at the first step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kdcli.errors import Diagnostic, RunError
from kdcli.parallel.sharding import local_part
from kdcli.records import Notice
from kdcli.spec.plugins import is_own
from kdcli.training.guard import GuardResult
from kdcli.training.run import Run, StagePlan

ELEMENTS = 256
"""Of each parameter so many elements are looked at."""

TOO_STRONG = 1e4
"""Above this multiple a loss may stop the run: see `refuse_strong_pulls`."""

DECOUPLED = frozenset({"AdamW", "Adafactor", "Muon"})
"""Optimizers whose weight decay shrinks the weights beside the step; in the others the step follows it."""

PARALLEL = 0.9
"""From this cosine on an update follows the gradient, which no momentum or decay explains."""


def prove_first_step(
    run: Run, plan: StagePlan, optimizer: Optimizer, target: float, notices: list[Notice]
) -> None:
    """Watch an optimizer until one of its steps is the proof that it trains.

    target: the lr at the end of the warm-up. notices: the list that takes warnings. No proof yet is a step at an lr of
    0 (a warm-up from 0), one that a gradient scaler skips, and one without a gradient: the next one is looked at.

    The gradient is the one that the optimizer is given: unscaled, clipped, with its weight decay. The step raises
    RunError KD705 where no weight changes at half the lr of the warm-up's end or more, KD706 where a weight is no
    longer finite, KD707 where the update follows the gradient. Where that may be meant they are warnings: KD705 of an
    own optimizer, KD707 of an update that is not nearly parallel to the gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = any(isinstance(p, DTensor) for p in parameters)
    # Sharded processes look together, and with a scaler one of them may skip a step that others take.
    if not (sharded and run.scaler is not None):
        _FirstStep(run, plan, optimizer, target, notices, sharded=sharded)


def refuse_strong_pulls(run: Run, guard: GuardResult, plan: StagePlan, lr: float) -> None:
    """Raise RunError KD704 for each loss of the run's first stage that would throw the student away.

    lr: which the warm-up reaches. Two things have to hold, and the job not to say `allow_strong_pull: true`:
    - the loss pulls over 10,000 times as hard as the task;
    - its gradient is out of scale to the weights: one plain SGD step along it, lr · ‖gradient‖ long (clipped where
      the run clips), would move the weights that it reaches by more than their own norm.
    The first alone is no fault: a student that knows the task already has a task gradient near 0. The second alone
    is a matter of the lr. An Adam step does not grow with the gradient, so that there the bound tells of scale alone.
    """
    clip = run.spec.trainer.clip_grad_norm
    problems = []
    for name, pull in guard.strengths.items():
        job = name.partition(".")[0]
        active = plan.active.task_loss and (plan.active.jobs is None or job in plan.active.jobs)
        step = lr * (pull.gradient if clip is None else min(pull.gradient, clip))
        allowed = run.trainee.specs[job].allow_strong_pull
        if active and not allowed and pull.to_task > TOO_STRONG and step > pull.weights:
            problems.append(
                Diagnostic(
                    code="KD704",
                    message=f"`{name}` pulls the student {pull.to_task:.2g} times as hard as the task's loss; at lr "
                    f"{lr:g} one step of SGD along its gradient would change the weights that it reaches by "
                    f"{step / pull.weights:.2g} times their norm",
                    help=f"with {pull.remedy} it would pull as hard as the task; "
                    "where this pull is meant, say `allow_strong_pull: true` at the job",
                    path=("mimic", "jobs", job),
                )
            )
    everywhere = {problem.path: problem for there in run.processes.gather(problems) for problem in there}
    if everywhere:
        raise RunError(everywhere.values())


class _FirstStep:
    """Hooks before and after each step of one optimizer; once there is a proof they do nothing."""

    def __init__(
        self,
        run: Run,
        plan: StagePlan,
        optimizer: Optimizer,
        target: float,
        notices: list[Notice],
        *,
        sharded: bool,
    ) -> None:
        self.run, self.plan, self.target, self.notices = run, plan, target, notices
        self.sharded, self.done = sharded, False
        self.weights: dict[nn.Parameter, Tensor] = {}
        self.downhill: dict[nn.Parameter, Tensor] = {}
        self.earlier: dict[nn.Parameter, Tensor] = {}
        self.before_hook = optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)

    @torch.no_grad()
    def before(self, optimizer: Optimizer, *_: Any) -> None:
        """Note the weights, and the gradients with what the weight decay adds to them."""
        self.weights, self.downhill = {}, {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None or gradient.is_sparse or not parameter.is_floating_point():
                    continue
                weight = self.weights[parameter] = _some(parameter)
                coupled = 0.0 if _is_decoupled(optimizer, group) else _decay(group)
                self.downhill[parameter] = _some(gradient) + coupled * weight

    @torch.no_grad()
    def after(self, optimizer: Optimizer, *_: Any) -> None:
        """Compare the weights with those before the step."""
        if self.done or _is_skipped(optimizer):
            return
        # A momentum is made of all gradients so far; those of steps at an lr of 0 are of the same weights.
        for parameter, gradient in self.downhill.items():
            self.earlier[parameter] = self.earlier.get(parameter, 0.0) + gradient
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if not any(rates):
            return
        inner, updates, gradients, moved, zeros, broken = self._compared(optimizer)
        if broken:
            raise self._finding(
                "KD706", f"at lr {max(rates):g} it gives {self._broken()} values that are not finite"
            )
        if not gradients or not math.isfinite(gradients):
            return
        # A weight that is 0 takes on the smallest number; where there are others, they have to move too.
        if not (moved or zeros):
            if max(map(abs, rates)) >= abs(self.target) / 2:
                self._tell(
                    self._finding("KD705", f"at lr {max(rates):g} it changes no weight"), stop=not self.own
                )
            return
        if inner > 0:
            cosine = inner / math.sqrt(updates * gradients)
            maximizes = any(group.get("maximize") for group in optimizer.param_groups)
            why = "`maximize: true`" if maximizes else f"the cosine between them is {cosine:.2f}"
            finding = self._finding("KD707", f"it follows the gradient instead of opposing it ({why})")
            self._tell(finding, stop=maximizes or min(rates) < 0 or cosine > PARALLEL)
        self._end()

    def _compared(self, optimizer: Optimizer) -> list[float]:
        """Of the elements looked at: update · gradient, update², gradient², how many moved, how many are not finite.

        Two counts of those that moved: weights other than 0, and weights of 0 where there are no others.
        """
        sums = torch.zeros(7, dtype=torch.float64, device=self.run.processes.device)
        for group in optimizer.param_groups:
            rate = float(group["lr"])
            beside = rate * _decay(group) if _is_decoupled(optimizer, group) else 0.0
            for parameter in group["params"]:
                if not rate or parameter not in self.weights:
                    continue
                weight, gradient, now = self.weights[parameter], self.earlier[parameter], _some(parameter)
                moved, usual = (now != weight) & (gradient != 0), (weight != 0) & (gradient != 0)
                update = now - weight + beside * weight
                sums += torch.stack(
                    [
                        update @ gradient,
                        update @ update,
                        gradient @ gradient,
                        (moved & usual).sum().double(),
                        (moved & ~usual).sum().double(),
                        usual.sum().double(),
                        _is_broken(weight, gradient, now).sum().double(),
                    ]
                )
        *products, moved, zeros, usual, broken = (
            self.run.processes.sum(sums) if self.sharded else sums
        ).tolist()
        return [*products, moved, 0.0 if usual else zeros, broken]

    def _broken(self) -> str:
        """The first parameter that has become infinite or no number, on this process."""
        names = {parameter: f"`{name}`" for name, parameter in self.run.trainee.named_parameters()}
        for parameter, weight in self.weights.items():
            if bool(_is_broken(weight, self.earlier[parameter], _some(parameter)).any()):
                return names.get(parameter, "a weight")
        return "a weight"

    @property
    def own(self) -> bool:
        """Whether the optimizer is the user's: it may take a step for several."""
        return is_own(self.plan.optimizer.type)

    def _tell(self, finding: RunError, *, stop: bool) -> None:
        if stop:
            raise finding
        told = finding.diagnostics[0]
        self.notices.append(Notice(message=f"{told.code}: {told.message}; {told.help}", level="warning"))
        self._end()

    def _finding(self, code: str, what: str) -> RunError:
        stage = f" of stage `{self.plan.name}`" if self.plan.name else ""
        return RunError(
            [
                Diagnostic(
                    code=code,
                    message=f"the first step of {self.plan.optimizer.type}{stage} does not train: {what}",
                    help=HELP[code],
                    path=self.plan.optimizer_path,
                )
            ]
        )

    def _end(self) -> None:
        self.done = True
        self.before_hook.remove()
        self.weights, self.downhill, self.earlier = {}, {}, {}


HELP = {
    "KD705": "what it would add to a weight is lost in rounding: raise the `lr`, or look at `clip_grad_norm` and the "
    "losses' weights where these make the gradient so small",
    "KD706": "lower the `lr`, or clip the gradients (`trainer.clip_grad_norm`)",
    "KD707": "take `maximize` and negative factors out of the optimizer and its schedule",
}


def _some(tensor: Tensor) -> Tensor:
    """Up to ELEMENTS values of a tensor, of this process's part of a sharded one; float64 [n]."""
    values = local_part(tensor)
    count = min(values.numel(), ELEMENTS)
    if count == 0:
        return values.new_zeros(0, dtype=torch.float64)
    # Not every k-th element: the gradient of one place of each kernel is 0 where the map is as small as 1 x 1.
    every = values.numel() // count
    number = torch.arange(count, device=values.device)
    places = number * every + number % every
    if not values.dim():
        return values.double()[None]
    # By indices: flattening a channels-last weight would copy it. Worked out here, as torch.unravel_index makes a
    # tensor of the host's numbers.
    indices = []
    for size in reversed(values.shape):
        indices.append(places % size)
        places = places // size
    return values[tuple(reversed(indices))].double()


def _is_broken(weight: Tensor, gradient: Tensor, now: Tensor) -> Tensor:
    return weight.isfinite() & gradient.isfinite() & ~now.isfinite()


def _is_decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return type(optimizer).__name__ in DECOUPLED or bool(group.get("decoupled_weight_decay"))


def _decay(group: dict[str, Any]) -> float:
    return float(group.get("weight_decay") or 0.0)


def _is_skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has found that gradients overflow: a fused optimizer then leaves the weights alone."""
    overflows = getattr(optimizer, "found_inf", None)
    return isinstance(overflows, Tensor) and bool(overflows.any())
