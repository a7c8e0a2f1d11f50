"""What updates the weights: the optimizer, the learning rate of every step, the moving average."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from kdcli.errors import KdError, SpecError, SpecPath, did_you_mean
from kdcli.failures import doing, own_mistake, place_of, text_of
from kdcli.optimizers import OPTIMIZER_TARGETS, SCHEDULER_TARGETS
from kdcli.optimizers.epochs import epochs_in_steps, in_steps
from kdcli.optimizers.parameter_groups import parameter_groups
from kdcli.spec.plugins import is_own, lookup
from kdcli.spec.schema import Ema, OptimizerSpec, SchedulerSpec, Spec
from kdcli.spec.tables import OPTIMIZERS, SAME_OPTIMIZERS, SCHEDULERS

IN_EPOCHS = {
    "MultiStepLR": ("milestones",),
    "CosineAnnealingLR": ("T_max",),
    "StepLR": ("step_size",),
    "LinearLR": ("total_iters",),
    "ConstantLR": ("total_iters",),
    "PolynomialLR": ("total_iters",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "OneCycleLR": ("max_epoch",),
    "polylr": ("max_epoch",),
}
"""Schedulers that move every step, with the arguments that the spec gives in epochs."""

FUSED_ON = {name: ("cpu", "cuda") for name in ("SGD", "Adam", "AdamW")}
"""Where torch's optimizers have a fused form; the other ones that have any (Adagrad) have it on the CPU."""

IN_STEPS = frozenset({"CyclicLR"})
"""Schedulers that move every step, with arguments in steps; all others, own ones too, move once per epoch."""


def build_optimizer(
    spec: OptimizerSpec,
    parameters: Iterable[nn.Parameter],
    path: SpecPath,
    trained: nn.Module | None = None,
) -> Optimizer:
    """The optimizer of torch.optim that the spec names, over the parameters that train.

    In its fused form where it has one for the parameters' device and the spec says nothing else. trained: the module
    that holds them, whose layers `pconfig` goes by.
    """
    target = optimizer_class(spec.type, path)
    kwargs = _lists_to_tuples(spec.kwargs)
    parameters = list(parameters)
    groups: list[Any] = parameters
    if spec.pconfig is not None and trained is not None:
        groups = parameter_groups(spec.pconfig, trained, parameters, (*path, "pconfig"))
    check_kwargs(target, kwargs, (*path, "kwargs"), f"optimizer `{spec.type}`", given=("params",))
    try:
        optimizer = target(groups, **kwargs, **_fused(target, kwargs, parameters))
    except Exception as error:
        raise _refused_arguments(f"optimizer `{spec.type}`", error, (*path, "kwargs"), "KD440") from error
    if not isinstance(optimizer, Optimizer):
        message = f"`{spec.type}` gives a `{type(optimizer).__name__}`, not a torch.optim.Optimizer"
        raise SpecError.at((*path, "type"), "KD440", message)
    if isinstance(optimizer, torch.optim.SGD):
        optimizer.register_step_pre_hook(_LateMomentum())
    return optimizer


def clear_gradients(optimizer: Optimizer) -> None:
    """Set every gradient to None, as `zero_grad(set_to_none=True)` does, without its look at every way to do so."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _refused_arguments(what: str, error: Exception, path: SpecPath, code: str) -> Exception:
    """The error at the arguments that an optimizer or scheduler refuses; kdcli's own errors as they are."""
    if isinstance(error, KdError) or own_mistake(error):
        return error
    reason = str(error) if isinstance(error, (TypeError, ValueError, RuntimeError)) else text_of(error)
    return SpecError.at(path, code, f"{what}: {reason}{place_of(error)}")


