"""k-NN and multinomial logistic regression on features [N, D], in float64; the same numbers give the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)
"""Strengths of L2 that are tried, the strongest first; scikit-learn's C is 1 / (strength * samples)."""

FOLDS = 5

STEPS = 1000
"""The most iterations of L-BFGS."""

EXACT, ROUGH = 1e-9, 1e-4
"""The largest element of the gradient at which a fit ends: the one that is measured, those that choose."""

ARRIVED = 1e-6
"""Below this the minimum is reached as far as probabilities can show it: rounding may end a fit before EXACT."""

CHUNK = 4_000_000
"""So many similarities, or votes, are in memory at once."""


def nearest_classes(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class [M] of each test feature by its k nearest training features in cosine similarity s.

    train [N, D], labels [N], test [M, D]. A neighbour votes with exp(s / temperature); of classes with equal votes the
    first. k: at most all N.
    """
    known, asked = (F.normalize(one.double(), dim=1) for one in (train, test))
    k = min(k, len(known))
    votes = F.one_hot(labels, classes).double()
    rows = max(1, CHUNK // max(len(known), k * classes))
    found = []
    for part in asked.split(rows):
        near, places = (part @ known.T).topk(k, dim=1)
        # The largest vote of each row is 1, so that a small temperature overflows nothing.
        weights = ((near - near[:, :1]) / temperature).exp()
        found.append((votes[places] * weights[:, :, None]).sum(1).argmax(1))
    return torch.cat(found)


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """A fitted linear classifier of rotated features. strength: of L2; arrived: whether the fit has converged."""

    weight: Tensor
    bias: Tensor
    strength: float
    arrived: bool

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, K] of features [N, R]."""
        return features @ self.weight.T + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    *,
    scale: Tensor,
    start: LogisticRegression | None = None,
    until: float = EXACT,
) -> LogisticRegression:
    """Minimise the mean cross entropy + strength / 2 · ‖weight‖² by L-BFGS; the bias is free.

    features float64 [N, R], labels [N]. scale: [R] the mean square of each feature, which brings the directions to
    one steepness and changes how fast the minimum is reached, not where it is. start: where to begin, zero by default.
    until: the largest element of the gradient, in that steepness, at which it is reached.
    """
    count, width = features.shape
    steepness = (1.0 - 1.0 / classes) / classes
    step = (steepness * scale + strength).rsqrt()
    weight = torch.zeros(classes, width, dtype=torch.float64, device=features.device)
    bias = torch.zeros(classes, dtype=torch.float64, device=features.device)
    if start is not None:
        weight, bias = start.weight / step, start.bias * steepness**0.5
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    targets = F.one_hot(labels, classes).double()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        history_size=20,
        tolerance_grad=until,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        own = weight * step
        log = (features @ own.T + bias / steepness**0.5).log_softmax(1)
        loss = -(targets * log).sum() / count + 0.5 * strength * (own**2).sum()
        gap = (log.exp() - targets) / count
        weight.grad = (gap.T @ features + strength * own) * step
        bias.grad = gap.sum(0) / steepness**0.5
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()
    assert weight.grad is not None and bias.grad is not None
    left = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    return LogisticRegression(
        weight.detach() * step, bias.detach() / steepness**0.5, strength, left <= ARRIVED
    )


def folds_of(labels: Tensor, count: int = FOLDS) -> Tensor:
    """The fold [N] of each sample: those of a class are dealt out in turn, the next class goes on where it ended."""
    folds = torch.empty_like(labels)
    dealt = 0
    for number in labels.unique(sorted=True).tolist():
        own = (labels == number).nonzero()[:, 0]
        folds[own] = (torch.arange(len(own), device=labels.device) + dealt) % count
        dealt += len(own)
    return folds


@dataclass(frozen=True, slots=True)
class Probed:
    """A linear probe's answers. chosen: the classifier; accuracy: in the folds, of each strength that was tried."""

    classes: Tensor
    chosen: LogisticRegression
    accuracy: tuple[float, ...]


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, classes: int, *, folds: int = FOLDS) -> Probed:
    """The class [M] of each test feature by logistic regression; the strength of L2 is chosen by stratified folds.

    Both sides are standardised by the training features' mean and standard deviation; the folds are of the training
    part alone, of strengths as good as each other the strongest is taken, and is fitted on all of that part.
    """
    known, asked = in_few_dimensions(*standardised(train.double(), test.double()))
    scale = (known**2).mean(0)
    fold = folds_of(labels, folds)
    right = torch.zeros(len(STRENGTHS), dtype=torch.int64)
    for number in range(folds):
        inside, outside = fold != number, fold == number
        last: LogisticRegression | None = None
        for place, strength in enumerate(STRENGTHS):
            last = fit(known[inside], labels[inside], classes, strength, scale=scale, start=last, until=ROUGH)
            right[place] += int((last.logits(known[outside]).argmax(1) == labels[outside]).sum())
    best = int(right.argmax())
    chosen = fit(known, labels, classes, STRENGTHS[best], scale=scale)
    accuracy = tuple((100.0 * right.double() / len(labels)).tolist())
    return Probed(chosen.logits(asked).argmax(1), chosen, accuracy)


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the training features' mean, over their standard deviation; a constant feature becomes 0."""
    mean = train.mean(0)
    spread = train.std(0, correction=0)
    # What is left of a constant feature is rounding: to scale that up would make a feature of noise.
    constant = spread <= 1e-6 * train.abs().amax(0)
    over = torch.where(constant, 0.0, 1.0 / torch.where(constant, 1.0, spread))
    return (train - mean) * over, (test - mean) * over


def in_few_dimensions(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the principal axes of the training features, at most as many as there are of these.

    A rotation: distances, and so the fitted classifier, stay what they are, since what L2 keeps small has no part
    outside of the space that the training features span.
    """
    count, width = train.shape
    if width <= count:
        _, axes = torch.linalg.eigh(train.T @ train)
        return train @ axes, test @ axes
    squares, left = torch.linalg.eigh(train @ train.T)
    kept = squares > 1e-12 * squares[-1].clamp(min=1e-300)
    if not bool(kept.any()):
        return train[:, :1], test[:, :1]
    axes = train.T @ (left[:, kept] / squares[kept].sqrt())
    return train @ axes, test @ axes
