"""A term: one loss of one job, its signature bound to tensors and options, over pairs of features."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.layouts import Form, Layout, read_as
from kdcli.distill.mimickers.mimicker import Requirements, Scaling, StepInfo
from kdcli.distill.standardize import Standardizer
from kdcli.distill.taps import Feature, View, tensors_in
from kdcli.errors import RunError
from kdcli.losses import Loss, loss_of
from kdcli.losses.parts.epochs import LearnedTemperature
from kdcli.losses.parts.logits import standardize
from kdcli.losses.parts.reduce import broadcast_mask, no_scalar, times
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.schema import LossSpec

FEATURES = ("student", "teacher")
BATCH_FIELDS = frozenset({"labels", "indices", "mixed_labels"})


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
    requirements: Requirements

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss reads a teacher's feature or output."""
        return any(name in ("teacher", "teacher_logits") for name in self.inputs)

    @cached_property
    def uses_features(self) -> bool:
        """Whether the loss reads a tapped feature."""
        return any(name in FEATURES for name in self.inputs)

    @cached_property
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
        given = kwargs.get("loss_weight", default_of(self.target, "loss_weight", self.record.weight))
        return self.record.weight if given is None else float(given)

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
        if not isinstance(loss, Tensor):
            found, help = no_scalar(loss)
            raise RunError.of("KD439", f"the loss `{self.target.__name__}` is no scalar: {found}", help)
        return loss if self.weighs_itself else times(loss, weight)

    def make(self, facts: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Callable[..., Tensor]:
        """The callable loss: the function itself, or an instance made from the facts it asks for."""
        if not self.stateful:
            return self.target
        instance = self.target(**{name: facts[name] for name in self.facts}, **kwargs)
        assert isinstance(instance, nn.Module)
        return instance


@cache
def binding_of(record: Loss) -> Binding:
    """The signature of a loss function or class, read once."""
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
        requirements=Requirements(
            student_outputs=frozenset({"logits"} if "student_logits" in names else ()),
            teacher_outputs=frozenset({"logits"} if "teacher_logits" in names else ()),
            batch=BATCH_FIELDS & set(names),
            facts=frozenset(facts),
            prepare=record.prepares,
        ),
    )


def requirements_of_losses(losses: Mapping[str, LossSpec]) -> Requirements:
    """What the losses' signatures ask for."""
    found = Requirements()
    for loss in losses.values():
        found |= binding_of(loss_of(loss.type)).requirements
    return found


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
    """The arguments of one call of a loss, by name; optional ones only where they are there."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSide:
    """One network's side of a pair.

    name: as the user is shown it: the tap with its whole path, and `[i]` where it gives several features. tap: the
    entry of `mimic_name`, and number its place there. shape: on the sample that the networks were shown. element: which
    of the tap's features, None where it gives one. form: which tokens of it are compared, and whether in their grid;
    shape is that of this form, and layout that of the whole feature.
    """

    name: str
    tap: str
    number: int
    shape: torch.Size
    layout: Layout
    element: int | None = None
    form: Form = "all"

    @property
    def label(self) -> str:
        """The name with what is read of it, where that isn't all."""
        return self.name if self.form == "all" or ":patches" in self.name else f"{self.name}:patches"

    def of(self, view: View) -> Tensor:
        """This feature in another view of the network."""
        feature = view.features[self.tap]
        return self.read(feature if isinstance(feature, Tensor) else feature[self.element or 0])

    def read(self, feature: Tensor) -> Tensor:
        """A feature of this side in the form that is compared."""
        return read_as(feature, self.layout, self.form)


@dataclass(frozen=True, slots=True, kw_only=True)
class TapPair:
    """One student feature and the feature that it is compared with; None where the loss needs no teacher."""

    student: TapSide
    teacher: TapSide | None = None


