"""What a sweep looks at before its first trial: the space, proved value by value; its length; the shared cache."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcli.analysis.layers import inspect
from kdcli.analysis.pairs import fitting_pairs
from kdcli.check.check import CheckOptions, check
from kdcli.distill.terms import binding_of
from kdcli.errors import Diagnostic, KdError, SpecError
from kdcli.losses import loss_of
from kdcli.parallel.distributed import Processes
from kdcli.spec.check.resolve import check_references
from kdcli.spec.check.rules import check_caches, check_task
from kdcli.spec.networks import parse_networks
from kdcli.spec.parse import ParsedSpec, once, resolved_data
from kdcli.spec.places import files_named
from kdcli.spec.schema import Cache, Spec
from kdcli.spec.sweep import (
    METHOD,
    PAIRS,
    Choice,
    Range,
    Space,
    Values,
    counts,
    job_of,
    loss_name,
    probes,
    space_of,
    trial_spec,
    without_sweep,
    written_value,
)
from kdcli.spec.tables import SETS_LR, LossTable, Tables
from kdcli.spec.text.nodes import Scalar
from kdcli.tasks import TASKS
from kdcli.training.build import built
from kdcli.training.guard import prove_losses
from kdcli.training.run import RunOptions

TOO_LARGE = ("KD552", "KD553")
"""The cache would take too much of the disk; a feature has no row for each sample."""

WIDE = 10.0
"""The default space has weights from this share to this multiple of the even pull."""

MOST_PAIRS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """How the spec of a trial is made: the written spec, the space, the sweep's own assignments.

    views: of each teacher's shared cache, None where teachers run in every trial.
    """

    parsed: ParsedSpec
    space: Space
    losses: LossTable
    own: tuple[str, ...]
    cache: Path
    views: int | None = None

    def spec(self, values: Values, *more: str) -> ParsedSpec:
        """The spec of one trial. more: assignments of this one alone."""
        made = trial_spec(self.parsed, self.space, values, self.losses, (*self.own, *more))
        return made if self.views is None else with_cache(made, self.cache, self.views)

    def final(self, values: Values, *more: str) -> ParsedSpec:
        """The spec with these values, trained on all training data and measured on the test data."""
        whole = () if self.parsed.spec.dataset.hold_out is None else ("dataset.hold_out=",)
        return trial_spec(self.parsed, self.space, values, self.losses, (*whole, *more))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What building the first trial has shown.

    steps, epochs: of a whole trial. samples: that are trained on; held: that are held out. even: by term the even
    `loss_weight`. views: of the shared cache, None where there is none. live: why there is none, or one of fewer views
    than epochs.
    """

    steps: int
    epochs: int
    samples: int
    held: int
    even: Mapping[str, float]
    views: int | None = None
    live: str | None = None


def with_cache(parsed: ParsedSpec, folder: Path, views: int) -> ParsedSpec:
    """The spec with a cache in `folder` for each teacher; what it says of a cache stays, but for an unnamed folder."""
    spec = parsed.spec
    if spec.mimic is None or not spec.distils:
        return parsed
    known: set[str] = set()
    jobs = {}
    for name, job in spec.mimic.jobs.items():
        teachers = {}
        for teacher, part in job.teachers.items():
            cache = part.cache
            if cache is not None or teacher not in known:
                written = cache or Cache(views=views)
                cache = written.model_copy(update={"dir": written.dir or str(folder.absolute())})
            known.add(teacher)
            teachers[teacher] = part.model_copy(update={"cache": cache})
        jobs[name] = job.model_copy(update={"teachers": teachers})
    mimic = spec.mimic.model_copy(update={"jobs": jobs})
    return replace(parsed, spec=spec.model_copy(update={"mimic": mimic}))


