"""From a job to its terms: pairs of features, temperature, standardisation, adapters, the losses themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from torch import Tensor, nn

from kdcli.distill.adapters import Shape, build_adapter, shown, unjoinable, what_joins
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.distill.taps import Tap, View, elements_of
from kdcli.distill.teacher import NO_LABELS, is_logits
from kdcli.distill.terms import Binding, TapPair, TapSide, Term, binding_of
from kdcli.errors import Findings, KdError, SpecError, SpecPath
from kdcli.losses import Loss, loss_of
from kdcli.losses.parts.epochs import LearnedTemperature
from kdcli.spec.schema import AdapterSpec, LossSpec, Temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOfJob:
    """One loss of a job before it is built: what the spec says of it, and of which networks.

    loss: its spec with the method's defaults filled in. teacher: None where the method needs none.
    """

    context: MimicContext
    name: str
    loss: LossSpec
    teacher: str | None

    @property
    def path(self) -> SpecPath:
        """Where the spec says it."""
        return (*self.context.path, "losses", self.name)

    @property
    def binding(self) -> Binding:
        """What the loss takes in."""
        return binding_of(self.record)

    @property
    def record(self) -> Loss:
        """What is true of the loss."""
        return loss_of(self.loss.type)

    @property
    def view(self) -> View:
        """What the teacher showed on the sample."""
        assert self.teacher is not None
        return self.context.teachers[self.teacher]

    def no_option(self, on_loss: bool, option: str, why: str) -> SpecError:
        """The error KD452 for an option that does nothing. on_loss: it stands at the loss, else at the job."""
        path = (*self.path, option) if on_loss else (*self.context.path, option)
        return SpecError.at(
            path, "KD452", f"`{option}` does nothing here: `{self.loss.type}` {why}", on_key=True
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
    of = LossOfJob(context=context, name=name, loss=loss, teacher=teacher)
    binding = of.binding
    standardizes = standardizes_of(of)
    kwargs = {**of.record.preset, **loss.kwargs}
    temperature = temperature_of(of, from_logits=bool(kwargs.get("from_logits")))
    learned: LearnedTemperature | None = None
    if isinstance(temperature, Temperature):
        learned = LearnedTemperature(
            start=temperature.start, range=temperature.range, cosine_epochs=temperature.cosine_epochs
        )
    elif temperature is not None:
        kwargs.setdefault("T", temperature)
    if standardizes and "standardize" in of.binding.keywords:
        kwargs["standardize"], standardizes = True, False
    if of.record.kind == "logit":
        students = [_read_as_logits(side, context.student) for side in students]
        teachers = [_read_as_logits(side, of.view) for side in teachers]
    if binding.uses_features:
        check_taps(context, loss.type, students, teacher, teachers)
    _compare_outputs(of)
    pairs = (
        [TapPair(student=side) for side in students] if teacher is None else _paired(of, students, teachers)
    )
    adapters: nn.ModuleList | None = None
    if teacher is not None and binding.uses_features:
        adapters = _adapters(of, pairs, loss.adapter or (context.job.adapter if adapted else None))
    own = binding.own(kwargs)
    how = loss.over_pairs or over_pairs or ("mean" if of.record.mean_over_pairs else "sum")
    return Term(
        name,
        loss.type,
        pairs,
        binding=binding,
        calls=_calls(of, pairs, adapters is not None, own),
        teacher=teacher,
        adapters=adapters,
        temperature=learned,
        kwargs={} if binding.stateful else {**own, **(options or {})},
        standardizes=standardizes,
        factors=factors,
        mean_over_pairs=how == "mean",
        loss_weight=binding.weight_of(kwargs),
    )


def temperature_of(of: LossOfJob, *, from_logits: bool) -> float | Temperature | None:
    """The loss's own temperature, else the job's where it is meant for this loss.

    from_logits: whether the loss is told to read logits. Raises SpecError KD452 where a temperature is given
    and no loss takes it, or one is to be learned and the loss can't.
    """
    loss, job = of.loss, of.context.job
    has_one, on_loss = "T" in of.binding.keywords, loss.temperature is not None
    if on_loss and not has_one:
        raise of.no_option(True, "temperature", "has no temperature")
    found = loss.temperature if on_loss else job.temperature
    if found is None:
        return None
    if not on_loss and not of.record.softened:
        if not any(loss_of(other.type).softened for other in job.losses.values()):
            why = "does not soften logits by its `T`: set `kwargs.T`" if has_one else "has no temperature"
            raise of.no_option(False, "temperature", why)
        return None
    if isinstance(found, Temperature):
        if of.binding.stateful:
            raise of.no_option(on_loss, "temperature", "can't learn one")
        if "from_logits" in of.binding.keywords and not from_logits:
            why = "has a temperature only with `from_logits: true`"
            raise of.no_option(on_loss, "temperature", why)
    return found


def standardizes_of(of: LossOfJob) -> bool:
    """Whether logits are standardised: as the loss says, else the job where this compares logits.

    Raises SpecError KD452 where no loss compares logits.
    """
    loss, job = of.loss, of.context.job
    asked = job.standardize if loss.standardize is None else loss.standardize
    if not asked or of.record.kind == "logit":
        return asked
    on_loss = loss.standardize is not None
    if on_loss or not any(loss_of(other.type).kind == "logit" for other in job.losses.values()):
        raise of.no_option(on_loss, "standardize", "compares no logits")
    return False


def _read_as_logits(side: TapSide, view: View) -> TapSide:
    """The side as a loss on logits reads it: a vector of the shape of the network's logits holds logits."""
    logits = view.outputs.get("logits")
    if side.layout.kind != "vector" or not is_logits(logits) or side.shape != logits.shape:
        return side
    return replace(side, layout=replace(side.layout, kind="logits", known_from="spec"))