class Term(nn.Module):
    """One loss over its pairs.

    loss_type: its name in the table. teacher: whose features the pairs hold; None where the method needs
    none. calls: the loss as one callable for each pair, or one for all of them. adapters: one for each pair,
    over the student's feature. standardizers: one for each pair, over the teacher's, or none. kwargs: of each call.
    standardizes: logits are standardised first. factors: what the loss of each pair is multiplied by. mean_over_pairs:
    divide the sum over pairs by their number.
    loss_weight: what each call is multiplied by, unless the loss does so itself.
    """

    def __init__(
        self,
        name: str,
        loss_type: str,
        pairs: Sequence[TapPair],
        *,
        binding: Binding,
        calls: Sequence[Callable[..., Tensor]],
        teacher: str | None = None,
        adapters: nn.ModuleList | None = None,
        temperature: LearnedTemperature | None = None,
        standardizers: Sequence[Standardizer] = (),
        kwargs: Mapping[str, Any] | None = None,
        standardizes: bool = False,
        factors: Sequence[float] | None = None,
        mean_over_pairs: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.name = name
        self.loss_type = loss_type
        self.pairs = tuple(pairs)
        self.teacher = teacher
        self.binding = binding
        self.temperature = temperature
        self.adapters = adapters
        self.modules_of_teacher = nn.ModuleList(standardizers) if standardizers else None
        self.calls = list(calls)
        self.modules_of_loss = nn.ModuleList(call for call in self.calls if isinstance(call, nn.Module))
        self.kwargs = dict(kwargs or {})
        self.standardize = standardizes
        self.factors = factors
        self.mean_over_pairs = mean_over_pairs
        self.loss_weight = loss_weight
        self.observer: Callable[[int, Tensor, Tensor], None] | None = None
        """Is shown each pair as it is compared: its number, the student's adapted feature, the teacher's."""

    def forward(
        self,
        students: Sequence[Feature],
        teachers: Sequence[Feature],
        batch: Mapping[str, Any],
        step_info: StepInfo,
        masks: Sequence[Tensor] | None = None,
        *,
        student_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_weights: Tensor | None = None,
        constant: Scaling | None = None,
    ) -> Tensor:
        """The loss as a scalar, before the job's weight.

        students, teachers: the features of the pairs, in order; a layer that ran several times gives a list. A
        loss that reads one network alone is given nothing of the other. masks: one for each pair. student_logits,
        teacher_logits: what the networks give by that name. teacher_weights [B]: how much each sample of this
        teacher counts. constant: the loss is that of a student that answers the same at every place of every image,
        past its adapters: the mean of the teacher's features, scaled so; of losses whose record says `constant`.
        """
        given: dict[str, Any] = {
            "labels": batch.get("labels"),
            "indices": batch.get("indices"),
            "mixed_labels": batch.get("mixed_labels"),
            "student_logits": student_logits,
            "teacher_logits": teacher_logits,
            "step": step_info.stage_step,
            "epoch": int(step_info.epoch),
            "teacher_weights": teacher_weights,
        }
        extra = self.kwargs
        if self.temperature is not None:
            extra = {**extra, "T": self.temperature(step_info.epoch)}
        if not self.binding.uses_features:
            return self.binding.compute(self.calls[0], given, extra, self.loss_weight)
        # A loss that reads one network alone is given its features on both sides.
        sides = [
            (p.student if students else p.teacher, p.teacher if teachers else p.student) for p in self.pairs
        ]
        pairs = [
            (s if own is None else own.read(s), t if other is None else other.read(t))
            for (own, other), (s, t) in zip(
                sides, flat_pairs(students or teachers, teachers or students), strict=True
            )
        ]
        ready = [self._ready(index, s, t) for index, (s, t) in enumerate(pairs)]
        if constant is not None:
            return self._cost_of_constant(constant, ready, given, extra, masks)
        if self.observer is not None:
            for index, pair in enumerate(ready):
                self.observer(index, *pair)
        if self.record.whole_list:
            given["student"], given["teacher"] = [s for s, _ in ready], [t for _, t in ready]
            given["mask"] = masks
            return self.binding.compute(self.calls[0], given, extra, self.loss_weight)
        losses = []
        for index, (s, t) in enumerate(ready):
            given["student"], given["teacher"] = s, t
            given["mask"] = None if masks is None else masks[index]
            call = self.calls[min(index, len(self.calls) - 1)]
            losses.append(self.binding.compute(call, given, extra, self.loss_weight))
        return self._over_pairs(losses)

    def _over_pairs(self, losses: Sequence[Tensor]) -> Tensor:
        """The losses of the pairs as one."""
        if self.factors is not None:
            losses = [loss * factor for loss, factor in zip(losses, self.factors, strict=False)]
        if len(losses) == 1:
            return losses[0] + 0.0  # as a sum does it: -0.0 becomes 0.0
        total = torch.stack(list(losses)).sum(0)
        return total / len(losses) if self.mean_over_pairs else total

    def _cost_of_constant(
        self,
        scaling: Scaling,
        ready: Sequence[tuple[Tensor, Tensor]],
        given: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        masks: Sequence[Tensor] | None,
    ) -> Tensor:
        """The loss of the pairs where the student's features are the teacher's mean; given: what the loss may read."""
        losses = []
        for index, (s, t) in enumerate(ready):
            call = self.calls[min(index, len(self.calls) - 1)]
            mask, side = None if masks is None else masks[index], self.pairs[index].teacher
            axis = 2 if t.dim() == 3 else 1
            if side is not None and t.dim() == 3 and side.form == "all":
                axis = side.layout.channel_axis or axis
            settled = not self.standardizers or self.standardizers[index].is_ready
            # Until then the batch's own mean is taken away: of the features as they are there is none left.
            scaled = scaling if settled or scaling != "none" else "image"
            answer = constant_answer(t, axis, scaled, mask, of_all=not settled)
            if self.binding.stateful:
                module = self.modules_of_loss[min(index, len(self.modules_of_loss) - 1)]
                assert isinstance(module, StatefulLoss)
                losses.append(module.of_answer(answer, t) * self.loss_weight)
                continue
            if s.dim() == t.dim() == 4 and s.shape[2:] != t.shape[2:]:
                # A loss that joins unlike sizes itself: by the student's size is decided what is averaged.
                answer = answer[:, :, :1, :1].expand(*answer.shape[:2], *s.shape[2:])
            values = {**given, "student": answer, "teacher": t, "mask": mask}
            losses.append(self.binding.compute(call, values, kwargs, self.loss_weight))
        return self._over_pairs(losses)

    @property
    def record(self) -> Loss:
        """The loss's record in the table."""
        return self.binding.record

    @property
    def stateful(self) -> list[StatefulLoss]:
        """Its losses that are modules with hooks, one for each pair, or one for all of them."""
        return [call for call in self.calls if isinstance(call, StatefulLoss)]

    @property
    def standardizers(self) -> list[Standardizer]:
        """What standardises the teacher's features, one for each pair; empty where nothing does."""
        return [one for one in self.modules_of_teacher or () if isinstance(one, Standardizer)]

    def adapter_shown(self, index: int) -> str:
        """What joins the pair of this number, in words; empty where nothing does."""
        adapter = None if self.adapters is None else self.adapters[index]
        if adapter is None or isinstance(adapter, nn.Identity):
            return ""
        return str(getattr(adapter, "what", type(adapter).__name__))

    def teacher_shown(self, index: int) -> str:
        """The teacher's layer of the pair of this number, with how its features are standardised; empty without one."""
        side = self.pairs[index].teacher
        if side is None:
            return ""
        return f"{side.label} ({self.standardizers[index].how})" if self.standardizers else side.label

    def call_on(self, other: Term, index: int) -> nn.Module | None:
        """The module of this loss that reads the same teacher layer as another term's number `index`."""
        teacher_side = other.pairs[index].teacher
        if self is other or self.teacher != other.teacher or teacher_side is None:
            return None
        for pair, call in zip(self.pairs, self.calls, strict=False):
            if pair.teacher is not None and pair.teacher.name == teacher_side.name:
                return call if isinstance(call, nn.Module) else None
        return None

    def _ready(self, index: int, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.adapters is not None:
            student = self.adapters[index](student)
        if self.modules_of_teacher is not None:
            teacher = self.modules_of_teacher[index](teacher)
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        return student, teacher


def constant_answer(
    teacher: Tensor, axis: int, scaling: Scaling, mask: Tensor | None = None, *, of_all: bool = False
) -> Tensor:
    """What a student says that answers the same at every place of every image: the mean of the teacher's feature.

    teacher: [B, ...], B of two or more, channels at `axis`; the answer has its shape. scaling: the mean is of the
    feature as it is (`none`), or of one that is divided by its length first, that of each image as a whole (`image`)
    or at each place (`place`). mask: as `broadcast_mask` takes it; weighs the places.

    A mean of few images is nearer to each of them than the mean of all images is. So it is moved away from each, by
    as much as makes a squared distance to it on average that to the mean of all.
    """
    x = teacher.detach().float()
    if scaling == "image":
        x = nn.functional.normalize(x.flatten(1), dim=1).view(x.shape)
    elif scaling == "place":
        x = nn.functional.normalize(x, dim=axis)
    weights = torch.ones_like(x) if mask is None else broadcast_mask(mask, x)
    places = [number for number in range(1, x.dim()) if number != axis]
    sums, counts = x * weights, weights
    if places:
        sums, counts = sums.sum(places, keepdim=True), counts.sum(places, keepdim=True)
    seen = counts > 0
    mean = sums.sum(0, keepdim=True) / counts.sum(0, keepdim=True).clamp_min(1e-12)
    if of_all:
        return mean.expand(x.shape)
    of_image = torch.where(seen, sums / counts.clamp_min(1e-12), mean)
    images = seen.sum(0, keepdim=True).clamp_min(2).float()
    answer = mean - ((images / (images - 1)).sqrt() - 1) * (of_image - mean)
    return answer.expand(x.shape)


def sides_of(view: View, taps: Iterable[str], first: int = 0) -> list[TapSide]:
    """The tapped features of a view as sides of pairs, in order. first: place of the first tap in `mimic_name`."""
    sides = []
    for number, tap in enumerate(taps, first):
        found = list(tensors_in(view.features[tap]))
        name = view.names.get(tap, tap)
        for element, (tensor, layout) in enumerate(zip(found, view.layouts_of(tap), strict=True)):
            single = len(found) == 1
            sides.append(
                TapSide(
                    name=name if single else f"{name}[{element}]",
                    tap=tap,
                    number=number,
                    shape=tensor.shape,
                    layout=layout,
                    element=None if single else element,
                )
            )
    return sides


def flat_pairs(students: Sequence[Feature], teachers: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
    """Pairs in order; a layer that ran several times gives as many pairs."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for student, teacher in zip(students, teachers, strict=True):
        if isinstance(student, Tensor) and isinstance(teacher, Tensor):
            pairs.append((student, teacher))
        else:
            one = [student] if isinstance(student, Tensor) else student
            other = [teacher] if isinstance(teacher, Tensor) else teacher
            pairs.extend(zip(one, other, strict=True))
    return pairs


def schedule_weight(
    step: int, *, start: int, end: int | None, decay: str | None, warm_up: int
) -> float | None:
    """The factor of a loss at a step of its stage; None where it is not in force.

    While fewer than `warm_up` steps have passed since `start` it is their share; `decay` lets it fall
    from 1 at `start` to 0 at `end`.
    """
    if step < start or (end is not None and step >= end):
        return None
    since = step - start
    factor = since / warm_up if since < warm_up else 1.0
    if decay is not None:
        assert end is not None, "the parser asks for end_iter beside decay"
        done = since / (end - start)
        factor *= 1.0 - done if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return factor