def measured(trials: Trials, values: Values, options: RunOptions, processes: Processes) -> Measured:
    """Build a trial, and find the largest cache that fits; raises KdError where the trial can't be built."""
    found = _built(replace(trials, views=None), values, options, processes)
    plain = replace(trials, views=None).spec(values)
    if plain.spec.mimic is None or not plain.spec.distils or not plain.spec.teachers:
        return found
    views: int | None = found.epochs
    cached = with_cache(plain, trials.cache, found.epochs).spec
    for finding in (*check_caches(cached), *check_task(cached, TASKS)):
        if finding.code == "KD550":
            return replace(found, live=finding.message)
    live = None
    while views is not None:
        try:
            _built(replace(trials, views=views), values, options, processes)
        except KdError as error:
            if error.diagnostics[0].code not in TOO_LARGE:
                raise
            live = error.diagnostics[0].message
            views = views // 2 or None
        else:
            break
    return replace(found, views=views, live=live)


def _built(trials: Trials, values: Values, options: RunOptions, processes: Processes) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        parsed = trials.spec(values, f"saver.save_dir={folder}/run")
        with built(parsed, replace(options, places=parsed.places), processes) as run:
            even = prove_losses(run).even_weights if trials.views is None else {}
            return Measured(
                steps=run.total_steps,
                epochs=math.ceil(run.total_steps / run.steps_per_epoch),
                samples=run.train_loader.facts.num_samples or 0,
                held=run.test_loader.facts.num_samples or 0,
                even=even,
            )


# the space


def default_space(parsed: ParsedSpec, even: Mapping[str, float], losses: LossTable) -> Space:
    """At most three numbers: the weight of each job around its even pull, the temperature, the learning rate."""
    spec = parsed.spec
    found: list[Range] = []
    jobs = spec.mimic.jobs if spec.mimic is not None and spec.distils else {}
    for name, job in jobs.items():
        own = [one for term, one in even.items() if term.partition(".")[0] == name and one > 0]
        centre = math.exp(sum(map(math.log, own)) / len(own)) if own else abs(job.loss_weight) or 1.0
        key = "mimic.loss_weight" if list(jobs) == ["mimic_job0"] else f"mimic.{name}.loss_weight"
        # A written weight counts too: somebody may have chosen it.
        ends = sorted((centre, abs(job.loss_weight) or centre))
        found.append(_around(parsed, key, min(ends[0], centre / WIDE), max(ends[1], centre * WIDE)))
    found = found[:2]
    if len(jobs) == 1:
        (job,) = jobs.values()
        record = losses.get(next(iter(job.losses.values())).type) if job.losses else None
        if record is not None and record.softened and list(jobs) == ["mimic_job0"]:
            found.append(_around(parsed, f"mimic.cfgs.{loss_name(job)}.kwargs.T", 1.0, 8.0))
    lr = spec.trainer.optimizer.kwargs.get("lr")
    scheduler = spec.trainer.lr_scheduler
    if isinstance(lr, (int, float)) and lr > 0 and (scheduler is None or scheduler.type not in SETS_LR):
        found.append(_around(parsed, "trainer.optimizer.kwargs.lr", lr / 3, lr * 3))
    decay = spec.trainer.optimizer.kwargs.get("weight_decay")
    if not jobs and isinstance(decay, (int, float)) and decay > 0:
        found.append(_around(parsed, "trainer.optimizer.kwargs.weight_decay", decay / WIDE, decay * WIDE))
    return Space(parameters=tuple(found[:3]), layers={})


def _around(parsed: ParsedSpec, name: str, low: float, high: float) -> Range:
    span = parsed.tree.span
    return Range(
        name=name, key_span=span, span=span, low=float(f"{low:.2g}"), high=float(f"{high:.2g}"), log=True
    )


def space_from(parsed: ParsedSpec, facts: Mapping[str, Mapping[str, Any]]) -> Space:
    """The default space as a storage keeps it: what was measured for it is not measured again."""
    span = parsed.tree.span
    made = [Range(name=name, key_span=span, span=span, **one) for name, one in facts.items()]
    return Space(parameters=tuple(made), layers={})


