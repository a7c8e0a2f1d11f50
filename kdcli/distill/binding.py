"""How a loss's signature is used: positional names are bound to tensors, keyword-only ones come from the spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from kdcli.distill.mimickers.mimicker import Requirements
from kdcli.losses import Loss

FEATURES = ("student", "teacher")
BATCH_FIELDS = frozenset({"labels", "indices", "mixed_labels"})
CLOCK_FACTS = frozenset({"step", "epoch"})


@dataclass(frozen=True)
class Binding:
    """The inputs of one loss: facts when it is made, tensors when it is called.

    stateful: it is an nn.Module class that is made from facts. keywords: what it takes from the spec.
    """

    record: Loss
    target: Callable[..., Any]
    stateful: bool
    keywords: frozenset[str]
    inputs: tuple[str, ...]
    optional: frozenset[str]
    facts: tuple[str, ...]
    needs: Requirements

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss reads a teacher's feature or output."""
        return any(name in ("teacher", "teacher_logits") for name in self.inputs)

    @property
    def uses_features(self) -> bool:
        """Whether the loss reads a tapped feature."""
        return any(name in FEATURES for name in self.inputs)

    @property
    def uses_student(self) -> bool:
        """Whether the loss reads the student's feature or output."""
        return any(name in ("student", "student_logits") for name in self.inputs)

    @property
    def sizes_itself(self) -> bool:
        """Whether the loss is made with both shapes, and so joins unlike ones by itself."""
        return any(fact.startswith("student_shape") for fact in self.facts)

    @property
    def weighs_itself(self) -> bool:
        """Whether the loss takes `loss_weight` and multiplies by it; kdcli's own leave that to `compute`."""
        return "loss_weight" in self.keywords

    def weight_of(self, kwargs: Mapping[str, Any]) -> float:
        """`loss_weight` of the spec's kwargs; where they give none the loss's default."""
        given = default_of(self.target, "loss_weight", self.record.weight)
        return float(kwargs.get("loss_weight", given))

    def own(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The kwargs that the loss itself takes: without a `loss_weight` that is multiplied outside."""
        return {name: value for name, value in kwargs.items() if name != "loss_weight" or self.weighs_itself}

    def compute(
        self,
        call: Callable[..., Tensor],
        available: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        weight: float,
    ) -> Tensor:
        """The loss of one call, times its weight: the only place where `loss_weight` is multiplied."""
        loss = call(**bind(self, available), **kwargs)
        return loss if self.weighs_itself else loss * weight

    def make(self, facts: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Callable[..., Tensor]:
        """The callable loss: the function itself, or an instance made from the facts it asks for."""
        if not self.stateful:
            return self.target
        instance = self.target(**{name: facts[name] for name in self.facts}, **kwargs)
        assert isinstance(instance, nn.Module)
        return instance


@cache
def binding_of(record: Loss) -> Binding:
    """Read the signature of a loss function or class once."""
    target = record.load()
    stateful = inspect.isclass(target)
    call = target.forward if isinstance(target, type) and issubclass(target, nn.Module) else target
    parameters = _positional(call)
    facts = tuple(_positional(target)) if isinstance(target, type) else ()
    names = tuple(parameters)
    return Binding(
        record=record,
        target=target,
        stateful=stateful,
        keywords=keyword_names(target),
        inputs=names,
        optional=frozenset(n for n, p in parameters.items() if p.default is not inspect.Parameter.empty),
        facts=facts,
        needs=Requirements(
            student_outputs=frozenset({"logits"} if "student_logits" in names else ()),
            teacher_outputs=frozenset({"logits"} if "teacher_logits" in names else ()),
            batch=BATCH_FIELDS & set(names),
            facts=frozenset(facts),
            prepare=record.prepares,
        ),
    )


def keyword_names(target: Callable[..., Any]) -> frozenset[str]:
    """The kwargs that a loss takes from the spec."""
    return frozenset(
        name
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def default_of(target: Callable[..., Any], name: str, otherwise: Any) -> Any:
    """The default of one kwarg of a loss."""
    parameter = inspect.signature(target).parameters.get(name)
    return (
        otherwise if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
    )


def bind(binding: Binding, available: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call; optional ones only where they are there."""
    return {
        name: available[name]
        for name in binding.inputs
        if name not in binding.optional or available.get(name) is not None
    }


def _positional(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        and name != "self"
    }
