"""From a job to its terms: pairs of features, temperature, standardisation, adapters, the losses themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from kdcli.distill.adapters import Shape, build_adapter, shown, unjoinable, what_joins
from kdcli.distill.layouts import Form, shape_as
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.distill.standardize import Standardizer
from kdcli.distill.tap_checks import check_taps, joinable, known_layouts
from kdcli.distill.taps import View, elements_of
from kdcli.distill.teacher import NO_LABELS, is_logits
from kdcli.distill.terms import Binding, TapPair, TapSide, Term, binding_of, default_of
from kdcli.errors import Findings, KdError, SpecError, SpecPath
from kdcli.losses import Loss, loss_of
from kdcli.losses.parts.epochs import LearnedTemperature
from kdcli.losses.parts.inputs import places_in
from kdcli.spec.schema import AdapterSpec, Job, LossSpec, Temperature
from kdcli.spec.tables import Standardization


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLoss:
    """One loss of a job before it is built: what the spec says of it, and of which networks.

    loss: its spec with the method's defaults filled in. teacher: None where the method needs none.
    """

    context: MimicContext
    name: str
    loss: LossSpec
    teacher: str | None

    @property
    def path(self) -> SpecPath:
        """The loss's place in the spec."""
        return (*self.context.path, "losses", self.name)

    @property
    def binding(self) -> Binding:
        """How the loss's signature is bound to tensors and options."""
        return binding_of(self.record)

    @property
    def record(self) -> Loss:
        """The loss's record in the table."""
        return loss_of(self.loss.type)

    @property
    def view(self) -> View:
        """The teacher's view of the sample batch."""
        assert self.teacher is not None
        return self.context.teachers[self.teacher]

    def no_option(self, on_loss: bool, option: str, why: str) -> SpecError:
        """The error KD452 for an option that does nothing. on_loss: it stands at the loss, else at the job."""
        path = (*self.path, option) if on_loss else (*self.context.path, option)
        return SpecError.at(
            path, "KD452", f"`{option}` does nothing here: `{self.loss.type}` {why}", on_key=True
        )

    def unlike_classes(self, student: Shape, teacher: Shape, path: SpecPath, what: str) -> SpecError:
        """The error KD470 for logits of two widths. what: which loss or adapter compares them."""
        assert self.teacher is not None
        message = (
            f"the student's logits are {shown(student)}, those of {self.teacher} {shown(teacher)}: {what}"
        )
        return SpecError.at(
            path, "KD470", message, way_out(self.context, self.teacher, student[1], teacher[1])
        )


def build_term(
    context: MimicContext,
    name: str,
    loss: LossSpec,
    teacher: str | None,
    students: Sequence[TapSide],
    teachers: Sequence[TapSide] = (),
    *,
    adapted: bool = True,
    over_pairs: Literal["mean", "sum"] | None = None,
    options: Mapping[str, Any] | None = None,
    factors: Sequence[float] | None = None,
) -> Term:
    """The term of one loss of a job, over these sides in pairs; raises SpecError with all that is wrong with it.

    loss: its spec with defaults filled in. adapted: whether the job's adapter is for these features. over_pairs:
    what holds where the loss says nothing; None goes by its type. options: kwargs that the method sets, over
    the spec's. factors: see Term.
    """
    job_loss = JobLoss(context=context, name=name, loss=loss, teacher=teacher)
    binding = job_loss.binding
    standardizes = standardizes_of(job_loss)
    kwargs = {**job_loss.record.preset, **loss.kwargs}
    temperature = temperature_of(job_loss, from_logits=bool(kwargs.get("from_logits")))
    learned: LearnedTemperature | None = None
    if isinstance(temperature, Temperature):
        learned = LearnedTemperature(
            start=temperature.start, range=temperature.range, cosine_epochs=temperature.cosine_epochs
        )
    elif temperature is not None:
        kwargs.setdefault("T", temperature)
    how = None if teacher is None else _standardization(job_loss)
    if standardizes and "standardize" in job_loss.binding.keywords:
        kwargs["standardize"], standardizes = True, False
    if job_loss.record.kind == "logit":
        students = [_read_as_logits(side, context.student) for side in students]
        teachers = [_read_as_logits(side, job_loss.view) for side in teachers]
    if binding.uses_features:
        known_layouts(context, students, teacher, teachers)
    pairs = (
        [TapPair(student=side) for side in students]
        if teacher is None
        else _paired(job_loss, students, teachers)
    )
    if binding.uses_features:
        pairs = _read(job_loss, pairs)
        check_taps(
            context,
            loss.type,
            [pair.student for pair in pairs],
            teacher,
            [pair.teacher for pair in pairs if pair.teacher is not None],
        )
    _compare_outputs(job_loss)
    adapters: nn.ModuleList | None = None
    if teacher is not None and binding.uses_features:
        adapters = _adapters(
            job_loss, pairs, loss.adapter or (context.job.adapter if adapted else None), adapted
        )
    own = binding.own(kwargs)
    combined = loss.over_pairs or over_pairs or ("mean" if job_loss.record.mean_over_pairs else "sum")
    return Term(
        name,
        loss.type,
        pairs,
        binding=binding,
        calls=_calls(job_loss, pairs, adapters is not None, own),
        teacher=teacher,
        adapters=adapters,
        temperature=learned,
        standardizers=[
            Standardizer(pair.teacher.shape, how, context.job.standardize_images)
            for pair in pairs
            if how is not None and pair.teacher is not None
        ],
        kwargs={} if binding.stateful else {**own, **(options or {})},
        standardizes=standardizes,
        factors=factors,
        mean_over_pairs=combined == "mean",
        loss_weight=binding.weight_of(kwargs),
    )


