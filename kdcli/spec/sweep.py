"""What `kdcli sweep` tries: the `sweep` block of a spec as parameters, and the spec of one trial.

A key of the block is a key of the spec, as an argument of the command line names it; its value a list of values, or a
range {low, high, log, step}. Two keys are words: `method` sets the loss of the one job, `pairs: auto` its layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from kdcli.errors import Diagnostic, Span, SpecError, did_you_mean
from kdcli.spec.check.signatures import signature
from kdcli.spec.form.typed import span_of
from kdcli.spec.parse import ParsedSpec, parse, resolved_data
from kdcli.spec.schema import Job, Spec
from kdcli.spec.tables import LossTable
from kdcli.spec.text.nodes import Entry, Mapping, Node, Plain, Scalar, kind, to_data
from kdcli.spec.text.nodes import Sequence as NodeSequence
from kdcli.spec.text.overrides import Override, parse_assignment

METHOD, PAIRS, AUTO = "method", "pairs", "auto"
RANGE_KEYS = ("low", "high", "log", "step")
MOST_VALUES = 64
SAME_IMAGES = "all trials are measured on the same images"
OWN_KEYS = {
    "saver.save_dir": "each trial has a folder of its own",
    "saver.results_dir": "each trial has a folder of its own",
    "runtime.random_seed": "all trials have one seed; `--seeds` repeats the best",
    "dataset.hold_out": "all trials are measured on the same images; say `--hold-out`",
    "dataset.test": SAME_IMAGES,
    "dataset.train.dataset.type": SAME_IMAGES,
    "sweep": "a sweep of sweeps is none",
}
"""Keys that the sweep itself sets or that would make trials incomparable, and why."""

Values = AnyMapping[str, Plain]
"""One trial: by parameter its value; of a list whose values are lists or mappings, their text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A parameter with a list of values. labels: of each node, the value itself or its text as JSON."""

    name: str
    key_span: Span
    nodes: tuple[Node, ...]
    labels: tuple[Plain, ...]

    def facts(self) -> Any:
        """What the storage compares."""
        return list(self.labels)

    def node(self, value: Plain) -> Node:
        """The node of a value."""
        return self.nodes[_place(self.labels, value)]

    def has(self, value: Any) -> bool:
        """Whether a value is one of the list."""
        return any(_same(label, value) for label in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A parameter with a range of numbers. step: between two of them; whole: whole numbers alone."""

    name: str
    key_span: Span
    span: Span
    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def facts(self) -> Any:
        """What the storage compares."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step, "whole": self.whole}

    def node(self, value: Plain) -> Node:
        """A number as if it were written where the range is."""
        assert isinstance(value, (int, float))
        return Scalar(value=value, span=self.span, text=repr(value))

    def has(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        if self.step is not None and not _is_whole((value - self.low) / self.step):
            return False
        return self.low <= value <= self.high and (not self.whole or isinstance(value, int))


Parameter = Choice | Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The parameters of a sweep.

    layers: by the text of a pair of layers, its paths in student and teacher and whether an adapter joins them.
    """

    parameters: tuple[Parameter, ...]
    layers: AnyMapping[str, tuple[tuple[str, ...], tuple[str, ...], bool]]

    def facts(self) -> dict[str, Any]:
        """What two processes on one storage, and one that goes on, must have alike."""
        return {one.name: one.facts() for one in self.parameters}

    @property
    def size(self) -> int | None:
        """How many trials there can be; None where a parameter is a range without steps."""
        return (
            math.prod(len(p.labels) for p in self.parameters if isinstance(p, Choice))
            if self.listed
            else None
        )

    @property
    def listed(self) -> bool:
        """Whether every parameter is a list."""
        return all(isinstance(one, Choice) for one in self.parameters)


def space_of(parsed: ParsedSpec) -> Space | None:
    """The space that a spec writes, None where it writes none; `pairs: auto` is still to be filled.

    Raises SpecError KD270, KD272 at the lines of the block.
    """
    block = parsed.tree.get("sweep")
    if block is None:
        return None
    assert isinstance(block, Mapping)
    found: list[Diagnostic] = []
    parameters = []
    for name, key_span, node in _flat(block):
        try:
            parameters.append(_parameter(parsed.spec, name, key_span, node))
        except SpecError as error:
            found += error.diagnostics
    if not parameters and not found:
        span = span_of(parsed.tree, ("sweep",), on_key=True)
        help = "name keys of the spec, or leave `sweep` out: then there is a default"
        found = [Diagnostic(code="KD270", message="`sweep` names nothing to try", help=help, span=span)]
    if found:
        raise SpecError(found)
    return Space(parameters=tuple(parameters), layers={})


