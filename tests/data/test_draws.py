"""The counter-based random numbers: pure, uniform, independent."""

from __future__ import annotations

import numpy as np
import pytest

from kdcli.data.draws import (
    AT_ONCE,
    Draws,
    EpochDraws,
    _absorb,
    _word,
    generator,
    hashes,
    permutation,
    seed_of,
    uniform,
)


def test_a_number_depends_on_its_own_counters_only() -> None:
    ids = np.array([5, 3, 900_000, 0])
    together = uniform(1, 2, ids, 4)
    assert together.shape == (4, 4) and together.dtype == np.float64
    for row, one in enumerate(ids):
        assert np.array_equal(uniform(1, 2, [one], 4)[0], together[row])
    assert np.array_equal(uniform(1, 2, ids, 2), together[:, :2])


@pytest.mark.parametrize("changed", [{"seed": 2}, {"epoch": 1}, {"stream": 1}])
def test_each_counter_changes_every_number(changed: dict[str, int]) -> None:
    given = {"seed": 1, "epoch": 0, "stream": 0}
    ids = np.arange(1000)

    def drawn(seed: int, epoch: int, stream: int) -> object:
        return uniform(seed, epoch, ids, 3, stream=stream)

    assert not np.any(np.equal(drawn(**given), drawn(**{**given, **changed})))


def test_numbers_are_uniform() -> None:
    numbers = uniform(131, 7, np.arange(50_000), 4)
    assert numbers.min() >= 0 and numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, bins=50, range=(0, 1))[0]
        chi_squared = ((counts - 1000.0) ** 2 / 1000.0).sum()
        assert chi_squared < 86  # 49 degrees of freedom: p = 0.001
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.005 and np.abs(numbers.var(0) - 1 / 12).max() < 0.002


def test_neighbouring_counters_are_uncorrelated() -> None:
    ids = np.arange(20_000)
    base = uniform(131, 0, ids, 3)
    others = [
        base[:, 1],
        np.roll(base[:, 0], 1),
        uniform(132, 0, ids, 1)[:, 0],
        uniform(131, 1, ids, 1)[:, 0],
        uniform(131, 0, ids, 1, stream=1)[:, 0],
    ]
    for other in others:
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < 0.03


def test_one_bit_of_a_counter_flips_half_of_the_hash() -> None:
    ids = np.arange(2000)
    difference = hashes(0, 0, ids, 1)[:, 0] ^ hashes(0, 0, ids ^ 1, 1)[:, 0]
    flipped = np.unpackbits(difference.view(np.uint8)).reshape(2000, 64).mean(axis=0)
    assert np.all(np.abs(flipped - 0.5) < 0.06)


def test_hashes_stay_what_they_are() -> None:
    """A checkpoint of an older version must see the same pixels."""
    assert [int(h) for h in hashes(131, 3, [0, 7], 2).ravel()] == [
        1824394433848546981,
        16803493092853727047,
        10826737577518084106,
        8264180191654654850,
    ]


def test_one_round_is_splitmix64() -> None:
    """The published first output for the seed 1234567."""
    assert int(_absorb(_word(0), _word(1234567))[0]) == 6457827717110365317


def test_seed_of_fits_torchs_and_numpys_generators() -> None:
    seeds = [seed_of(1, 2, i) for i in range(100)]
    assert all(0 <= s < 2**63 for s in seeds) and len(set(seeds)) == 100
    assert generator(1, 2, 3, stream=2).random() == generator(1, 2, 3, stream=2).random()


def test_permutation_is_one_and_differs_by_epoch() -> None:
    first, second = permutation(1, 0, 1000), permutation(1, 1, 1000)
    assert sorted(first) == list(range(1000)) and sorted(second) == list(range(1000))
    assert (first == second).sum() < 10 and (first == np.arange(1000)).sum() < 10


def test_draws_of_two_transforms_are_unlike() -> None:
    draws = Draws(1, 0, np.arange(100))
    assert not np.any(np.equal(draws.of(0).uniform(2), draws.of(1).uniform(2)))
    assert np.array_equal(draws.of(1).at([3, 4]).uniform(2), draws.of(1).uniform(2)[[3, 4]])


@pytest.mark.parametrize("samples", [1, 300, AT_ONCE // 2 + 1])
def test_numbers_drawn_together_for_an_epoch_are_those_of_each_batch(samples: int) -> None:
    ids = np.random.default_rng(0).integers(0, samples, 16)
    for epoch in (0, 3):
        together = EpochDraws(7, epoch, samples)
        for number, count in ((0, 1), (0, 2), (1, 2)):
            alone, drawn = (Draws(7, epoch, ids, together=one).of(number) for one in (None, together))
            expected, found = alone.uniform(count), drawn.uniform(count)
            assert np.array_equal(found, expected) and found.dtype == expected.dtype
            found[:] = 2.0  # a batch's own
            assert np.array_equal(drawn.at([3, 4]).uniform(count), expected[[3, 4]])