class _LateMomentum:
    """Momentum for parameters of torch's fused SGD that get their first gradient later than others.

    It fails where some get it later (a loss with `start_iter`), and where a gradient scaler lets it skip its first step
    it keeps a momentum that nothing has filled; momentum that begins at zero gives the same first step.
    """

    def __init__(self) -> None:
        self.all_move = False

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """Before a step: begin the momentum that is missing; once all have one there is nothing left to do."""
        if self.all_move:
            return
        skips = getattr(optimizer, "found_inf", None) is not None
        self.all_move = True
        for group in optimizer.param_groups:
            if not group["momentum"] or not group["fused"]:
                continue
            moving = [p for p in group["params"] if p.grad is not None]
            late = [p for p in moving if optimizer.state[p].get("momentum_buffer") is None]
            self.all_move &= not late and len(moving) == len(group["params"])
            if skips or len(late) < len(moving):
                for parameter in late:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _fused(target: Any, kwargs: dict[str, Any], parameters: list[nn.Parameter]) -> dict[str, bool]:
    # torch's own default on the CPU goes through the parameters one by one: 2.5 times the time for SGD, 5
    # for AdamW (ResNet-18, 2 threads). On CUDA it is several kernels an operation.
    devices = FUSED_ON.get(target.__name__, ("cpu",))
    plain = all(
        type(p) is nn.Parameter and p.device.type in devices and p.is_floating_point() for p in parameters
    )
    chosen = {"fused", "foreach", "differentiable", "capturable", "dampening"} & kwargs.keys()
    if plain and not chosen and "fused" in inspect.signature(target).parameters:
        return {"fused": True}
    return {}


def check_kwargs(
    target: Any, kwargs: dict[str, Any], path: SpecPath, what: str, given: Iterable[str]
) -> None:
    """Raise for an argument that the callable does not have, with the nearest name."""
    known = [n for n in inspect.signature(target).parameters if n not in set(given)]
    for name in kwargs:
        if name not in known:
            raise SpecError.at(
                (*path, name),
                "KD441",
                f"{what} has no argument `{name}`",
                did_you_mean(name, known),
                on_key=True,
            )


def optimizer_class(name: str, path: SpecPath = ()) -> Any:
    """The optimizer that a name of the table, or own code, means in a spec; path: of the component."""
    if is_own(name):
        return lookup(OPTIMIZERS, name, path=(*path, "type"), code="KD440").load()
    if name in OPTIMIZER_TARGETS:
        return OPTIMIZER_TARGETS[name].load()
    return getattr(torch.optim, SAME_OPTIMIZERS.get(name, name), None)


def scheduler_class(name: str, path: SpecPath = ()) -> Any:
    """The scheduler class that a name of the table, or own code, means in a spec; path: of the component."""
    if is_own(name):
        return lookup(SCHEDULERS, name, path=(*path, "type"), code="KD443").load()
    if name in SCHEDULER_TARGETS:
        return SCHEDULER_TARGETS[name].load()
    return getattr(lr_scheduler, name, None)


