"""k-NN by hand; logistic regression against scikit-learn; what changes nothing; folds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcli.tasks.probe.classifiers import (
    fit,
    folds_of,
    in_few_dimensions,
    linear_probe,
    nearest_classes,
    standardised,
)


def clouds(count: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds of points with labels, their features of unlike scale."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    noise = torch.randn(count, width, generator=draws)
    scale = torch.logspace(-2, 2, width)
    return ((0.5 * centres[labels] + noise) * scale).double(), labels


def at(*degrees: float) -> Tensor:
    """Points on the unit circle."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]).double()


def test_neighbours_vote_with_the_exponential_of_their_similarity() -> None:
    train, labels = at(0, 50, 55, 180), torch.tensor([0, 1, 1, 0])
    test = at(20, 30)
    # At 20 degrees the cosines are .9397 (class 0), .8660 and .8192 (class 1). With T .07 the votes are 677,000
    # against 236,000 + 121,000, with T 1 they are 2.56 against 2.38 + 2.27.
    for temperature, answer in ((0.07, 0), (1.0, 1)):
        votes = [
            math.exp(math.cos(math.radians(20)) / temperature),
            sum(math.exp(math.cos(math.radians(d)) / temperature) for d in (30, 35)),
        ]
        assert votes.index(max(votes)) == answer
        found = nearest_classes(train, labels, test[:1], 2, k=3, temperature=temperature)
        assert found.tolist() == [answer]
    assert nearest_classes(train, labels, test, 2, k=1).tolist() == [0, 1]


def test_lengths_do_not_matter_and_a_small_temperature_overflows_nothing() -> None:
    train, labels = at(0, 90), torch.tensor([0, 1])
    test = 1e6 * at(10, 80)
    assert nearest_classes(3.0 * train, labels, test, 2, k=20, temperature=1e-4).tolist() == [0, 1]


@pytest.mark.slow
def test_the_classifier_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    for count, width in ((90, 12), (40, 70)):
        features, labels = clouds(count, width, 3)
        asked, _ = clouds(30, width, 3, seed=1)
        known, other = standardised(features, asked)
        rotated, turned = in_few_dimensions(known, other)
        for strength in (1.0, 0.01):
            own = fit(rotated, labels, 3, strength, scale=(rotated**2).mean(0))
            theirs = sklearn.LogisticRegression(C=1 / (strength * count), tol=1e-10, max_iter=10_000)
            theirs.fit(known.numpy(), labels.numpy())
            gap = np.abs(own.logits(turned).softmax(1).numpy() - theirs.predict_proba(other.numpy())).max()
            assert own.arrived and gap < 1e-4


def test_scale_shift_and_a_constant_feature_change_no_answer() -> None:
    train, labels = clouds(60, 8, 3)
    test, _ = clouds(40, 8, 3, seed=1)
    plain = linear_probe(train, labels, test, 3)
    scales, shift = torch.logspace(-3, 3, 8).double(), torch.linspace(-5, 5, 8).double()

    def changed(features: Tensor) -> Tensor:
        return torch.cat([features * scales + shift, torch.full((len(features), 1), 0.1).double()], 1)

    found = linear_probe(changed(train), labels, changed(test), 3)
    assert found.classes.tolist() == plain.classes.tolist()
    assert found.accuracy == plain.accuracy


def test_the_same_numbers_give_the_same_bits() -> None:
    train, labels = clouds(60, 8, 3)
    one, other = (linear_probe(train, labels, train, 3) for _ in range(2))
    assert torch.equal(one.chosen.weight, other.chosen.weight) and torch.equal(
        one.chosen.bias, other.chosen.bias
    )


def test_the_test_part_decides_nothing() -> None:
    train, labels = clouds(60, 8, 3)
    test, _ = clouds(40, 8, 3, seed=1)
    one, other = linear_probe(train, labels, test, 3), linear_probe(train, labels, 100 * test[:3], 3)
    assert torch.equal(one.chosen.weight, other.chosen.weight)


def test_l2_is_chosen_by_the_folds() -> None:
    """Labels without any relation to many features: no strength helps, and of equal ones the strongest is taken."""
    features = torch.zeros(20, 4).double()
    found = linear_probe(features, torch.arange(20) % 2, features[:1], 2)
    assert len(set(found.accuracy)) == 1 and found.chosen.strength == 10.0
    train, labels = clouds(300, 3, 3)
    found = linear_probe(train, labels, train, 3)
    assert (
        max(found.accuracy)
        == found.accuracy[[10.0, 1.0, 0.1, 0.01, 0.001, 0.0001].index(found.chosen.strength)]
    )


def test_folds_are_stratified() -> None:
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 13)
    folds = folds_of(labels, 5)
    sizes = torch.bincount(folds)
    assert sizes.tolist() == [5] * 5
    for number in range(3):
        own = torch.bincount(folds[labels == number], minlength=5)
        assert own.max() - own.min() <= 1