def _flat(block: Mapping, before: str = "") -> Iterator[tuple[str, Span, Node]]:
    """Names with dots, whether they are written so or as mappings in mappings."""
    for entry in block.entries:
        name = f"{before}{entry.key}"
        value = entry.value
        below = isinstance(value, Mapping) and value.entries and not set(value.keys()) & set(RANGE_KEYS)
        if below:
            assert isinstance(value, Mapping)
            yield from _flat(value, f"{name}.")
        else:
            yield name, entry.key_span, value


def _parameter(spec: Spec, name: str, key_span: Span, node: Node) -> Parameter:
    if name in (METHOD, PAIRS):
        _only_job(spec, name, key_span)
    for key, why in OWN_KEYS.items():
        if name == key or name.startswith(f"{key}."):
            _refuse("KD272", f"`{name}` can't be swept: {why}", "leave it out", key_span)
    of_data = name.removeprefix("dataset.train.dataset.kwargs.")
    if of_data != name and of_data.split(".")[0] != "transformer":
        _refuse("KD272", f"`{name}` can't be swept: {SAME_IMAGES}", "leave it out", key_span)
    if any(not part.strip() for part in name.split(".")):
        _refuse("KD270", f"`{name}` is no key of the spec", "for example `mimic.loss_weight`", key_span)
    if name == PAIRS:
        if not (isinstance(node, Scalar) and node.value == AUTO):
            help = "write `pairs: auto`; pairs of your own are a list of `mimic.student.mimic_name`"
            _refuse("KD270", f"`pairs` is `auto`, got {kind(node)}", help, node.span)
        return Choice(name=name, key_span=key_span, nodes=(), labels=())
    if isinstance(node, NodeSequence):
        labels = tuple(_label(item) for item in node.items)
        if not labels or len(labels) > MOST_VALUES:
            many = "no value" if not labels else f"{len(labels)} values, at most {MOST_VALUES} can be tried"
            _refuse("KD270", f"`{name}` has {many}", "list the values to try, or give a range", node.span)
        for place, label in enumerate(labels):
            if any(_same(label, other) for other in labels[:place]):
                message = f"`{name}` lists {json.dumps(label)} twice"
                _refuse("KD270", message, "keep one of them", node.items[place].span)
            if name == METHOD and not isinstance(label, str):
                _refuse("KD270", "`method` lists names of losses", "for example [kd_loss, dkd]", node.span)
        return Choice(name=name, key_span=key_span, nodes=node.items, labels=labels)
    if isinstance(node, Mapping):
        return _range(spec, name, key_span, node)
    help = "write a list, `[1, 2, 4]`, or a range, `{low: 0.1, high: 10, log: true}`"
    _refuse("KD270", f"`{name}` is one value, {kind(node)}: there is nothing to try", help, node.span)


def _is_whole(number: float) -> bool:
    """Whether a quotient of written numbers is whole, but for what rounding leaves."""
    return math.isclose(number, round(number), rel_tol=1e-9, abs_tol=1e-9)


def _range(spec: Spec, name: str, key_span: Span, node: Mapping) -> Range:
    for entry in node.entries:
        if entry.key not in RANGE_KEYS:
            help = did_you_mean(entry.key, RANGE_KEYS) or "a range has low, high, log and step"
            _refuse("KD270", f"unknown key `{entry.key}` in a range", help, entry.key_span)
    numbers: dict[str, float | None] = {}
    for key in ("low", "high", "step"):
        value = node.get(key)
        plain = value.value if isinstance(value, Scalar) else None
        number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
        if value is None and key != "step":
            _refuse(
                "KD270",
                f"the range of `{name}` has no `{key}`",
                "for example {low: 0.1, high: 10}",
                node.span,
            )
        if value is not None and not number:
            message = f"`{key}` of the range of `{name}` is a number, got {kind(value)}"
            _refuse("KD270", message, None, value.span)
        numbers[key] = plain if number else None  # type: ignore[assignment]
    low, high, step = numbers["low"], numbers["high"], numbers["step"]
    assert low is not None and high is not None
    logarithmic = node.get("log")
    if logarithmic is not None and not (
        isinstance(logarithmic, Scalar) and isinstance(logarithmic.value, bool)
    ):
        _refuse("KD270", f"`log` is true or false, got {kind(logarithmic)}", None, logarithmic.span)
    log = isinstance(logarithmic, Scalar) and logarithmic.value is True
    if low >= high:
        _refuse("KD270", f"the range of `{name}` is empty: low {low:g}, high {high:g}", None, node.span)
    if log and low <= 0:
        help = "give a low above 0, or leave `log` out"
        _refuse("KD270", f"`log: true` and low {low:g}: there is no logarithm of it", help, node.span)
    if step is not None and (step <= 0 or log):
        message = "`step` is above 0, and stands without `log`"
        _refuse("KD270", message, "leave one of them out", node.span)
    if step is not None and not _is_whole((high - low) / step):
        last = low + step * math.floor((high - low) / step)
        message = f"the range of `{name}` does not end at {high:g}: from {low:g} in steps of {step:g} its last value"
        _refuse("KD270", f"{message} is {last:g}", f"write `high: {last:g}`", node.span)
    whole = all(isinstance(one, int) for one in (low, high, step if step is not None else 1))
    # A key whose value is a float takes what lies between two whole numbers.
    whole = whole and not isinstance(written_value(resolved_data(spec), name), float)
    return Range(
        name=name, key_span=key_span, span=node.span, low=low, high=high, log=log, step=step, whole=whole
    )


