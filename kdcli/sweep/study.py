"""The trials of a sweep in Optuna's storage: which values come next, what came of them, who runs which.

Everything that a trial gets depends on the trials before it and on its number alone, never on a generator's state: a
sweep that goes on after any end proposes what it would have proposed. A trial is owned by the process that holds the
lock of its number; where the owner is gone, the next process that asks runs the trial again with the same values.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from kdcli.disk import is_file, make_folder, written_beside
from kdcli.errors import RunError
from kdcli.spec.schema import Spec
from kdcli.spec.sweep import Choice, Parameter, Range, Space, Values, counts
from kdcli.spec.tables import LossTable
from kdcli.spec.text.nodes import Plain
from kdcli.training.claim import claim

if TYPE_CHECKING:
    import optuna

STORAGE = "sweep.db"
"""Optuna's storage in the folder of a sweep (SQLite)."""

NAME = "kdcli"
FACTS = "kdcli"
"""The study's attribute that says what is swept; processes on one storage must agree on it."""

REDUCTION = 2
"""Successive halving goes on with the best half."""

LOOKS = 3
"""Its first look comes after a third of the training: where the learning rate is still high, ranks say little."""

SHARE = "top1"
"""The deciding metric that is a share of the held-out samples, in percent."""

STARTUP = 8
"""So many trials are drawn at random before the others decide where the next ones lie."""


def need_optuna() -> None:
    """Raise RunError KD835 where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise RunError.of(
            "KD835", "`kdcli sweep` needs Optuna, which is not installed", "pip install 'kdcli[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial as it is stored. values: of the parameters that count. value: rises as the student gets better.

    state: running, complete, stopped (by halving) or failed. metrics: of the last evaluation. error: why it failed.
    same_as: an earlier trial with the same values, whose result it has.
    """

    number: int
    values: Values
    state: str
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    primary: str = ""
    steps: int = 0
    seconds: float = 0.0
    ratio: float | None = None
    error: str | None = None
    same_as: int | None = None
    course: Mapping[int, float] = field(default_factory=dict)


STATES = {
    "RUNNING": "running",
    "WAITING": "waiting",
    "COMPLETE": "complete",
    "PRUNED": "stopped",
    "FAIL": "failed",
}


def by_chance(accuracy: float, samples: int) -> float:
    """By how much two accuracies in percent differ that so many samples each have told: one standard error."""
    share = min(1.0, max(0.0, accuracy / 100))
    return 100 * math.sqrt(2 * share * (1 - share) / samples)