def _compare_outputs(of: LossOfJob) -> None:
    """Raise SpecError KD470 where the loss reads both networks' logits beside the features, of two widths."""
    if of.teacher is None or not {"student_logits", "teacher_logits"} <= set(of.binding.inputs):
        return
    ours, theirs = (view.outputs.get("logits") for view in (of.context.student, of.view))
    if is_logits(ours) and is_logits(theirs) and ours.shape[1] != theirs.shape[1]:
        path = (*of.context.path, "teachers", of.teacher)
        what = f"{of.loss.type} compares them class by class, beside the features"
        raise unlike_classes(of.context, of.teacher, ours.shape, theirs.shape, path, what)


def _paired(of: LossOfJob, students: Sequence[TapSide], teachers: Sequence[TapSide]) -> list[TapPair]:
    """The sides in pairs; raises SpecError KD431 where two taps give unequally many features."""
    ours, theirs = (Counter(side.number for side in sides) for sides in (students, teachers))
    uneven = [number for number in sorted({*ours, *theirs}) if ours[number] != theirs[number]]
    if not uneven or not of.binding.uses_features:
        return [TapPair(student=s, teacher=t) for s, t in zip(students, teachers, strict=False)]
    number = uneven[0]
    counts = ours[number], theirs[number]
    taps = [next(side.tap for side in sides if side.number == number) for sides in (students, teachers)]
    sides = zip(taps, counts, ("the student", of.teacher), strict=True)
    several = [f"{elements_of(tap, count)} of {whose}" for tap, count, whose in sides if count > 1]
    raise SpecError.at(
        (*of.context.path, "student", "mimic_name", number),
        "KD431",
        f"`{taps[0]}` of the student gives {counts[0]} feature(s), `{taps[1]}` of {of.teacher} {counts[1]}",
        f"pick single ones: {'; '.join(several)}" if several else "pick single ones with `path[i]`",
    )