class LearningRate:
    """Learning rate of every step: warm-up first, then a scheduler of torch.

    The scheduler runs on a shadow optimizer, so that warm-up can't disturb schedulers that compute a
    step's lr from the last one. `target` is the lr that the warm-up reaches. OneCycleLR and CyclicLR move the
    momentum too (beta1 where an optimizer has betas), unless `cycle_momentum: false`.

    By United-Perception's rule the target is the written lr x processes x batch size, unless
    `warmup_register_type: no_scale_lr`; without a scheduler the written lr holds throughout. steps: so many
    follow, where that is known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        spec: SchedulerSpec | None,
        *,
        batch_size: int,
        world_size: int,
        steps_per_epoch: int,
        path: SpecPath,
        steps: int | None = None,
    ) -> None:
        if spec is not None and steps is not None:
            check_total(spec, steps, path, steps_per_epoch)
        self.optimizer = optimizer
        self.spec, self.path = spec, path
        self.steps_per_epoch = steps_per_epoch
        self.warmup = 0 if spec is None else spec.warmup(steps_per_epoch)
        self.step_count = 0
        self._stepped = False
        scale = (
            1.0
            if spec is None or spec.warmup_register_type == "no_scale_lr"
            else float(batch_size * world_size)
        )
        self.written = [float(group["lr"]) for group in optimizer.param_groups]
        self.targets = [lr * scale for lr in self.written]
        self.starts = (
            self.written
            if spec is None or spec.warmup_ratio is None
            else [target * spec.warmup_ratio for target in self.targets]
        )
        if (
            spec is not None
            and self.warmup
            and spec.warmup_type == "exp"
            and any(start <= 0 for start in self.starts)
        ):
            raise SpecError.at(
                (*path, "warmup_ratio"),
                "KD442",
                "an `exp` warm-up can't start from an lr of 0",
                "use `warmup_type: linear` or a ratio above 0",
            )
        shadows = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in self.targets]
        self.shadow = torch.optim.SGD(shadows, lr=0.0, momentum=0.9)
        self.scheduler = None if spec is None else self._scheduler(spec, path)
        self.cycles_momentum = bool(getattr(self.scheduler, "cycle_momentum", False))
        if self.cycles_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            assert spec is not None
            message = f"scheduler `{spec.type}` moves the momentum, and `{type(optimizer).__name__}` has none"
            help = "write `cycle_momentum: false`, or choose an optimizer with `momentum` or `betas`"
            raise SpecError.at((*path, "kwargs"), "KD443", message, help)
        self._apply()

    @property
    def target(self) -> float:
        """Learning rate of the first group at the end of the warm-up."""
        return self.targets[0]

    @property
    def now(self) -> float:
        """Learning rate of the first group at this step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def evaluated(self, metric: float | None) -> None:
        """Take in an evaluation, which ReduceLROnPlateau follows; metric: larger is better, None: not measured."""
        if metric is not None and isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            with doing("the scheduler `ReduceLROnPlateau`", self.path):
                self.scheduler.step(metric)
            self._apply()

    def advance(self) -> None:
        """Go on to the next step."""
        self.step_count += 1
        if self.scheduler is not None and self.spec is not None:
            at_epoch_end = self.step_count % self.steps_per_epoch == 0
            in_steps = self.spec.type in IN_EPOCHS or self.spec.type in IN_STEPS
            if (in_steps or at_epoch_end) and not isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                if not self._stepped:
                    # It has no gradient and does nothing; torch warns where no optimizer has made a step before.
                    self.shadow.step()
                    self._stepped = True
                with doing(f"the scheduler `{self.spec.type}`", self.path):
                    self.scheduler.step()
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the lr of the next step."""
        return {
            "step_count": self.step_count,
            "shadow_lrs": [group["lr"] for group in self.shadow.param_groups],
            **({"momenta": self._momenta()} if self.cycles_momentum else {}),
            "scheduler": None if self.scheduler is None else _plain(self.scheduler.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what state_dict() returned."""
        self.step_count = state["step_count"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))  # torch's CyclicLR takes from it
        for group, lr in zip(self.shadow.param_groups, state["shadow_lrs"], strict=True):
            group["lr"] = lr
        # A run that began before the momentum was moved goes on as it began.
        self.cycles_momentum = "momenta" in state
        for group, momentum in zip(self.shadow.param_groups, state.get("momenta", ()), strict=False):
            group["momentum"] = momentum
        self._apply()

    def _momenta(self) -> list[float]:
        return [float(group["momentum"]) for group in self.shadow.param_groups]

    def _apply(self) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self._lr(index)
        if self.cycles_momentum:
            for group, momentum in zip(self.optimizer.param_groups, self._momenta(), strict=True):
                if "betas" in group:
                    group["betas"] = (momentum, group["betas"][1])
                else:
                    group["momentum"] = momentum

    def _lr(self, index: int) -> float:
        spec, step = self.spec, self.step_count
        if spec is None or step >= self.warmup:
            return float(self.shadow.param_groups[index]["lr"])
        start, target = self.starts[index], self.targets[index]
        share = step / (self.warmup - 1) if self.warmup > 1 else 1.0
        if spec.warmup_type == "constant":
            return start
        if spec.warmup_type == "linear":
            return start + (target - start) * share
        return float(start * (target / start) ** share)

    def _scheduler(self, spec: SchedulerSpec, path: SpecPath) -> Any:
        target = scheduler_class(spec.type, path)
        kwargs = _lists_to_tuples(spec.kwargs)
        check_kwargs(
            target, kwargs, (*path, "kwargs"), f"scheduler `{spec.type}`", given=("optimizer", "last_epoch")
        )
        kwargs |= epochs_in_steps(target, IN_EPOCHS.get(spec.type, ()), kwargs, self.steps_per_epoch)
        if spec.type == "ReduceLROnPlateau" and kwargs.setdefault("mode", "max") != "max":
            message = "ReduceLROnPlateau follows the metric by which the best student is chosen, as a figure that rises"
            help = "leave `mode` out, or write `mode: max`: with `min` the rate would fall while the student learns"
            raise SpecError.at((*path, "kwargs", "mode"), "KD443", message, help)
        try:
            if spec.type == "CosineAnnealingLR" and kwargs.get("warmup_iter"):
                self._check_shift(kwargs["warmup_iter"], kwargs.get("T_max", math.inf), path)
            scheduler = target(self.shadow, **kwargs)
        except Exception as error:
            raise _refused_arguments(f"scheduler `{spec.type}`", error, (*path, "kwargs"), "KD443") from error
        if not isinstance(scheduler, lr_scheduler.LRScheduler):
            message = f"`{spec.type}` gives a `{type(scheduler).__name__}`, not a torch.optim.lr_scheduler.LRScheduler"
            raise SpecError.at((*path, "type"), "KD443", message)
        return scheduler

    def _check_shift(self, shift: int, end: float, path: SpecPath) -> None:
        """Raise for a cosine that would start after its end; shift, end: in steps."""
        if 0 <= shift < end:
            return
        message = f"`warmup_iter` of the cosine must be at least 0, got {shift}"
        help = "it is the step at which the cosine begins"
        if shift > 0:
            message = f"the cosine begins at step {shift} (`warmup_iter`), not before its end at step {end}"
            help = f"`T_max` counts epochs, of {self.steps_per_epoch} steps here; lower `warmup_iter`"
        raise SpecError.at((*path, "kwargs", "warmup_iter"), "KD443", message, help)