def _only_job(spec: Spec, name: str, span: Span) -> Job:
    """The one job that `method` and `pairs` are about; raises SpecError KD272 where there is not one with one loss."""
    jobs = list(spec.mimic.jobs.values()) if spec.mimic is not None and spec.distils else []
    if (
        len(jobs) != 1
        or len(jobs[0].losses) > 1
        or len(jobs[0].teachers) != 1
        or jobs[0].mimic_ins_type != "base"
    ):
        help = "name the keys themselves: `mimic.mimic_job0.cfgs.loss.type: [kd_loss, dkd]`"
        message = f"`{name}` is about the one loss of one job of the method `base`, with one teacher"
        _refuse("KD272", f"{message}: this spec has another `mimic`", help, span)
    return jobs[0]


def _refuse(code: str, message: str, help: str | None, span: Span) -> NoReturn:
    raise SpecError(Diagnostic(code=code, message=message, help=help, span=span))


def _label(node: Node) -> Plain:
    return node.value if isinstance(node, Scalar) else json.dumps(to_data(node))


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _place(labels: Sequence[Plain], value: Plain) -> int:
    return next(place for place, label in enumerate(labels) if _same(label, value))


def job_of(spec: Spec) -> Job:
    """The one job of a spec that has one."""
    assert spec.mimic is not None
    (job,) = spec.mimic.jobs.values()
    return job


def loss_name(job: Job) -> str:
    """What the loss of a job is called under `cfgs`."""
    return next(iter(job.losses), "loss")


def counts(parameter: str, values: Values, spec: Spec, losses: LossTable) -> bool:
    """Whether a parameter means anything beside the values chosen before it.

    An argument of a loss means nothing to a method that does not take it, and a pair of layers nothing to logits.
    """
    method = values.get(METHOD)
    if method is None:
        return True
    record = losses.get(str(method))
    if record is None:
        return True
    if parameter == PAIRS:
        return record.kind != "logit"
    before = f"mimic.cfgs.{loss_name(job_of(spec))}.kwargs."
    if not parameter.startswith(before):
        return True
    takes = signature(record)
    return takes is None or parameter.removeprefix(before).partition(".")[0] in takes.kwargs


def trial_spec(
    parsed: ParsedSpec, space: Space, values: Values, losses: LossTable, own: Sequence[str] = ()
) -> ParsedSpec:
    """The spec with a trial's values, and with assignments of the sweep's own.

    What is wrong is found at the lines of the `sweep` block. Raises SpecError.
    """
    overrides = list(parsed.overrides)
    first = [one for one in space.parameters if one.name in (METHOD, PAIRS)]
    rest = [one for one in space.parameters if one.name not in (METHOD, PAIRS)]
    for parameter in (*first, *rest):
        if parameter.name in values and counts(parameter.name, values, parsed.spec, losses):
            overrides += list(_overrides(parsed.spec, space, parameter, values, losses))
    overrides += [parse_assignment(one, number) for number, one in enumerate(own, len(parsed.overrides) + 1)]
    made = parse(parsed.text, parsed.source, overrides=overrides, base_dir=parsed.base_dir)
    return without_sweep(made)


def check_sweep(
    parsed: ParsedSpec, losses: LossTable, check: Callable[[ParsedSpec], Iterable[Diagnostic]]
) -> Iterator[Diagnostic]:
    """Errors of the `sweep` block: its form, and what each listed value and both ends of each range make of the spec.

    check: finds what is wrong with the names and arguments of one trial's spec.
    """
    try:
        space = space_of(parsed)
    except SpecError as error:
        yield from error.diagnostics
        return
    if space is None:
        return
    for values in _alone(parsed.spec, space, losses):
        try:
            made = trial_spec(parsed, space, values, losses)
            found = [made.locate(one) for one in check(made)]
        except SpecError as error:
            found = list(error.diagnostics)
        yield from (one for one in found if one.severity == "error")