def _adapters(of: LossOfJob, pairs: Sequence[TapPair], spec: AdapterSpec | None) -> nn.ModuleList | None:
    """An adapter for each pair, as the spec says; None without one, where every pair must fit as it is."""
    if spec is None and (of.binding.sizes_itself or of.record.unlike_shapes):
        return None
    assert of.teacher is not None
    where = (*(of.path if of.loss.adapter else of.context.path), "adapter")
    wrong = Findings()
    built: list[nn.Module] = []
    for pair in pairs:
        assert pair.teacher is not None
        ours, theirs = pair.student.shape, pair.teacher.shape
        with wrong.part():
            if spec is None:
                if ours != theirs:
                    raise _mismatch(of, pair.student, pair.teacher)
            elif spec.type == "auto" and ours[1:] == theirs[1:]:
                built.append(nn.Identity())
            else:
                if spec.type == "auto" and _hold_logits(pair):
                    what = "`auto` makes no classes of others (`{type: linear}` learns a map between the two)"
                    raise unlike_classes(of.context, of.teacher, ours, theirs, where, what)
                help = joinable(of.context, of.teacher)
                built.append(build_adapter(spec, ours, theirs, where, help))
    wrong.raise_errors()
    return None if spec is None else nn.ModuleList(built)


def _mismatch(of: LossOfJob, student: TapSide, teacher: TapSide) -> SpecError:
    assert of.teacher is not None
    loss = of.loss.type
    if _hold_logits(TapPair(student=student, teacher=teacher)):
        path = (*of.context.path, "teachers", of.teacher, "mimic_name")
        what = f"{loss} compares them class by class"
        return unlike_classes(of.context, of.teacher, student.shape, teacher.shape, path, what)
    why = unjoinable(student.shape, teacher.shape)
    if why is None:
        help = f"add this line to the job ({what_joins(student.shape, teacher.shape)})\nadapter: auto"
    else:
        help = f"no adapter joins them: {why}\n{joinable(of.context, of.teacher)}"
    if of.record.kind == "logit" and len(student.shape) == len(teacher.shape) == 2:
        help = "logits are compared class by class: name `logits` of both networks"
    return SpecError.at(
        (*of.context.path, "student", "mimic_name", student.number),
        "KD430",
        f"`{student.name}` of the student is {shown(student.shape)}, "
        f"`{teacher.name}` of {of.teacher} is {shown(teacher.shape)}: {loss} compares equal shapes",
        help,
    )


def _hold_logits(pair: TapPair) -> bool:
    assert pair.teacher is not None
    return pair.student.layout.kind == pair.teacher.layout.kind == "logits"


def _calls(
    of: LossOfJob, pairs: Sequence[TapPair], adapted: bool, kwargs: Mapping[str, Any]
) -> list[Callable[..., Tensor]]:
    """The loss as one callable for all pairs, or one for each where it is made from shapes."""
    context, binding = of.context, of.binding
    facts: dict[str, Any] = {"num_samples": context.num_samples, "num_classes": context.num_classes}
    if "teacher_classifier" in binding.facts:
        assert of.teacher is not None
        facts["teacher_classifier"] = context.teacher_classifier(of.teacher)
    if "teacher_norms" in binding.facts:
        assert of.teacher is not None
        taps = {pair.teacher.number: pair.teacher.tap for pair in pairs if pair.teacher is not None}
        facts["teacher_norms"] = [context.teacher_norm(of.teacher, tap) for tap in taps.values()]
    if not binding.stateful or not binding.uses_features:
        return [binding.make(facts, kwargs)]
    theirs = [(pair.teacher or pair.student).shape for pair in pairs]
    ours = theirs if adapted else [pair.student.shape for pair in pairs]
    names: SpecPath = (*context.path, "student", "mimic_name")
    if of.record.whole_list:
        with placed(names):
            return [binding.make({**facts, "student_shape": ours, "teacher_shape": theirs}, kwargs)]
    calls = []
    for pair, own, other in zip(pairs, ours, theirs, strict=True):
        with placed((*names, pair.student.number)):
            calls.append(binding.make({**facts, "student_shape": own, "teacher_shape": other}, kwargs))
    return calls


def unlike_classes(
    context: MimicContext, teacher: str, student: Shape, theirs: Shape, path: SpecPath, what: str
) -> SpecError:
    """The error for logits of two widths. what: which loss or adapter compares them."""
    message = f"the student's logits are {shown(student)}, those of {teacher} {shown(theirs)}: {what}"
    return SpecError.at(path, "KD470", message, way_out(context, teacher, student[1], theirs[1]))