class Study:
    """The storage of a sweep. limit: so many trials, those that fail included; total_steps: of a whole trial.

    held: so many samples are held out.
    """

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        space: Space,
        losses: LossTable,
        *,
        limit: int,
        total_steps: int,
        halves: bool,
        seed: int,
        facts: Mapping[str, Any],
        first: Values | None = None,
        held: int = 0,
    ) -> None:
        import optuna

        self.folder, self.spec, self.space, self.losses = folder, spec, space, losses
        self.seed, self.limit, self.halves, self.held = seed, limit, halves, held
        self.first_look = max(1, total_steps // LOOKS)
        make_folder(folder)
        self.lock = FileLock(folder / "sweep.lock")
        with self.lock:
            if not is_file(folder / STORAGE):
                self._create(facts, first)
        self.storage = _storage(folder / STORAGE)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if halves:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.first_look, reduction_factor=REDUCTION
            )
        self.study = optuna.load_study(
            storage=self.storage, sampler=self._sampler("", 0), pruner=pruner, study_name=NAME
        )
        if space.listed:
            self.limit = len(list(islice(self._combinations(), limit)))

    def _create(self, facts: Mapping[str, Any], first: Values | None) -> None:
        """Make the storage, whole or not at all: a process may be killed at any time."""
        import optuna

        with written_beside(self.folder / STORAGE) as path:
            storage = _storage(path)
            try:
                study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize")
                for values in self._listed(first):
                    study.enqueue_trial(dict(values))
                study.set_user_attr(FACTS, dict(facts))
                study.set_user_attr("written values", None if first is None else dict(first))
            finally:
                _close(storage)

    def close(self) -> None:
        """Close the storage."""
        _close(self.storage)

    def _sampler(self, name: str, number: int) -> optuna.samplers.BaseSampler:
        """Depends on the sweep's seed, the parameter and the trial's number, so that no state is to be kept."""
        import optuna

        key = hashlib.sha256(f"{self.seed} {number} {name}".encode()).digest()
        return optuna.samplers.TPESampler(seed=int.from_bytes(key[:4], "big"), n_startup_trials=STARTUP)

    def _combinations(self) -> Iterator[dict[str, Plain]]:
        """Every trial of a space of lists, those that differ in what counts; there may be very many."""
        known = set()
        lists = [one for one in self.space.parameters if isinstance(one, Choice)]
        for labels in product(*(one.labels for one in lists)):
            values = self.counted(dict(zip((one.name for one in lists), labels, strict=True)))
            if _key(values) not in known:
                known.add(_key(values))
                yield values

    def _listed(self, first: Values | None) -> Iterator[Values]:
        """The trials that are set from the beginning: the spec as it is written, and all where they are few enough."""
        made = list(islice(self._combinations(), self.limit + 1)) if self.space.listed else []
        if first is not None:
            yield first
        if len(made) <= self.limit:
            yield from (values for values in made if first is None or _key(values) != _key(first))

    def counted(self, values: Values) -> dict[str, Plain]:
        """The values that mean anything beside each other."""
        return {name: one for name, one in values.items() if counts(name, values, self.spec, self.losses)}

    @contextmanager
    def next(self) -> Iterator[tuple[Trial, optuna.trial.Trial] | None]:
        """The next trial, owned inside the block; None where all are done or owned by others."""
        with ExitStack() as stack:
            with self.lock:
                found = self._orphan(stack) or self._new(stack)
                if found is not None:
                    self._suggest(found)
            yield None if found is None else (self._trial(found.number), found)

    def _orphan(self, stack: ExitStack) -> optuna.trial.Trial | None:
        """A trial whose process is gone, taken over."""
        import optuna

        running = optuna.trial.TrialState.RUNNING
        for frozen in self.study.get_trials(deepcopy=False, states=(running,)):
            with ExitStack() as owned:
                if not self._owns(owned, frozen.number):
                    continue
                # Its owner may have ended it, and gone, since the list was read.
                if self.storage.get_trial(frozen._trial_id).state is running:
                    stack.push(owned.pop_all())
                    return optuna.trial.Trial(self.study, frozen._trial_id)
        return None

    def _new(self, stack: ExitStack) -> optuna.trial.Trial | None:
        import optuna

        states = tuple(one for one in optuna.trial.TrialState if one is not optuna.trial.TrialState.WAITING)
        if len(self.study.get_trials(deepcopy=False, states=states)) >= self.limit:
            return None
        self.study.sampler = self._sampler("", 0)
        trial = self.study.ask()
        owned = self._owns(stack, trial.number)
        assert owned, "a new trial has no owner"
        return trial

    def _owns(self, stack: ExitStack, number: int) -> bool:
        """Hold the lock of a trial; False where another process does."""
        try:
            stack.enter_context(claim(self.folder / "owners" / f"{number:03}"))
        except RunError:
            return False
        return True

    def _suggest(self, trial: optuna.trial.Trial) -> None:
        """Choose a value of each parameter that counts; what was chosen before an end stays."""
        values: dict[str, Plain] = {}
        for parameter in sorted(self.space.parameters, key=lambda one: one.name != "method"):
            if not counts(parameter.name, values, self.spec, self.losses):
                continue
            self.study.sampler = self._sampler(parameter.name, trial.number)
            values[parameter.name] = _suggested(trial, parameter)

    def stops(self, trial: optuna.trial.Trial, step: int, value: float, primary: str) -> bool:
        """Record an evaluation; whether successive halving stops the trial there.

        An accuracy that lies behind by no more than chance goes on, and is looked at again later.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trial that runs again reports the same steps
            trial.report(value, step)
        if not (self.halves and trial.should_prune()):
            return False
        chance = by_chance(value, self.held) if primary == SHARE and self.held else 0.0
        return value < self._bar(trial, step, value) - chance

    def _bar(self, trial: optuna.trial.Trial, step: int, value: float) -> float:
        """The least value of the best half at this look, own value included; a trial that failed is no rival."""
        look = self.first_look
        while look * REDUCTION <= step:
            look *= REDUCTION
        values = [value]
        for other in self.study.get_trials(deepcopy=False):
            steps = [at for at in other.intermediate_values if at >= look]
            if other.number != trial.number and steps and STATES[other.state.name] != "failed":
                values.append(other.intermediate_values[min(steps)])
        return sorted(values, reverse=True)[max(1, len(values) // REDUCTION) - 1]

    def tell(self, trial: optuna.trial.Trial, state: str, value: float | None, **said: Any) -> None:
        """Record how a trial ended: complete, stopped or failed."""
        import optuna

        for name, one in said.items():
            trial.set_user_attr(name, one)
        of = {ours: theirs for theirs, ours in STATES.items()}
        end = optuna.trial.TrialState[of[state]]
        if end is optuna.trial.TrialState.PRUNED:
            self.study.tell(trial, state=end)
        else:
            self.study.tell(trial, None if value is None else value, state=end)

    def trials(self) -> list[Trial]:
        """All trials that have begun, in order."""
        return [one for one in map(self._of, self.study.get_trials(deepcopy=False)) if one.state != "waiting"]

    def _trial(self, number: int) -> Trial:
        return next(one for one in self.trials() if one.number == number)

    def twin(self, trial: Trial) -> Trial | None:
        """An earlier trial with the same values that has ended."""
        key = _key(trial.values)
        for one in self.trials():
            if one.number < trial.number and one.state in ("complete", "stopped") and _key(one.values) == key:
                return one
        return None

    def _of(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        said = frozen.user_attrs
        values = frozen.params
        course = {step: value for step, value in frozen.intermediate_values.items() if math.isfinite(value)}
        ended = frozen.state.name == "COMPLETE"
        return Trial(
            number=frozen.number,
            values=values,
            state=STATES[frozen.state.name],
            value=frozen.value if ended else (course[max(course)] if course else None),
            metrics=said.get("metrics", {}),
            primary=said.get("primary", ""),
            steps=said.get("steps", 0),
            seconds=said.get("seconds", 0.0),
            ratio=said.get("ratio"),
            error=said.get("error"),
            same_as=said.get("same_as"),
            course=course,
        )

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest value; of equal ones the first."""
        ended = [one for one in self.trials() if one.state == "complete" and one.value is not None]
        return max(ended, key=lambda one: (one.value or 0.0, -one.number)) if ended else None

    def noted(self, name: str) -> Any:
        """What the storage keeps under a name; None where nothing."""
        return self.study.user_attrs.get(name)

    def note(self, name: str, value: Any) -> None:
        """Keep something in the storage."""
        self.study.set_user_attr(name, value)

    def importance(self) -> dict[str, float]:
        """By parameter, its share of what the values decide (PED-ANOVA); empty where too few trials tell."""
        import optuna

        done = [one for one in self.trials() if one.state == "complete" and one.value is not None]
        values = {one.value for one in done}
        if len(done) < 4 or len(values) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        names = [
            one.name
            for one in self.space.parameters
            if all(one.name in trial.values for trial in done)
            and len({json.dumps(trial.values[one.name]) for trial in done}) > 1
        ]
        if not names:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(
                self.study, evaluator=evaluator, params=names, normalize=False
            )
        total = sum(found.values())
        return {name: share / total for name, share in found.items()} if total > 0 else {}


