"""Inputs for any loss of the table, made from its signature."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.errors import KdError
from kdcli.losses import LOSSES, Loss
from kdcli.losses.parts.stateful import StatefulLoss

CLASSES = 5
SAMPLES = 12
SHAPES: tuple[tuple[int, ...], ...] = ((4, 4, 4), (4, 8, 8), (6,))
"""What a feature may be beside the batch axis; the first that a loss takes is used."""
LEVELS = 3
PROBABILITIES = {"bce_loss"}


@dataclass
class Case:
    """One loss with inputs by name; call() runs it on them, or on others in their place."""

    name: str
    made: Callable[..., Tensor]
    inputs: dict[str, Any]
    kwargs: dict[str, Any]

    def call(self, **others: Any) -> Tensor:
        """The loss, from the same random state and the same buffers each time."""
        torch.manual_seed(0)
        made = copy.deepcopy(self.made) if isinstance(self.made, nn.Module) else self.made
        return made(**{**self.inputs, **others}, **self.kwargs)

    def tensors(self, *names: str) -> list[Tensor]:
        """The tensors of the named inputs, lists flattened."""
        found: list[Tensor] = []
        for name in names:
            value = self.inputs.get(name)
            found += value if isinstance(value, list) else [value] if isinstance(value, Tensor) else []
        return found

    def fake(self, mode: FakeTensorMode) -> Tensor:
        """The loss on fake copies of the inputs, and of what the loss holds."""
        inputs = self.mapped(mode.from_tensor)
        if not isinstance(self.made, nn.Module):
            return self.made(**inputs, **self.kwargs)
        held = {**dict(self.made.named_parameters()), **dict(self.made.named_buffers())}
        fakes = {path: mode.from_tensor(tensor) for path, tensor in held.items()}
        loss: Tensor = torch.func.functional_call(self.made, fakes, (), {**inputs, **self.kwargs})
        return loss

    @property
    def students(self) -> list[Tensor]:
        """What has to receive a gradient."""
        return self.tensors("student", "student_logits")

    @property
    def teachers(self) -> list[Tensor]:
        """What must not."""
        return self.tensors("teacher", "teacher_logits")

    def mapped(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """All inputs with every tensor changed."""
        return {name: apply(change, value) for name, value in self.inputs.items()}


def apply(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A tensor or a list of them changed; anything else as it is."""
    if isinstance(value, list):
        return [apply(change, item) for item in value]
    return change(value) if isinstance(value, Tensor) else value


def positional(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that are bound by name."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
    }


def keyword_only(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters that the spec gives."""
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def forward_of(target: Any) -> Callable[..., Any]:
    """The function whose signature is bound at each call."""
    return target.forward if inspect.isclass(target) else target  # type: ignore[no-any-return]


def takes_logits(name: str) -> bool:
    """Whether a loss is given logits [B, K] rather than features."""
    return LOSSES[name].kind == "logit" or LOSSES[name].takes == "logits"


def make_case(
    name: str,
    *,
    batch: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scale: float = 1.0,
    identical: bool = False,
    requires_grad: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> Case:
    """Inputs of the first shape that the loss takes; RunError of the last where it takes none."""
    shapes = ((CLASSES,),) if takes_logits(name) else SHAPES
    refused: KdError | None = None
    for shape in shapes:
        try:
            case = _case(name, shape, batch, dtype, seed, scale, identical, requires_grad, dict(kwargs or {}))
            case.call()
        except KdError as error:
            refused = error
        else:
            return case
    assert refused is not None
    raise refused


def _case(
    name: str,
    shape: tuple[int, ...],
    batch: int,
    dtype: torch.dtype,
    seed: int,
    scale: float,
    identical: bool,
    requires_grad: bool,
    kwargs: dict[str, Any],
) -> Case:
    random = torch.Generator().manual_seed(seed)
    target = LOSSES[name].load()
    parameters = positional(forward_of(target))

    def draw(*sizes: int) -> Tensor:
        drawn = torch.randn(sizes, generator=random, dtype=torch.float64)
        drawn = drawn if scale == 1.0 else drawn.sign() * scale
        if name in PROBABILITIES:
            drawn = drawn.sigmoid()
        return drawn.to(dtype).requires_grad_(requires_grad and name not in PROBABILITIES)

    def feature(parameter: str) -> Tensor | list[Tensor]:
        if LOSSES[name].whole_list:
            return [draw(batch, *shape) for _ in range(LEVELS)]
        return draw(batch, *shape)

    inputs: dict[str, Any] = {}
    for parameter in ("teacher", "student"):
        if parameter in parameters:
            inputs[parameter] = feature(parameter)
    for parameter in ("student_logits", "teacher_logits"):
        if parameter in parameters:
            inputs[parameter] = draw(batch, CLASSES)
    if identical and "teacher" in inputs and "student" in inputs:
        inputs["student"] = apply(
            lambda t: t.detach().clone().requires_grad_(requires_grad), inputs["teacher"]
        )
    if "labels" in parameters:
        labels = torch.randint(CLASSES, (batch,), generator=random)
        teacher = inputs.get("teacher")
        if LOSSES[name].kind == "logit" and isinstance(teacher, Tensor):
            agreeing = torch.arange(batch) % 2 == 0 if not identical else torch.ones(batch, dtype=torch.bool)
            labels = torch.where(agreeing, teacher.detach().argmax(1), labels)
        inputs["labels"] = labels
    if "indices" in parameters:
        inputs["indices"] = torch.randperm(SAMPLES, generator=random)[:batch]
    facts = {"step": 0, "epoch": 0}
    inputs.update({fact: value for fact, value in facts.items() if fact in parameters})
    if name in PROBABILITIES and requires_grad:
        inputs = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}

    made = target
    if inspect.isclass(target):
        made = _made(LOSSES[name], inputs, kwargs, dtype, seed)
        kwargs = {}
    return Case(name, made, inputs, kwargs)


def _made(
    record: Loss, inputs: Mapping[str, Any], kwargs: dict[str, Any], dtype: torch.dtype, seed: int
) -> nn.Module:
    torch.manual_seed(seed)
    target = record.load()
    low = dtype in (torch.float16, torch.bfloat16)
    facts: dict[str, Any] = {"num_samples": SAMPLES, "num_classes": CLASSES}
    facts["sample_labels"] = np.arange(SAMPLES) % CLASSES
    for network in ("student", "teacher"):
        if network in inputs:
            value = inputs[network]
            facts[f"{network}_shape"] = [v.shape for v in value] if isinstance(value, list) else value.shape
            facts[f"{network}_shapes"] = facts[f"{network}_shape"]
    if "teacher" in inputs:
        teachers = inputs["teacher"] if isinstance(inputs["teacher"], list) else [inputs["teacher"]]
        facts["teacher_classifier"] = nn.Linear(teachers[-1].shape[1], CLASSES)
        facts["teacher_norms"] = [nn.BatchNorm2d(t.shape[1]).eval() for t in teachers]
    wanted = {name: facts[name] for name in positional(target.__init__)}
    made: nn.Module = target(**wanted, **kwargs).to(torch.float32 if low else dtype)
    for kept in (facts.get("teacher_classifier"), *facts.get("teacher_norms", ())):
        if kept is not None:
            kept.to(torch.float32 if low else dtype).requires_grad_(False)
    if record.prepares:
        assert isinstance(made, StatefulLoss)
        made.prepare(apply(Tensor.detach, inputs["teacher"]), inputs["labels"])
        made.prepared()
    return made