def temperature_of(job_loss: JobLoss, *, from_logits: bool) -> float | Temperature | None:
    """The loss's own temperature, else the job's where it is meant for this loss.

    from_logits: whether the loss is told to read logits. Raises SpecError KD452 where a temperature is given
    and no loss takes it, or one is to be learned and the loss can't.
    """
    loss, job = job_loss.loss, job_loss.context.job
    has_one, on_loss = "T" in job_loss.binding.keywords, loss.temperature is not None
    if on_loss and not has_one:
        raise job_loss.no_option(True, "temperature", "has no temperature")
    temperature = loss.temperature if on_loss else job.temperature
    if temperature is None:
        return None
    if not on_loss and not job_loss.record.softened:
        if not any(loss_of(other.type).softened for other in job.losses.values()):
            why = "does not soften logits by its `T`: set `kwargs.T`" if has_one else "has no temperature"
            raise job_loss.no_option(False, "temperature", why)
        return None
    if isinstance(temperature, Temperature):
        if job_loss.binding.stateful:
            raise job_loss.no_option(on_loss, "temperature", "can't learn one")
        if "from_logits" in job_loss.binding.keywords and not from_logits:
            why = "has a temperature only with `from_logits: true`"
            raise job_loss.no_option(on_loss, "temperature", why)
    return temperature


def standardizes_of(job_loss: JobLoss) -> bool:
    """Whether logits are standardised: as the loss says, else the job where this compares logits.

    Raises SpecError KD452 where no loss compares logits.
    """
    loss, job = job_loss.loss, job_loss.context.job
    asked = job.standardize if loss.standardize is None else loss.standardize
    if not isinstance(asked, bool):
        return False  # features are meant
    if not asked or job_loss.record.kind == "logit":
        return asked
    on_loss = loss.standardize is not None
    if on_loss or not any(loss_of(other.type).kind == "logit" for other in job.losses.values()):
        why = "compares no logits (of features say how: `standardize: phi_s`)"
        raise job_loss.no_option(on_loss, "standardize", why)
    return False


def _standardization(job_loss: JobLoss) -> Standardization | None:
    """How the teacher's features are standardised before this loss, else None.

    Raises SpecError KD452 where that can't be, or (said of the job) is for none of its losses.
    """
    loss, job = job_loss.loss, job_loss.context.job
    on_loss = loss.standardize is not None
    asked = loss.standardize if on_loss else job.standardize
    if isinstance(asked, bool):
        return None
    if job.mimic_ins_type != "base":
        why = f"is computed by `{job.mimic_ins_type}`, and features are standardised for `base` alone"
        raise job_loss.no_option(on_loss, "standardize", why)
    how = standardization_of(job, loss)
    if how is None and (on_loss or not any(_takes_standardized(o) for o in job.losses.values())):
        logits = job_loss.record.kind == "logit"
        why = (
            "compares logits, which `standardize: true` is for"
            if logits
            else "takes the teacher's values as they are"
        )
        raise job_loss.no_option(on_loss, "standardize", why)
    return how