def recorded_facts(folder: Path, name: str | None = None) -> dict[str, Any] | None:
    """What the sweep in a folder sweeps, or one of these facts; None where there is none."""
    if not is_file(folder / STORAGE):
        return None
    storage = _storage(folder / STORAGE)
    try:
        found = [one for one in storage.get_all_studies() if one.study_name == NAME]
        facts = dict(found[0].user_attrs.get(FACTS) or {}) if found else {}
        return (facts if name is None else facts.get(name)) or None
    finally:
        _close(storage)


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """The storage in a file, made where there is none. A process waits a minute for another that writes."""
    import optuna

    url = f"sqlite:///{path.absolute()}"
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _close(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def require_same(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raise RunError KD836 where the folder holds a sweep of something else."""
    known = recorded_facts(folder)
    if not known:
        return
    now = json.loads(json.dumps(facts))
    differs = [name for name in now if known.get(name) != now[name]]
    if not differs:
        return
    detail = ""
    before, after = known.get("space"), now.get("space")
    if "space" in differs and isinstance(before, dict) and isinstance(after, dict):
        keys = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        detail = f" ({', '.join(f'`{key}`' for key in keys[:4])})"
    raise RunError.of(
        "KD836",
        f"{folder} holds a sweep with another {' and another '.join(differs)}{detail}: results of two can't be told "
        "apart",
        "name another folder, `--dir`, or give the spec and the arguments of before",
    )


def _suggested(trial: optuna.trial.Trial, parameter: Parameter) -> Plain:
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(parameter.name, list(parameter.labels))
    return _number(trial, parameter)


def _number(trial: optuna.trial.Trial, one: Range) -> int | float:
    if one.whole:
        step = 1 if one.step is None else int(one.step)
        return trial.suggest_int(one.name, int(one.low), int(one.high), step=step, log=one.log)
    return trial.suggest_float(one.name, one.low, one.high, step=one.step, log=one.log)


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
