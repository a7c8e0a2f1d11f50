"""When runs differ beyond the spread over seeds: by numbers worked out by hand, and by scipy's own tests."""

from __future__ import annotations

import math
import random

import pytest

from kdcli.report.spread import STUDENT_T, by_seed, judged


def seeded(*values: float, first: int = 1) -> list[tuple[int | None, float]]:
    return [(first + number, value) for number, value in enumerate(values)]


def test_seeds_that_are_the_same_are_judged_seed_by_seed() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3) = 3.46 of 4.303 for two degrees of freedom.
    found = judged(seeded(11.0, 22.0, 33.0), seeded(10.0, 20.0, 30.0))
    assert found.pairs == (1.0, 2.0, 3.0) and found.difference == 2.0 and found.spread == 1.0
    assert not found.apart and found.shown is False
    # A fourth of 2: t = 2 / (0.8165 / 2) = 4.9 of 3.182.
    found = judged(seeded(11.0, 22.0, 33.0, 42.0), seeded(10.0, 20.0, 30.0, 40.0))
    assert found.shown is True and not found.apart
    assert judged(seeded(10.0, 20.0, 30.0, 40.0), seeded(11.0, 22.0, 33.0, 42.0)).shown is True


def test_other_seeds_are_judged_as_two_samples() -> None:
    # Means 2 and 5, squares 2 + 2 over 4 degrees of freedom: deviation 1, error sqrt(2/3), t = 3.67 of 2.776.
    found = judged(seeded(4.0, 5.0, 6.0), seeded(1.0, 2.0, 3.0, first=7))
    assert found.pairs == () and found.spread == pytest.approx(math.sqrt(2)) and found.beyond_chance is True
    assert found.apart and found.shown is True
    # One run beside three: error sqrt(1 + 1/3), t = 3 / 1.155 = 2.6 of 4.303.
    found = judged(seeded(5.0), seeded(1.0, 2.0, 3.0))
    assert found.pairs == () and found.shown is False and not found.apart
    assert judged(seeded(7.5), seeded(1.0, 2.0, 3.0)).shown is True  # 4.76
    assert judged([(None, 4.0), (None, 5.0)], [(None, 1.0), (None, 2.0)]).pairs == ()


def test_a_seed_that_ran_twice_counts_once() -> None:
    found = judged([(1, 9.0), (1, 9.0), (2, 8.0)], seeded(1.0, 2.0))
    assert found.pairs == (8.0, 6.0) and found.difference == 7.0
    assert judged([(1, 9.0), (1, 9.0), (1, 9.0)], [(1, 8.0), (1, 8.0)]).shown is None
    assert by_seed([(1, 4.0), (None, 7.0), (1, 5.0), (None, 7.0)]) == [(1, 4.5), (None, 7.0), (None, 7.0)]


def test_every_run_above_every_other_is_enough_where_there_are_two_of_each() -> None:
    found = judged(seeded(3.0, 9.0), seeded(1.0, 2.0))
    assert found.apart and found.beyond_chance is False and found.shown is True
    assert judged(seeded(2.0, 9.0), seeded(1.0, 2.0)).shown is False


def test_what_nobody_knows() -> None:
    found = judged(seeded(3.0), seeded(1.0))
    assert (found.difference, found.spread, found.shown) == (2.0, None, None)
    for wrong in (math.nan, math.inf):
        assert judged(seeded(3.0, wrong), seeded(1.0, 2.0)).shown is False


def test_the_bounds_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom, bound in enumerate(STUDENT_T, 1):
        assert bound == pytest.approx(float(stats.t.ppf(0.975, freedom)), abs=6e-4)
    drawn = random.Random(0)
    for size in (2, 3, 5, 12):
        for shift in (0.0, 1.0, 3.0):
            ours = [drawn.gauss(shift, 1.0) for _ in range(size)]
            theirs = [drawn.gauss(0.0, 1.0) for _ in range(size)]
            paired = judged(seeded(*ours), seeded(*theirs))
            assert paired.beyond_chance == (stats.ttest_rel(ours, theirs).pvalue < 0.05)
            apart = judged(seeded(*ours), seeded(*theirs, first=100))
            assert apart.beyond_chance == (stats.ttest_ind(ours, theirs).pvalue < 0.05)