def _takes_standardized(loss: LossSpec) -> bool:
    record = loss_of(loss.type)
    return record.standardizes and record.kind in ("feature", "relational")


def standardization_of(job: Job, loss: LossSpec) -> Standardization | None:
    """How the teachers' features are standardised for a loss: as it says, else the job; None where they aren't."""
    asked = job.standardize if loss.standardize is None else loss.standardize
    return None if isinstance(asked, bool) or not _takes_standardized(loss) else asked


def _read_as_logits(side: TapSide, view: View) -> TapSide:
    """The side as a loss on logits reads it: a vector of the shape of the network's logits holds logits."""
    logits = view.outputs.get("logits")
    if side.layout.kind != "vector" or not is_logits(logits) or side.shape != logits.shape:
        return side
    return replace(side, layout=replace(side.layout, kind="logits", known_from="spec"))


def _compare_outputs(job_loss: JobLoss) -> None:
    """Raise SpecError KD470 where the loss reads both networks' logits beside the features, of two widths."""
    if job_loss.teacher is None or not {"student_logits", "teacher_logits"} <= set(job_loss.binding.inputs):
        return
    student, teacher = (view.outputs.get("logits") for view in (job_loss.context.student, job_loss.view))
    if is_logits(student) and is_logits(teacher) and student.shape[1] != teacher.shape[1]:
        path = (*job_loss.context.path, "teachers", job_loss.teacher)
        what = f"{job_loss.loss.type} compares them class by class, beside the features"
        raise job_loss.unlike_classes(student.shape, teacher.shape, path, what)


def _paired(job_loss: JobLoss, students: Sequence[TapSide], teachers: Sequence[TapSide]) -> list[TapPair]:
    """The sides in pairs; raises SpecError KD431 where two taps give unequally many features."""
    student_counts, teacher_counts = (
        Counter(side.number for side in sides) for sides in (students, teachers)
    )
    uneven = [
        number
        for number in sorted({*student_counts, *teacher_counts})
        if student_counts[number] != teacher_counts[number]
    ]
    if not uneven or not job_loss.binding.uses_features:
        return [TapPair(student=s, teacher=t) for s, t in zip(students, teachers, strict=False)]
    number = uneven[0]
    counts = student_counts[number], teacher_counts[number]
    taps = [next(side.tap for side in sides if side.number == number) for sides in (students, teachers)]
    sides = zip(taps, counts, ("the student", job_loss.teacher), strict=True)
    several = [f"{elements_of(tap, count)} of {whose}" for tap, count, whose in sides if count > 1]
    raise SpecError.at(
        (*job_loss.context.path, "student", "mimic_name", number),
        "KD431",
        f"`{taps[0]}` of the student gives {counts[0]} feature(s), `{taps[1]}` of {job_loss.teacher} {counts[1]}",
        f"pick single ones: {'; '.join(several)}" if several else "pick single ones with `path[i]`",
    )


def _adapters(
    job_loss: JobLoss, pairs: Sequence[TapPair], spec: AdapterSpec | None, adapted: bool
) -> nn.ModuleList | None:
    """An adapter for each pair, as the spec says, else the loss's own; None where every pair must fit as it is.

    adapted: whether the features are such as adapters are for.
    """
    usual = job_loss.record.adapter
    if spec is None and usual is not None and adapted and not any(_hold_logits(pair) for pair in pairs):
        spec = AdapterSpec(type=usual)
    if spec is None and (job_loss.binding.sizes_itself or job_loss.record.unlike_shapes):
        return None
    assert job_loss.teacher is not None
    path = (*(job_loss.path if job_loss.loss.adapter else job_loss.context.path), "adapter")
    wrong = Findings()
    built: list[nn.Module] = []
    for pair in pairs:
        assert pair.teacher is not None
        student_shape, teacher_shape = pair.student.shape, pair.teacher.shape
        with wrong.part():
            if spec is None:
                if student_shape != teacher_shape:
                    raise _mismatch(job_loss, pair.student, pair.teacher)
            elif spec.type == "auto" and student_shape[1:] == teacher_shape[1:]:
                built.append(nn.Identity())
            else:
                if spec.type == "auto" and _hold_logits(pair):
                    what = "`auto` makes no classes of others (`{type: linear}` learns a map between the two)"
                    raise job_loss.unlike_classes(student_shape, teacher_shape, path, what)
                help = joinable(job_loss.context, job_loss.teacher, pair)
                normed = job_loss.context.before_layouts or not _normalizes(job_loss)
                built.append(build_adapter(spec, student_shape, teacher_shape, path, help, normed=normed))
    wrong.raise_errors()
    return None if spec is None else nn.ModuleList(built)


