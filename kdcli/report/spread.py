"""Whether one set of runs is better than another beyond the spread over seeds: the rule of `compare` and of `sweep`.

It is where every run of the one lies on one side of every run of the other, two runs each at least, or by Student's
t at 95 %: of the differences seed by seed where both have the same seeds (the same first weights, the same order of
images), else of two samples with one spread.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STUDENT_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t that is exceeded by chance in 5 % of cases, both sides together, for 1 to 30 degrees of freedom."""


SeedValue = tuple[int | None, float]
"""A run's seed and its value."""


def by_seed(runs: Sequence[SeedValue]) -> list[SeedValue]:
    """One value a seed, the mean of those that it has; a run without a seed stands for itself."""
    values: dict[int, list[float]] = {}
    for seed, value in runs:
        if seed is not None:
            values.setdefault(seed, []).append(value)
    known = [(seed, sum(some) / len(some)) for seed, some in values.items()]
    return [*known, *((None, value) for seed, value in runs if seed is None)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of a metric over runs; std is the sample standard deviation, None for a single run."""

    mean: float
    std: float | None
    values: tuple[float, ...]


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of the values."""
    finite = all(math.isfinite(value) for value in values)
    std = (statistics.stdev(values) if finite else math.nan) if len(values) > 1 else None
    return Spread(sum(values) / len(values), std, tuple(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How runs differ from others. difference: of the means. apart: every run lies on one side of every other one.

    pairs: of runs of one seed, the differences; empty where the seeds are not the same. spread: the deviation of those,
    else what one expects of the difference of two runs; None where there is one run each. beyond_chance: by Student's
    t; None without a spread.
    """

    difference: float
    apart: bool
    pairs: tuple[float, ...]
    spread: float | None
    beyond_chance: bool | None

    @property
    def shown(self) -> bool | None:
        """Whether there is a difference beyond the spread; None where nothing is known of it."""
        return None if self.beyond_chance is None else self.apart or self.beyond_chance


def judged(runs: Sequence[SeedValue], others: Sequence[SeedValue]) -> Judgement:
    """Judge runs beside others; one each at least. Values that are not finite are beyond nothing.

    A seed that ran several times counts once, by the mean: what it gives again is no other draw.
    """
    runs, others = by_seed(runs), by_seed(others)
    own, theirs = [value for _, value in runs], [value for _, value in others]
    difference = sum(own) / len(own) - sum(theirs) / len(theirs)
    if not all(map(math.isfinite, (*own, *theirs))):
        return Judgement(difference=difference, apart=False, pairs=(), spread=math.nan, beyond_chance=False)
    several = min(len(own), len(theirs)) > 1
    apart = several and (min(own) > max(theirs) or max(own) < min(theirs))
    pairs = _pairs(dict(runs), dict(others))
    freedom = len(own) + len(theirs) - 2
    if several and len(pairs) == len(own) == len(theirs):
        freedom = len(pairs) - 1
        spread = statistics.stdev(pairs)
        error = spread / math.sqrt(len(pairs))
    elif freedom:
        pairs = ()
        squares = sum((value - statistics.fmean(some)) ** 2 for some in (own, theirs) for value in some)
        spread = math.sqrt(2 * squares / freedom)
        error = spread * math.sqrt((1 / len(own) + 1 / len(theirs)) / 2)
    else:
        return Judgement(difference=difference, apart=False, pairs=(), spread=None, beyond_chance=None)
    beyond = abs(difference) > STUDENT_T[min(freedom, len(STUDENT_T)) - 1] * error
    return Judgement(difference=difference, apart=apart, pairs=pairs, spread=spread, beyond_chance=beyond)


def _pairs(runs: Mapping[int | None, float], others: Mapping[int | None, float]) -> tuple[float, ...]:
    """The differences of runs of one seed, one run a seed."""
    return tuple(runs[seed] - others[seed] for seed in runs if seed is not None and seed in others)