def _alone(spec: Spec, space: Space, losses: LossTable) -> Iterator[dict[str, Plain]]:
    """Each value by itself, so that a wrong one hides no other: an argument of a loss with a method that takes it."""
    methods = next(
        (one.labels for one in space.parameters if one.name == METHOD and isinstance(one, Choice)), ()
    )
    for one in space.parameters:
        if one.name == PAIRS:
            continue
        of_method = {}
        if one.name.startswith("mimic.cfgs.") and methods:
            taking = [name for name in methods if counts(one.name, {METHOD: name}, spec, losses)]
            of_method = {METHOD: taking[0]} if taking else {}
        for value in _ends(one):
            yield {**of_method, one.name: value}


def without_sweep(parsed: ParsedSpec) -> ParsedSpec:
    """The spec without its `sweep` block."""
    spec = parsed.spec.model_copy(update={"sweep": None})
    return replace(parsed, spec=spec, tree=parsed.tree.without("sweep"))


def _overrides(
    spec: Spec, space: Space, parameter: Parameter, values: Values, losses: LossTable
) -> Iterator[Override]:
    value = values[parameter.name]
    span = parameter.key_span
    if parameter.name == METHOD:
        node = parameter.node(value)
        job = job_of(spec)
        yield _set(f"mimic.cfgs.{loss_name(job)}", _loss_node(job, str(value), node.span, losses), span)
    elif parameter.name == PAIRS:
        student, teacher, adapted = space.layers[str(value)]
        job = job_of(spec)
        (name,) = job.teachers
        yield _set("mimic.student.mimic_name", _list(student, span), span)
        yield _set(f"mimic.{name}.mimic_name", _list(teacher, span), span)
        if adapted and job.adapter is None:
            yield _set("mimic.adapter", Scalar(value=AUTO, span=span, text=AUTO), span)
    else:
        yield _set(parameter.name, parameter.node(value), span)


def _loss_node(job: Job, name: str, span: Span, losses: LossTable) -> Mapping:
    """A loss of another type: of the written arguments it has those that it takes, but for the weight."""
    written = job.losses.get(loss_name(job))
    kwargs = {} if written is None else dict(written.kwargs)
    if written is None or written.type != name:
        record = losses.get(name)
        takes = None if record is None else signature(record)
        kwargs = {
            key: value
            for key, value in kwargs.items()
            if takes is not None and key in takes.kwargs and key != "loss_weight"
        }
    entries = [Entry(key="type", key_span=span, value=Scalar(value=name, span=span, text=name))]
    entries.append(Entry(key="kwargs", key_span=span, value=_node(kwargs, span)))
    return Mapping(entries=tuple(entries), span=span)


def _node(value: Any, span: Span) -> Node:
    """Plain data as nodes at one place."""
    if isinstance(value, dict):
        entries = tuple(Entry(key=str(k), key_span=span, value=_node(v, span)) for k, v in value.items())
        return Mapping(entries=entries, span=span)
    if isinstance(value, (list, tuple)):
        return NodeSequence(items=tuple(_node(item, span) for item in value), span=span)
    return Scalar(value=value, span=span, text=str(value))


def _list(names: Sequence[str], span: Span) -> Node:
    return _node(list(names), span)


def _set(key: str, value: Node, span: Span) -> Override:
    path = tuple(part.strip() for part in key.split("."))
    return Override(path=path, value=value, source="sweep", key_spans=(span,) * len(path))


def probes(space: Space) -> Iterator[dict[str, Plain]]:
    """Trials that between them have every listed value, and both ends of every range, once or more.

    A parameter that is not meant has its first value.
    """
    first = {one.name: _ends(one)[0] for one in space.parameters}
    yield first
    for one in space.parameters:
        for value in _ends(one)[1:]:
            yield {**first, one.name: value}


def _ends(parameter: Parameter) -> tuple[Plain, ...]:
    if isinstance(parameter, Choice):
        return parameter.labels
    return (parameter.low, parameter.high)


def written_value(spec_data: Any, name: str) -> Any:
    """The value that the resolved spec has under a key with dots; None where it has none."""
    place = spec_data
    for part in name.split("."):
        if isinstance(place, dict):
            place = place.get(part)
        elif isinstance(place, (list, tuple)) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        else:
            return None
    return place