def _mismatch(job_loss: JobLoss, student: TapSide, teacher: TapSide) -> SpecError:
    assert job_loss.teacher is not None
    loss = job_loss.loss.type
    if _hold_logits(TapPair(student=student, teacher=teacher)):
        path = (*job_loss.context.path, "teachers", job_loss.teacher, "mimic_name")
        what = f"{loss} compares them class by class"
        return job_loss.unlike_classes(student.shape, teacher.shape, path, what)
    pair = TapPair(student=student, teacher=teacher)
    why = unjoinable(student.shape, teacher.shape)
    if why is None:
        help = f"add this line to the job ({what_joins(student.shape, teacher.shape)})\nadapter: auto"
    else:
        help = f"no adapter joins them: {why}\n{joinable(job_loss.context, job_loss.teacher, pair)}"
    if job_loss.record.kind == "logit" and len(student.shape) == len(teacher.shape) == 2:
        help = "logits are compared class by class: name `logits` of both networks"
    return SpecError.at(
        (*job_loss.context.path, "student", "mimic_name", student.number),
        "KD430",
        f"`{student.label}` of the student is {shown(student.shape)}, "
        f"`{teacher.label}` of {job_loss.teacher} is {shown(teacher.shape)}: {loss} compares equal shapes",
        help,
    )


def _normalizes(job_loss: JobLoss) -> bool:
    """Whether the loss normalises features itself, as its kwargs say."""
    how = job_loss.record.normalizes
    if isinstance(how, bool):
        return how
    kwargs = {**job_loss.record.preset, **job_loss.loss.kwargs}
    return bool(kwargs.get(how, default_of(job_loss.binding.target, how, False)))


def _read(job_loss: JobLoss, pairs: Sequence[TapPair]) -> list[TapPair]:
    """The pairs with what of their tokens is compared, and in which form.

    All tokens where both sides have the same layout; the patches alone where the other side has other prefix tokens
    or none; in their grid, as a map, where the loss takes maps or the other side is one or has another grid.
    """
    takes = job_loss.record.takes
    if takes in ("logits", "vector", "tokens"):
        return list(pairs)
    sides = [side for pair in pairs for side in (pair.student, pair.teacher) if side is not None]
    maps = takes == "map" or (job_loss.record.whole_list and any(_is_map(side) for side in sides))
    made = []
    for pair in pairs:
        own, other = pair.student, pair.teacher
        made.append(
            TapPair(
                student=_in_form(own, "grid" if maps else _form(job_loss, own, other)),
                teacher=other and _in_form(other, "grid" if maps else _form(job_loss, other, own)),
            )
        )
    return made


def _form(job_loss: JobLoss, side: TapSide, other: TapSide | None) -> Form:
    """How one side of a pair is read beside the other."""
    if other is None or side.layout.kind != "tokens":
        return "all"
    if _is_map(other):
        return "grid"
    if other.layout.kind == "tokens" and places_in(other.shape) > 1:
        if side.layout.same_tokens(other.layout) or (
            side.shape[1] == other.shape[1] and not (side.layout.in_grid and other.layout.in_grid)
        ):
            return "all"
        same_grid = (side.layout.grid, side.layout.order) == (other.layout.grid, other.layout.order)
        return "patches" if same_grid else "grid"
    # A vector, or what has a single place: it has none of the prefix. Runs of before read all tokens.
    return "all" if job_loss.context.before_layouts else "patches"


def _is_map(side: TapSide) -> bool:
    return side.layout.kind == "map" and places_in(side.shape) > 1