def with_pairs(parsed: ParsedSpec, space: Space, plugins: Sequence[str]) -> Space:
    """The space with `pairs: auto` filled: the pairs of layers that fit, and the deepest of them together.

    Raises SpecError KD272 where none fit.
    """
    place = next((one for one in space.parameters if one.name == PAIRS), None)
    if place is None:
        return space
    networks = inspect(
        parse_networks(parsed.text, parsed.source, overrides=parsed.overrides, base_dir=parsed.base_dir),
        plugins=plugins,
    )
    (teacher,) = job_of(parsed.spec).teachers
    found = fitting_pairs(networks["net"], networks[teacher])[-MOST_PAIRS:]
    if not found:
        message = f"`pairs: auto` finds no layers of the student and of {teacher} that fit"
        help = "`kdcli inspect-features --pairs` shows what there is; list `mimic.student.mimic_name`"
        raise SpecError(Diagnostic(code="KD272", message=message, help=help, span=place.key_span))
    job = job_of(parsed.spec)
    layers = {}
    for chosen in [[one] for one in found] + ([found] if len(found) > 1 else []):
        text = " ".join(f"{one.student.path}:{one.teacher.path}" for one in chosen)
        layers[text] = (
            tuple(one.student.path for one in chosen),
            tuple(one.teacher.path for one in chosen),
            any(one.adapter for one in chosen) and _adapts(job_of(parsed.spec).losses.get(loss_name(job))),
        )
    nodes = tuple(Scalar(value=text, span=place.key_span, text=text) for text in layers)
    filled = Choice(name=PAIRS, key_span=place.key_span, nodes=nodes, labels=tuple(layers))
    return Space(parameters=tuple(filled if one is place else one for one in space.parameters), layers=layers)


def _adapts(loss: Any) -> bool:
    """Whether a loss needs an adapter between features of other shapes."""
    record = loss_of(loss.type) if loss is not None else None
    return record is None or not (record.unlike_shapes or binding_of(record).sizes_itself)


def written_values(trials: Trials) -> Values | None:
    """The spec as it is written, as values of the space; None where it lies outside."""
    spec = trials.parsed.spec
    data = resolved_data(trials.final({}).spec)
    values = {}
    for one in trials.space.parameters:
        if one.name == PAIRS:
            return None
        if one.name == METHOD:
            loss = job_of(spec).losses.get(loss_name(job_of(spec)))
            value: Any = None if loss is None else loss.type
        else:
            value = written_value(data, one.name)
        if value is None or not one.has(value):
            return None
        if isinstance(one, Range) and not one.whole:
            value = float(value)
        values[one.name] = value
    return {name: one for name, one in values.items() if counts(name, values, spec, trials.losses)}


def assignments(trials: Trials, values: Values) -> list[str]:
    """The values as arguments of the command line."""
    data = resolved_data(trials.final(values).spec)
    keys: list[str] = []
    for name in values:
        if name == METHOD:
            keys.append(f"mimic.cfgs.{loss_name(job_of(trials.parsed.spec))}")
        elif name == PAIRS:
            (teacher,) = job_of(trials.parsed.spec).teachers
            keys += ["mimic.student.mimic_name", f"mimic.{teacher}.mimic_name", "mimic.adapter"]
    if any(key.startswith("mimic.cfgs.") for key in keys):
        names = [one for one in values if not one.startswith("mimic.cfgs.")]
    else:
        names = list(values)
    keys += [name for name in names if name not in (METHOD, PAIRS)]
    found = []
    for key in keys:
        value = written_value(data, key)
        if value is None:
            value = values.get(key)
        if value is not None:
            plain = list(value) if isinstance(value, tuple) else value
            found.append(f"{key}={json.dumps(plain) if not isinstance(plain, str) else plain}")
    return found