def way_out(context: MimicContext, teacher: str, width: int, other: int) -> str:
    """What to do about a teacher with `other` logits where `width` are meant."""
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
    """An error without a place gets this one."""
    try:
        yield
    except KdError as error:
        raise SpecError(replace(d, path=d.path or path) for d in error.diagnostics) from error


POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)


def check_taps(
    context: MimicContext,
    loss: str,
    students: Sequence[TapSide],
    teacher: str | None,
    teachers: Sequence[TapSide],
) -> None:
    """Refuse features that the loss does not take; raises SpecError KD451 at each `mimic_name`.

    loss: its type. students, teachers: the sides of its pairs, of the student and of `teacher`.
    """
    wrong = Findings()
    for whose, sides in ((None, students), (teacher, teachers)):
        net = context.student_module("") if whose is None else context.teacher_module(whose, "")
        part = ("student",) if whose is None else ("teachers", whose)
        for number, of_tap in groupby(sides, key=lambda side: side.number):
            with wrong.part():
                for side in of_tap:
                    _check(context, loss, whose, side, net, (*context.path, *part, "mimic_name", number))
    wrong.raise_errors()


def joinable(context: MimicContext, teacher: str) -> str:
    """A help line where tokens or vectors can't be joined with what the other network gives: what can be."""
    sides = [("the student", context.student_module("")), (teacher, context.teacher_module(teacher, ""))]
    found = [(whose, _last(net, (nn.Linear,))) for whose, net in sides]
    vectors = ", ".join(f"`{linear}:in` of {whose}" for whose, linear in found if linear is not None)
    return (
        "name layers that give maps in both networks (`kdcli inspect-features` lists them), or vectors in both"
        + (f": {vectors}" if vectors else "")
    )


def _check(
    context: MimicContext, loss: str, teacher: str | None, side: TapSide, net: nn.Module, path: SpecPath
) -> None:
    whose = "the student" if teacher is None else teacher
    takes, tap, kind, shape = loss_of(loss).takes, side.tap, side.layout.kind, side.shape
    found = f"`{tap}` of {whose} is {shown(shape)}"
    if takes == "logits" and kind not in ("logits", "vector"):
        raise SpecError.at(path, "KD451", f"`{loss}` compares logits [B, K]; {found}", "name `logits`")
    if takes == "vector" and len(shape) > 2 and shape[1:].numel() != shape[1]:
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes a pooled vector [B, D]; {found}", _pooled_vector(net)
        )
    if takes == "map" and kind != "map":
        raise SpecError.at(path, "KD451", f"`{loss}` takes maps [B, C, H, W]; {found}", _last_map(net))
    if takes == "tokens" and kind != "tokens":
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes tokens [B, N, D]; {found}", "name a block of a transformer"
        )
    if loss_of(loss).before_relu:
        relu = context.maker(teacher, tap, (nn.ReLU, nn.ReLU6, nn.LeakyReLU))
        if relu is not None:
            raise SpecError.at(
                path,
                "KD451",
                f"`{loss}` takes what goes into a ReLU; `{tap}` of {whose} is what comes out of one",
                f"name `{Tap.parse(relu).path}:in{relu.removeprefix(Tap.parse(relu).path)}`",
            )


def _pooled_vector(net: nn.Module) -> str:
    linear = _last(net, (nn.Linear,))
    if linear is not None:
        return f"name what goes into the classifier: `{linear}:in`"
    pool = _last(net, POOLS)
    return "name a layer after pooling" + (f": `{pool}`" if pool is not None else "")


def _last_map(net: nn.Module) -> str:
    pool = _last(net, POOLS)
    if pool is not None:
        return f"name a layer before pooling; the last map is `{pool}:in`"
    conv = _last(net, (nn.Conv2d,))
    return "name a convolutional layer" + (f", such as `{conv}`" if conv is not None else "")


def _last(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """The last of the modules of these kinds, in the order in which they stand."""
    names = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    return names[-1] if names else None
