"""A term: one loss of one job against one teacher, with its adapters and options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.adapters import build_adapter, shown, unjoinable, what_joins
from kdcli.distill.binding import Binding, binding_of
from kdcli.distill.labels import is_logits
from kdcli.distill.mimickers.mimicker import Clock, Setting, flat_pairs
from kdcli.distill.tapping import check_taps, joinable
from kdcli.distill.taps import Feature, View, elements_of, tensors_in
from kdcli.distill.unlike_classes import both_logits, unlike_classes
from kdcli.errors import Findings, KdError, SpecError, SpecPath
from kdcli.losses import loss_of
from kdcli.losses.parts.logits import standardize
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.losses.parts.temperature import LearnedTemperature
from kdcli.spec.schema import Job, LossSpec, Temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One pair of a term, for the user's eye; a term without teacher leaves that side empty."""

    student_layer: str
    student_shape: str
    adapter: str
    teacher_layer: str
    teacher_shape: str


class Term(nn.Module):
    """One loss, bound to features by name.

    loss: its spec with defaults filled in. teacher: whose view it reads; None where the method needs
    none. student_taps and teacher_taps name the features in pairs. mean_over_pairs: divide the sum
    over pairs by their number.
    """

    def __init__(self, setting: Setting, name: str, loss: LossSpec, teacher: str | None) -> None:
        super().__init__()
        self.name = name
        self.path: SpecPath = (*setting.path, "losses", name)
        self.teacher = teacher
        job = setting.job
        self.student_taps = tuple(job.student.mimic_name)
        self.teacher_taps = tuple(job.teachers[teacher].mimic_name) if teacher is not None else ()
        self.loss_type = loss.type
        self.record = loss_of(loss.type)
        self.binding: Binding = binding_of(self.record)
        self.standardize = self._standardizes(job, loss)
        self.mean_over_pairs = (
            self.record.mean_over_pairs if loss.over_pairs is None else loss.over_pairs == "mean"
        )
        kwargs = {**self.record.preset, **loss.kwargs}
        keywords = self.binding.keywords
        temperature = self._temperature_of(job, loss, "T" in keywords)
        self.temperature: LearnedTemperature | None = None
        if isinstance(temperature, Temperature):
            if self.binding.stateful:
                raise self._no_option(job, loss.temperature is not None, "temperature", "can't learn one")
            if "from_logits" in keywords and not kwargs.get("from_logits"):
                why = "has a temperature only with `from_logits: true`"
                raise self._no_option(job, loss.temperature is not None, "temperature", why)
            self.temperature = LearnedTemperature(
                start=temperature.start, range=temperature.range, cosine_epochs=temperature.cosine_epochs
            )
        elif temperature is not None:
            kwargs.setdefault("T", temperature)
        if self.standardize and "standardize" in keywords:
            kwargs["standardize"], self.standardize = True, False
        if self.binding.uses_features:
            check_taps(setting, self.loss_type, self.student_taps, teacher, self.teacher_taps)
        self._compare_outputs(setting)
        self.adapters = self._adapters(setting, loss)
        self.loss_weight = self.binding.weight_of(kwargs)
        kwargs = self.binding.own(kwargs)
        self.kwargs = {} if self.binding.stateful else kwargs
        self.calls: list[Callable[..., Tensor]] = self._calls(setting, kwargs)
        self.modules_of_loss = nn.ModuleList(call for call in self.calls if isinstance(call, nn.Module))
        self.rows = self._rows(setting)

    def forward(
        self,
        student: View,
        teacher: View | None,
        batch: Mapping[str, Any],
        clock: Clock,
        *,
        students: Sequence[Feature] | None = None,
        teachers: Sequence[Feature] | None = None,
        masks: Sequence[Tensor] | None = None,
        factors: Sequence[float] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        teacher_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss as a scalar, before the job's weight.

        students, teachers: features that the mimicker made itself, in place of the tapped ones.
        masks: one for each pair. factors: what the loss of each pair is multiplied by. kwargs: options that
        the mimicker sets, over the spec's. teacher_weights [B]: how much each sample of this teacher counts.
        """
        given: dict[str, Any] = {
            "labels": batch.get("labels"),
            "indices": batch.get("indices"),
            "mixed_labels": batch.get("mixed_labels"),
            "student_logits": student.outputs.get("logits"),
            "teacher_logits": None if teacher is None else teacher.outputs.get("logits"),
            "step": clock.stage_step,
            "epoch": int(clock.epoch),
            "teacher_weights": teacher_weights,
        }
        extra = {**self.kwargs, **(kwargs or {})}
        if self.temperature is not None:
            extra["T"] = self.temperature(clock.epoch)
        if not self.binding.uses_features:
            return self.binding.compute(self.calls[0], given, extra, self.loss_weight)
        if teachers is None and teacher is not None:
            teachers = [teacher.features[tap] for tap in self.teacher_taps]
        if students is None:
            # A loss that reads the teacher alone is in force where no student runs.
            read = "student" in self.binding.inputs or teachers is None
            students = [student.features[tap] for tap in self.student_taps] if read else teachers
            assert students is not None
        pairs = (
            flat_pairs(students, teachers)
            if teachers is not None
            else [(s, s) for s in tensors_in(list(students))]
        )
        ready = [self._ready(index, s, t) for index, (s, t) in enumerate(pairs)]
        if self.record.whole_list:
            given["student"], given["teacher"] = [s for s, _ in ready], [t for _, t in ready]
            given["mask"] = masks
            return self.binding.compute(self.calls[0], given, extra, self.loss_weight)
        losses = []
        for index, (s, t) in enumerate(ready):
            given["student"], given["teacher"] = s, t
            given["mask"] = None if masks is None else masks[index]
            call = self.calls[min(index, len(self.calls) - 1)]
            loss = self.binding.compute(call, given, extra, self.loss_weight)
            losses.append(loss if factors is None else loss * factors[index])
        total = torch.stack(losses).sum(0)
        return total / len(losses) if self.mean_over_pairs else total

    def _rows(self, setting: Setting) -> tuple[PairRow, ...]:
        rows = []
        for index, layer in enumerate(self.student_taps):
            theirs = self.teacher_taps[index] if index < len(self.teacher_taps) else ""
            view = setting.teachers[self.teacher] if self.teacher is not None else None
            adapter = (
                self.adapters[index] if self.adapters is not None and index < len(self.adapters) else None
            )
            rows.append(
                PairRow(
                    student_layer=layer,
                    student_shape=shown_feature(setting.student.features[layer]),
                    adapter=""
                    if adapter is None or isinstance(adapter, nn.Identity)
                    else getattr(adapter, "what", type(adapter).__name__),
                    teacher_layer=theirs,
                    teacher_shape=shown_feature(view.features[theirs]) if view is not None and theirs else "",
                )
            )
        return tuple(rows)

    @property
    def stateful(self) -> list[StatefulLoss]:
        """Its losses that are modules with hooks, one for each pair, or one for all of them."""
        return [call for call in self.calls if isinstance(call, StatefulLoss)]

    def call_on(self, other: Term, index: int) -> nn.Module | None:
        """The module of this loss that reads the same teacher layer as another term's number `index`."""
        tap = other.teacher_taps[index]
        if self is other or self.teacher != other.teacher or tap not in self.teacher_taps:
            return None
        call = self.calls[min(self.teacher_taps.index(tap), len(self.calls) - 1)]
        return call if isinstance(call, nn.Module) else None

    def _temperature_of(self, job: Job, loss: LossSpec, has_one: bool) -> float | Temperature | None:
        """The loss's own temperature, else the job's where it is meant for this loss.

        Raises SpecError KD452 where a temperature is given and no loss takes it.
        """
        if loss.temperature is not None:
            if not has_one:
                raise self._no_option(job, True, "temperature", "has no temperature")
            return loss.temperature
        if job.temperature is None or self.record.softened:
            return job.temperature
        if not any(loss_of(other.type).softened for other in job.losses.values()):
            why = "has its own kind of `T`: set it in `kwargs`" if has_one else "has no temperature"
            raise self._no_option(job, False, "temperature", why)
        return None

    def _standardizes(self, job: Job, loss: LossSpec) -> bool:
        """Whether logits are standardised: as the loss says, else the job where this compares logits.

        Raises SpecError KD452 where no loss compares logits.
        """
        asked = job.standardize if loss.standardize is None else loss.standardize
        if not asked or self.record.kind == "logit":
            return asked
        on_loss = loss.standardize is not None
        if on_loss or not any(loss_of(other.type).kind == "logit" for other in job.losses.values()):
            raise self._no_option(job, on_loss, "standardize", "compares no logits")
        return False

    def _no_option(self, job: Job, on_loss: bool, option: str, why: str) -> SpecError:
        path = (*self.path, option) if on_loss else (*self.path[:3], option)
        return SpecError.at(
            path, "KD452", f"`{option}` does nothing here: `{self.loss_type}` {why}", on_key=True
        )

    def _ready(self, index: int, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.adapters is not None:
            student = self.adapters[index](student)
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        return student, teacher

    def _adapters(self, setting: Setting, loss: LossSpec) -> nn.ModuleList | None:
        spec = loss.adapter or setting.job.adapter
        if self.teacher is None or not self.binding.uses_features:
            return None
        pairs = self._probe_pairs(setting)
        wrong = Findings()
        if spec is not None:
            built: list[nn.Module] = []
            where = (*(self.path if loss.adapter else setting.path), "adapter")
            for s, t in pairs:
                with wrong.part():
                    same = s.shape[1:] == t.shape[1:] and spec.type == "auto"
                    if spec.type == "auto" and not same and self._on_logits(setting, s, t):
                        what = "`auto` makes no classes of others (`{type: linear}` learns a map between the two)"
                        raise unlike_classes(setting, self.teacher, s, t, where, what)
                    help = joinable(setting, self.teacher)
                    built.append(
                        nn.Identity() if same else build_adapter(spec, s.shape, t.shape, where, help)
                    )
            wrong.raise_errors()
            return nn.ModuleList(built)
        if self.binding.sizes_itself or self.record.unlike_shapes:
            return None
        for index, (s, t) in enumerate(pairs):
            with wrong.part():
                if s.shape != t.shape:
                    raise self._mismatch(setting, index, s, t)
        wrong.raise_errors()
        return None

    def _mismatch(self, setting: Setting, index: int, student: Tensor, teacher: Tensor) -> SpecError:
        assert self.teacher is not None
        which = min(index, len(self.student_taps) - 1)
        if self._on_logits(setting, student, teacher):
            path = (*setting.path, "teachers", self.teacher, "mimic_name")
            what = f"{self.loss_type} compares them class by class"
            return unlike_classes(setting, self.teacher, student, teacher, path, what)
        why = unjoinable(student.shape, teacher.shape)
        if why is None:
            help = f"add this line to the job ({what_joins(student.shape, teacher.shape)})\nadapter: auto"
        else:
            help = f"no adapter joins them: {why}\n{joinable(setting, self.teacher)}"
        if self.record.kind == "logit" and student.dim() == teacher.dim() == 2:
            help = "logits are compared class by class: name `logits` of both networks"
        return SpecError.at(
            (*setting.path, "student", "mimic_name", which),
            "KD430",
            f"`{self.student_taps[which]}` of the student is {shown(student.shape)}, "
            f"`{self.teacher_taps[which]}` of {self.teacher} is {shown(teacher.shape)}: "
            f"{self.loss_type} compares equal shapes",
            help,
        )

    def _on_logits(self, setting: Setting, student: Tensor, teacher: Tensor) -> bool:
        assert self.teacher is not None
        return both_logits(
            setting, self.teacher, student, teacher, read_as_logits=self.record.kind == "logit"
        )

    def _compare_outputs(self, setting: Setting) -> None:
        """Raise SpecError KD470 where the loss reads both networks' logits beside the features, of two widths."""
        if self.teacher is None or not {"student_logits", "teacher_logits"} <= set(self.binding.inputs):
            return
        ours, theirs = (
            view.outputs.get("logits") for view in (setting.student, setting.teachers[self.teacher])
        )
        if is_logits(ours) and is_logits(theirs) and ours.shape[1] != theirs.shape[1]:
            path = (*setting.path, "teachers", self.teacher)
            what = f"{self.loss_type} compares them class by class, beside the features"
            raise unlike_classes(setting, self.teacher, ours, theirs, path, what)

    def _probe_pairs(self, setting: Setting) -> list[tuple[Tensor, Tensor]]:
        assert self.teacher is not None
        view = setting.teachers[self.teacher]
        try:
            return flat_pairs(
                [setting.student.features[tap] for tap in self.student_taps],
                [view.features[tap] for tap in self.teacher_taps],
            )
        except ValueError:
            taps = list(zip(self.student_taps, self.teacher_taps, strict=False))
            counts = [
                (len(list(tensors_in(setting.student.features[s]))), len(list(tensors_in(view.features[t]))))
                for s, t in taps
            ]
            index = next((i for i, (ours, theirs) in enumerate(counts) if ours != theirs), 0)
            sides = zip(taps[index], counts[index], ("the student", self.teacher), strict=True)
            several = [f"{elements_of(tap, count)} of {whose}" for tap, count, whose in sides if count > 1]
            raise SpecError.at(
                (*setting.path, "student", "mimic_name", index),
                "KD431",
                f"`{taps[index][0]}` of the student gives {counts[index][0]} feature(s), "
                f"`{taps[index][1]}` of {self.teacher} {counts[index][1]}",
                f"pick single ones: {'; '.join(several)}" if several else "pick single ones with `path[i]`",
            ) from None

    def _calls(self, setting: Setting, kwargs: Mapping[str, Any]) -> list[Callable[..., Tensor]]:
        facts: dict[str, Any] = {"num_samples": setting.num_samples, "num_classes": setting.num_classes}
        if "teacher_classifier" in self.binding.facts:
            assert self.teacher is not None
            facts["teacher_classifier"] = setting.teacher_classifier(self.teacher)
        if "teacher_norms" in self.binding.facts:
            assert self.teacher is not None
            facts["teacher_norms"] = [setting.teacher_norm(self.teacher, tap) for tap in self.teacher_taps]
        if not self.binding.stateful or not self.binding.uses_features:
            return [self.binding.make(facts, kwargs)]
        if self.teacher is None:
            students = list(tensors_in([setting.student.features[tap] for tap in self.student_taps]))
            pairs = [(s, s) for s in students]
        else:
            pairs = self._probe_pairs(setting)
        if self.adapters is not None:
            pairs = [(t, t) for _, t in pairs]
        names: SpecPath = (*setting.path, "student", "mimic_name")
        if self.record.whole_list:
            facts["student_shape"] = [s.shape for s, _ in pairs]
            facts["teacher_shape"] = [t.shape for _, t in pairs]
            with placed(names):
                return [self.binding.make(facts, kwargs)]
        calls = []
        for index, (s, t) in enumerate(pairs):
            with placed((*names, min(index, len(self.student_taps) - 1))):
                shapes = {"student_shape": s.shape, "teacher_shape": t.shape}
                calls.append(self.binding.make({**facts, **shapes}, kwargs))
        return calls


@contextmanager
def placed(path: SpecPath) -> Iterator[None]:
    """An error without a place gets this one."""
    try:
        yield
    except KdError as error:
        raise SpecError(replace(d, path=d.path or path) for d in error.diagnostics) from error


def shown_feature(feature: Feature) -> str:
    """A feature's shape as the user reads it; of a list, each."""
    return ", ".join(shown(tensor.shape) for tensor in tensors_in(feature))


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
