"""Draws that depend on counters alone are as even as a generator's."""

from __future__ import annotations

import torch

from kdcli.losses.parts.draws import drawn_integers, drawn_shares, new_salt

SALT = torch.tensor(123456789)
ROWS, COLUMNS = 200, 500


def test_a_sample_is_drawn_for_alike_whatever_stands_beside_it() -> None:
    whole = drawn_integers(SALT, 3, torch.arange(8), 5, below=1000)
    for rank in range(2):
        part = drawn_integers(SALT, 3, torch.arange(rank, 8, 2), 5, below=1000)
        assert torch.equal(part, whole[rank::2])
    others = [drawn_integers(SALT, 4, torch.arange(8), 5, below=1000)]
    others.append(drawn_integers(SALT + 1, 3, torch.arange(8), 5, below=1000))
    assert not any(torch.equal(other, whole) for other in others)


def test_every_integer_is_as_likely() -> None:
    found = drawn_integers(SALT, 0, torch.arange(ROWS), COLUMNS, below=10)
    counts = found.flatten().bincount(minlength=10).double()
    expected = ROWS * COLUMNS / 10
    # Chi-squared with 9 degrees of freedom: 27.9 is passed once in a thousand.
    assert len(counts) == 10 and ((counts - expected).square() / expected).sum() < 27.9
    assert int(drawn_integers(SALT, 0, torch.arange(ROWS), COLUMNS, below=2**31).max()) < 2**31


def test_shares_are_even_and_tell_nothing_of_their_neighbours() -> None:
    salts = (SALT, torch.tensor(0), torch.tensor(2**32 - 1))
    for shares in (
        drawn_shares(salt, step, torch.arange(ROWS), COLUMNS) for salt in salts for step in (0, 1)
    ):
        assert 0 <= shares.min() and shares.max() < 1
        assert abs(shares.mean() - 0.5) < 0.005 and abs(shares.var() - 1 / 12) < 0.002
        for one, next_one in ((shares[1:], shares[:-1]), (shares[:, 1:], shares[:, :-1])):
            assert abs(torch.corrcoef(torch.stack([one.flatten(), next_one.flatten()]))[0, 1]) < 0.02
        # The spread of the means is that of independent draws.
        assert 0.8 < shares.mean(1).std() * (12 * COLUMNS) ** 0.5 < 1.2
        assert 0.85 < shares.mean(0).std() * (12 * ROWS) ** 0.5 < 1.15


def test_the_salt_comes_from_the_seed() -> None:
    with torch.random.fork_rng():
        salts = [(torch.manual_seed(seed), new_salt())[1].item() for seed in (1, 1, 2)]
    assert salts[0] == salts[1] != salts[2]