def total_of(spec: SchedulerSpec, steps_per_epoch: int | None = None) -> int | None:
    """The steps after which OneCycleLR ends; None where that is not known, and of all others."""
    given = spec.kwargs
    if spec.type != "OneCycleLR":
        return None
    total = given.get("total_steps")
    if given.get("max_epoch") is not None:
        total = None if steps_per_epoch is None else in_steps(given["max_epoch"], steps_per_epoch)
    elif total is None and None not in (given.get("epochs"), given.get("steps_per_epoch")):
        total = given["epochs"] * given["steps_per_epoch"]
    return total if isinstance(total, int) else None


def check_total(spec: SchedulerSpec, steps: int, path: SpecPath, steps_per_epoch: int | None = None) -> None:
    """Raise for OneCycleLR that ends before the training: torch's fails at the step after its last."""
    total = total_of(spec, steps_per_epoch)
    if total is None or total >= steps:
        return
    name = next(n for n in ("max_epoch", "total_steps", "epochs") if spec.kwargs.get(n) is not None)
    message = f"scheduler `OneCycleLR` ends after {total} steps, the training after {steps}"
    raise SpecError.at((*path, "kwargs", name), "KD443", message, f"write `total_steps: {steps}`")


def _lists_to_tuples(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A state that weights_only loading accepts: Counters become dicts, functions are left out."""
    kept = {}
    for name, value in state.items():
        if callable(value):
            continue
        kept[name] = dict(value) if isinstance(value, dict) else value
    return kept


AVERAGE_VERSION = 2
"""Of the moving average's state. Before 2, which a state did not say, the decay had another formula and buffers
were copied."""

EXP_STEPS = 2000
"""Steps in which the decay of `exp` comes to 63 % of its end."""


def average_of(spec: Spec) -> Ema | None:
    """The EMA settings that a run of this spec uses; None without EMA."""
    ema = spec.trainer.ema
    return ema if ema is not None and ema.enable else None


def decay_at(spec: Ema, step: int) -> float:
    """The decay of the moving average at a step, counted from 0.

    With d = decay ** inner_T, `linear`: min(d, (1 + step) / (warmup + step)); `exp`: d * (1 -
    exp(-step / 2000)). Source: United-Perception's up/utils/model/ema_helper.py.
    """
    decay = spec.kwargs.decay**spec.kwargs.inner_T
    if spec.ema_type == "exp":
        return decay * -math.expm1(-step / EXP_STEPS)
    return min(decay, (1 + step) / (spec.kwargs.warmup + step))


def same_meaning(state: Mapping[str, Any]) -> bool:
    """Whether a saved EMA state was made with the settings of this one."""
    return state.get("version") == AVERAGE_VERSION


class MovingAverage:
    """Moving average of a network: average = decay * average + (1 - decay) * weight after each step.

    `linear` does so at step 0 and at every `inner_T`-th step from there, `exp` at every one. Buffers of
    real numbers are averaged like parameters; all others are copied at the same steps.
    """

    def __init__(self, net: nn.Module, spec: Ema) -> None:
        self.net = net
        self.spec = spec
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the current weights."""
        self.step = 0
        self.parameters = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.buffers = {name: b.detach().clone() for name, b in self.net.named_buffers()}
        # A constant like an attention mask's -inf would become nan: -inf - -inf.
        self._averaged = frozenset(
            name for name, b in self.buffers.items() if b.is_floating_point() and bool(b.isfinite().all())
        )

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after one optimizer step."""
        step = self.step
        self.step += 1
        if self.spec.ema_type == "linear" and step % self.spec.kwargs.inner_T:
            return
        share = 1.0 - decay_at(self.spec, step)
        torch._foreach_lerp_(
            list(self.parameters.values()), [p.detach() for p in self.net.parameters()], share
        )
        buffers = {name: buffer.detach() for name, buffer in self.net.named_buffers()}
        if averaged := [name for name in buffers if name in self._averaged]:
            torch._foreach_lerp_([self.buffers[n] for n in averaged], [buffers[n] for n in averaged], share)
        if copied := [name for name in buffers if name not in self._averaged]:
            torch._foreach_copy_([self.buffers[n] for n in copied], [buffers[n] for n in copied])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged weights into the network inside the block, its own weights back after it."""
        live = {name: t.detach().clone() for name, t in self._targets()}
        self._copy({**self.parameters, **self.buffers})
        try:
            yield
        finally:
            self._copy(live)

    def state_dict(self) -> dict[str, object]:
        """The averages and the number of updates."""
        return {
            "version": AVERAGE_VERSION,
            "step": self.step,
            "parameters": self.parameters,
            "buffers": self.buffers,
            "averaged": sorted(self._averaged),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from what state_dict() returned."""
        self.step = int(state["step"])  # type: ignore[call-overload]
        for averages, saved in ((self.parameters, state["parameters"]), (self.buffers, state["buffers"])):
            assert isinstance(saved, dict)
            for name, value in saved.items():
                averages[name].copy_(value)
        # As it was decided at the first step: a buffer that was infinite then may be finite now.
        averaged = state.get("averaged", sorted(self._averaged))
        assert isinstance(averaged, (list, tuple))
        self._averaged = frozenset(averaged)

    def _targets(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        # One by one: torch copies no sharded tensors at once.
        for name, target in self._targets():
            target.copy_(values[name])
