"""LAMB and LARS: optimizers whose step in each parameter is as long as the parameter's norm says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LayerWise(Optimizer):
    """An optimizer whose `_update` moves all parameters once."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returns, else None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self) -> None:
        raise NotImplementedError


class Lamb(LayerWise):
    """Adam's direction, each parameter's step made as long as lr times the norm of the parameter.

    All gradients are first scaled down together to a norm of max_grad_norm at most. With m, v Adam's averages and
    u = m / (sqrt(v) + eps) + weight_decay * p, the step is lr * u * |p| / |u|; lr * u where a norm is 0, or where the
    parameter has no weight decay and `always_adapt` is false. grad_averaging: m takes (1 - beta1) of the gradient,
    else all of it. trust_clip: the ratio |p| / |u| is 1 at most. The gradients themselves are not changed.
    Source: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv:1904.00962, with the
    arguments of United-Perception's up/utils/model/optim/lamb.py.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: float = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
    ) -> None:
        self.max_grad_norm = max_grad_norm
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
        }
        super().__init__(params, defaults)

    def _update(self) -> None:
        groups = [(group, _moving(group)) for group in self.param_groups]
        gradients = [p.grad for _, parameters in groups for p in parameters if p.grad is not None]
        if not gradients:
            return
        scale = (self.max_grad_norm / _norm(gradients)).clamp(max=1.0)
        for group, parameters in groups:
            self._step(group, parameters, scale)

    def _step(self, group: dict[str, Any], parameters: list[Tensor], scale: Tensor) -> None:
        if not parameters:
            return
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
        gradients = [p.grad * scale.to(p.grad.device, p.grad.dtype) for p in parameters if p.grad is not None]
        first = [self.state[p]["exp_avg"] for p in parameters]
        second = [self.state[p]["exp_avg_sq"] for p in parameters]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        steps = [self.state[p]["step"] if group["bias_correction"] else math.inf for p in parameters]
        updates = torch._foreach_sqrt(second)
        torch._foreach_div_(updates, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(updates, group["eps"])
        updates = torch._foreach_div(first, updates)
        torch._foreach_div_(updates, [1 - beta1**step for step in steps])
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["weight_decay"] or group["always_adapt"]:
            ratios = _ratios(parameters, updates)
            if group["trust_clip"]:
                ratios = [ratio.clamp(max=1.0) for ratio in ratios]
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


class Lars(LayerWise):
    """SGD with momentum, each parameter's lr multiplied by eta * |p| / (|gradient| + weight_decay * |p|).

    weight_decay is a part of the gradient, as in SGD. A parameter of norm 0 does not move (a bias that begins at 0
    stays there), nor does one without a gradient of its own.
    Source: "Large Batch Training of Convolutional Networks", arXiv:1708.03888, with the arguments of
    United-Perception's up/utils/model/optim/lars.py.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening):
            raise ValueError("`nesterov` needs a `momentum` above 0 and no `dampening`")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "eta": eta,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _update(self) -> None:
        for group in self.param_groups:
            parameters = _moving(group)
            if parameters:
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        lengths = torch._foreach_norm(parameters)
        divisors = torch._foreach_add(torch._foreach_norm(gradients), lengths, alpha=decay)
        rates = [
            torch.where(divisor > 0, group["eta"] * length / divisor, 0.0)
            for length, divisor in zip(lengths, divisors, strict=True)
        ]
        steps = list(torch._foreach_add(gradients, parameters, alpha=decay)) if decay else gradients
        if momentum:
            late = [p for p in parameters if "momentum_buffer" not in self.state[p]]
            for parameter in late:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            # torch's SGD, too, takes the first gradient whole.
            new = set(late)
            shares = [1.0 if p in new else 1 - group["dampening"] for p in parameters]
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, torch._foreach_mul(steps, shares))
            steps = list(torch._foreach_add(steps, buffers, alpha=momentum)) if group["nesterov"] else buffers
        torch._foreach_add_(parameters, torch._foreach_mul(steps, rates), alpha=-group["lr"])


def _moving(group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group that have a gradient; raises RuntimeError for a sparse one."""
    moving: list[Tensor] = [p for p in group["params"] if p.grad is not None]
    if any(p.grad is not None and p.grad.is_sparse for p in moving):
        raise RuntimeError("sparse gradients can't be used here")
    return moving


def _norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm over all elements of all tensors."""
    norms = torch._foreach_norm(tensors)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total


def _ratios(parameters: list[Tensor], updates: Sequence[Tensor]) -> list[Tensor]:
    """|p| / |update| of each parameter; 1 where one of the two is 0."""
    lengths, others = torch._foreach_norm(parameters), torch._foreach_norm(list(updates))
    return [
        torch.where((length > 0) & (other > 0), length / other, 1.0)
        for length, other in zip(lengths, others, strict=True)
    ]