def _in_form(side: TapSide, form: Form) -> TapSide:
    """The side in this form; as it is where its tokens aren't known, or where it is all patches anyway."""
    if form == "all" or not side.layout.in_grid or (form == "patches" and side.layout.prefix == 0):
        return side
    return replace(side, form=form, shape=shape_as(side.shape, side.layout, form))


def _hold_logits(pair: TapPair) -> bool:
    assert pair.teacher is not None
    return pair.student.layout.kind == pair.teacher.layout.kind == "logits"


def _calls(
    job_loss: JobLoss, pairs: Sequence[TapPair], adapted: bool, kwargs: Mapping[str, Any]
) -> list[Callable[..., Tensor]]:
    """The loss as one callable for all pairs, or one for each where it is made from shapes."""
    context, binding = job_loss.context, job_loss.binding
    facts: dict[str, Any] = {
        "num_samples": context.num_samples,
        "num_classes": context.num_classes,
        "sample_labels": context.sample_labels,
    }
    if "teacher_classifier" in binding.facts:
        assert job_loss.teacher is not None
        facts["teacher_classifier"] = context.teacher_classifier(job_loss.teacher)
    if "teacher_norms" in binding.facts:
        assert job_loss.teacher is not None
        taps = {pair.teacher.number: pair.teacher.tap for pair in pairs if pair.teacher is not None}
        facts["teacher_norms"] = [context.teacher_norm(job_loss.teacher, tap) for tap in taps.values()]
    if not binding.stateful or not binding.uses_features:
        return [binding.make(facts, kwargs)]
    teacher_shapes = [(pair.teacher or pair.student).shape for pair in pairs]
    student_shapes = teacher_shapes if adapted else [pair.student.shape for pair in pairs]
    names: SpecPath = (*context.path, "student", "mimic_name")
    if job_loss.record.whole_list:
        with placed(names):
            facts |= {"student_shape": student_shapes, "teacher_shape": teacher_shapes}
            return [binding.make(facts, kwargs)]
    calls = []
    for pair, student_shape, teacher_shape in zip(pairs, student_shapes, teacher_shapes, strict=True):
        with placed((*names, pair.student.number)):
            facts |= {"student_shape": student_shape, "teacher_shape": teacher_shape}
            calls.append(binding.make(facts, kwargs))
    return calls


def way_out(context: MimicContext, teacher: str, width: int, other: int) -> str:
    """The help of KD470: what to do about a teacher with `other` logits where `width` are meant."""
    labels = context.labels.get(teacher, NO_LABELS)
    if labels.asked:
        return f"`classes` names {other} of {teacher}'s: name one for each of the {width}"
    if other == context.num_classes:
        return f"{teacher} knows the data's {other} classes: give the student `num_classes: {other}`"
    if other < width:
        return f"{teacher} knows fewer classes than are learnt: mimic its features instead"
    if labels.hint is not None:
        return f"its file names the data's classes among its own: beside its mimic_name write `{labels.hint}`"
    return (
        f"say beside its mimic_name which of {teacher}'s classes those of the data are: `classes: [...]`, "
        f"{width} of its {other} numbers (from 0) in the data's order; or mimic its features"
    )


@contextmanager
def placed(path: SpecPath) -> Iterator[None]:
    """Give this place in the spec to errors from inside that have none."""
    try:
        yield
    except KdError as error:
        raise SpecError(replace(d, path=d.path or path) for d in error.diagnostics) from error


def read_as_logits(jobs: Sequence[Job], name: str) -> frozenset[str]:
    """The teacher's taps that a loss on logits reads. jobs: those that it is in."""
    on_logits = [
        job for job in jobs if any(loss_of(loss.type).kind == "logit" for loss in job.losses.values())
    ]
    return frozenset(tap for job in on_logits for tap in job.teachers[name].mimic_name)


def compares_classes(jobs: Sequence[Job]) -> bool:
    """Whether a loss takes a teacher's classes for the data's: one on logits, or one that reads its classifier."""
    losses = [loss_of(loss.type) for job in jobs for loss in job.losses.values()]
    return any(
        loss.kind == "logit"
        or "teacher_logits" in binding_of(loss).inputs
        or "teacher_classifier" in binding_of(loss).facts
        for loss in losses
    )
