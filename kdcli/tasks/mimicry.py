"""What a student has learnt of its teachers, measured without labels: losses, explained variance, agreement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.taps import View
from kdcli.distill.terms import Term, binding_of
from kdcli.distill.trainee import Trainee
from kdcli.losses import loss_of
from kdcli.losses.parts.reduce import alone
from kdcli.tasks.task import Agreement

PRIMARY = ("probe_top1", "explained_variance", "agreement", "distill_loss")
"""The metric by which the best student is chosen: the first of these that there is."""

LABELS = frozenset({"labels", "mixed_labels"})

Sums = Mapping[str, Tensor]


def primary_of(metrics: Mapping[str, float]) -> str:
    """The metric that decides, of those that there are; the first of PRIMARY where there are none."""
    return next((name for name in PRIMARY if name in metrics), PRIMARY[0])


class Mimicry:
    """Sums over held-out images of what a trainee's terms compare; they add up over batches and processes.

    Metrics, of which the ones of single terms, pairs and teachers stand beside only where there are several:
    - `distill_loss`, `distill_loss.<term>`: each term at its job's full weight, whatever its schedule says, a mean
      over the images (of a loss that compares the images of a batch: over the batches), and their sum.
    - `explained_variance`, `explained_variance.<term>.<layer>`: of a feature t and the student's adapted feature s,
      1 - sum (t - a s - b)^2 / sum (t - mean t)^2, over all images and positions; a >= 0 is one number and b one for
      each channel, by least squares, since a loss that normalises leaves scale and offset open. 0 is what a constant
      explains, 1 all. The mean over pairs.
    - `agreement`, `agreement.<teacher>`: how often both give the same class, in percent.

    agrees: the teachers whose logits are compared with the student's. Terms that need labels which the batch lacks,
    that keep something of each training sample, or that don't move the student are left out.
    """

    def __init__(self, trainee: Trainee, agreement: Agreement | None, agrees: Sequence[str]) -> None:
        self.trainee, self.agreement, self.agrees = trainee, agreement, tuple(agrees)
        self.sums: dict[str, Tensor] = {}
        self._images = 0

    @torch.no_grad()
    def update(self, batch: Mapping[str, Any], teachers: Mapping[str, View], step_info: StepInfo) -> None:
        """Take in one batch. teachers: their views of it. The trainee is in evaluation mode."""
        view = self.trainee.view(batch)
        self._images = len(batch["image"])
        with alone():
            for job, mimicker in self.trainee.mimickers.items():
                assert isinstance(mimicker, Mimicker)
                self._job(job, mimicker, view, teachers, batch, step_info)
        for name in self.agrees:
            assert self.agreement is not None
            found = self.agreement.sums(view.outputs, teachers[name].outputs)
            if found is not None:
                self._add(f"agreement.{name}", found)

    def _job(
        self,
        job: str,
        mimicker: Mimicker,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        step_info: StepInfo,
    ) -> None:
        spec = self.trainee.specs[job]
        names = [name for name, loss in mimicker.losses_of(spec).items() if computable(loss.type, batch)]
        views = {name: teachers[name] for name in spec.teachers if name in teachers}
        with ExitStack() as stack:
            for key, term in terms_of(mimicker):
                stack.callback(setattr, term, "observer", term.observer)
                term.observer = self._observer(f"{job}.{key}", term)
            values = mimicker(student, views, batch, step_info, names)
        for key, value in values.items():
            if mimicker.moves_student(key):
                loss = value.detach().double() * spec.loss_weight * self._images
                self._add(f"loss.{job}.{key}", torch.stack([loss, torch.full_like(loss, self._images)]))

    def _observer(self, name: str, term: Term) -> Any:
        def observe(index: int, student: Tensor, teacher: Tensor) -> None:
            adapt = getattr(term.calls[min(index, len(term.calls) - 1)], "adapted", None)
            student = student if adapt is None else adapt(student)
            if term.record.kind == "logit" or student.shape != teacher.shape or student.dim() < 2:
                return
            layer = term.pairs[index].student.label
            self._add(f"variance.{name}.{layer}", moments(student, teacher))

        return observe

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().double().cpu()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def result(self, parts: Sequence[Sums]) -> dict[str, float]:
        """The metrics from the sums of all processes."""
        total: dict[str, Tensor] = {}
        for sums in parts:
            for name, value in sums.items():
                total[name] = total[name] + value if name in total else value
        variance = {name: explained(value) for name, value in _of("variance", total)}
        agreed = {}
        for name, value in _of("agreement", total):
            figures = None if self.agreement is None else self.agreement.result(value)
            if figures is not None:
                agreed[name] = figures["same_top1"]
        losses = {name: float(value[0] / value[1]) for name, value in _of("loss", total)}
        return {
            **_with_parts("explained_variance", variance, lambda one: sum(one) / len(one)),
            **_with_parts("agreement", agreed, lambda one: sum(one) / len(one)),
            **_with_parts("distill_loss", losses, sum),
        }


def computable(loss: str, batch: Mapping[str, Any]) -> bool:
    """Whether a loss can be computed on held-out images: it needs no labels that are not there, nor a place among the
    training samples.
    """
    binding = binding_of(loss_of(loss))
    lacking = {name for name in LABELS & set(binding.inputs) - binding.optional if name not in batch}
    return not lacking and "indices" not in binding.inputs


def terms_of(mimicker: nn.Module) -> Iterator[tuple[str, Term]]:
    """The terms of a method by name: `<teacher>.<loss>`, or `<loss>`."""
    for term in mimicker.modules():
        if isinstance(term, Term):
            yield ".".join(part for part in (term.teacher, term.name) if part), term


def moments(student: Tensor, teacher: Tensor) -> Tensor:
    """[count, sums of s², t² and st over everything, sums of s and of t by channel]: float64 [4 + 2 C].

    student, teacher: [B, C], maps [B, C, H, W], or tokens [B, N, C].
    """
    axis = 2 if student.dim() == 3 else 1
    s, t = (one.detach().double().movedim(axis, -1).flatten(0, -2) for one in (student, teacher))
    alone = torch.stack([s.square().sum(), t.square().sum(), (s * t).sum()])
    return torch.cat([alone.new_tensor([len(s)]), alone, s.sum(0), t.sum(0)])


def explained(sums: Tensor) -> float:
    """The share of the teacher's variance that the student explains, from summed `moments`; 0 where there is none."""
    count, squares = sums[0], sums[1:4]
    s, t = sums[4:].chunk(2)
    of_student, of_teacher, shared = (
        squares - torch.stack([s.square().sum(), t.square().sum(), (s * t).sum()]) / count
    ).tolist()
    # What is left of a constant by rounding is no variance.
    least = 1e-12 * squares
    if of_student <= float(least[0]) or of_teacher <= float(least[1]) or shared <= 0:
        return 0.0
    return min(float(shared**2 / (of_student * of_teacher)), 1.0)


def _of(kind: str, sums: Sums) -> list[tuple[str, Tensor]]:
    return [
        (name.removeprefix(f"{kind}."), value) for name, value in sums.items() if name.startswith(f"{kind}.")
    ]


def _with_parts(name: str, parts: Mapping[str, float], total: Any) -> dict[str, float]:
    if not parts:
        return {}
    each = {f"{name}.{part}": value for part, value in parts.items()} if len(parts) > 1 else {}
    return {name: float(total(list(parts.values()))), **each}