def with_whole_paths(parsed: ParsedSpec) -> ParsedSpec:
    """The spec with the whole path of every file that it names: it may be read from another folder."""
    data = parsed.spec.model_dump(exclude_none=True)
    for path, name in files_named(parsed.spec):
        place: Any = data
        for step in path[:-1]:
            place = place[step]
        if isinstance(place, tuple):
            continue
        place[path[-1]] = str(parsed.places.find(name, path).absolute())
    return replace(parsed, spec=Spec.model_validate(data))


def hash_of(parsed: ParsedSpec) -> str:
    """sha256 of what a sweep starts from: the spec without the places that it writes to."""
    saver = parsed.spec.saver.model_copy(update={"save_dir": None, "results_dir": None})
    spec = replace(without_sweep(parsed), spec=parsed.spec.model_copy(update={"saver": saver, "sweep": None}))
    return hashlib.sha256(spec.resolved_yaml().encode()).hexdigest()


def check_block(parsed: ParsedSpec, known: Tables, plugins: Sequence[str]) -> list[Diagnostic]:
    """What is wrong with the values of a spec's `sweep` block, as `validate` tells it; nothing without one."""
    space = space_of(parsed)
    if space is None:
        return []
    try:
        space = with_pairs(parsed, space, plugins)
        trials = Trials(parsed=parsed, space=space, losses=known.losses, own=(), cache=Path("cache"))
        return list(check_space(trials, known, plugins, files=False))
    except KdError as error:
        return [parsed.locate(one) for one in error.diagnostics]


def check_space(
    trials: Trials, known: Tables, plugins: Sequence[str], *, files: bool = True
) -> Iterator[Diagnostic]:
    """Prove every listed value and both ends of every range by what `validate` proves; raises SpecError.

    Yields the warnings that only trials have. Values that change what is built, names of losses and layers, are
    rehearsed on fake tensors too. files: whether the first of them looks at the data and weights.
    """
    found: list[Diagnostic] = []
    # What the spec says without the sweep has been told when it was read.
    written = without_sweep(trials.parsed)
    said = {_said(one) for one in (*written.warnings, *check_references(written, known))}
    rehearsed: set[str] = set()
    for values in probes(trials.space):
        try:
            parsed = trials.spec(values)
        except SpecError as error:
            found += error.diagnostics
            continue
        mine = [parsed.locate(one) for one in (*parsed.warnings, *check_references(parsed, known))]
        wrong = [one for one in mine if one.severity == "error"]
        found += [one for one in mine if one.severity == "error" or _said(one) not in said]
        said |= {_said(one) for one in mine}
        key = built_key(values, trials.space)
        if wrong or key in rehearsed:
            continue
        look = CheckOptions(
            plugins=tuple(plugins),
            places=parsed.places,
            look="nothing" if rehearsed or not files else "start",
            plan=False,
        )
        rehearsed.add(key)
        with _Collected(parsed, found):
            checked = check(parsed, look).findings
            found += [parsed.locate(one) for one in checked if one.severity == "error"]
    found = once(found)
    if any(one.severity == "error" for one in found):
        raise SpecError(found)
    yield from found


class _Collected(suppress):
    """Collects the findings of a KdError, located, instead of raising it."""

    def __init__(self, parsed: ParsedSpec, found: list[Diagnostic]) -> None:
        super().__init__(KdError)
        self.parsed, self.found = parsed, found

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, KdError):
            self.found += [self.parsed.locate(one) for one in error.diagnostics]
            return True
        return False


def _said(one: Diagnostic) -> tuple[str, str]:
    return one.code, one.message


def built_key(values: Values, space: Space) -> str:
    """The values that change what is built: words, lists and mappings; numbers do not."""
    words = {
        one.name: values[one.name]
        for one in space.parameters
        if isinstance(one, Choice) and isinstance(values.get(one.name), str)
    }
    return repr(sorted(words.items()))
