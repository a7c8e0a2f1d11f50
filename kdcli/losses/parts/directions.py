"""Rows divided by their length, and what is done with a row that has none.

The direction of a zero row is not defined, and its derivative is one over whatever keeps the division from
failing (1e12 and more): a single dead channel, or a head that starts at zero, then throws the student out of
reach. Such a row counts as having no direction: it stays (nearly) zero, and its gradient is that of a row
divided by a usual length. Every other row is divided as ever, to the bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FAINT = 1e-6
"""A row has no direction if its length is at most this share of the median length in the batch."""

START = 0.1
"""Where no row has a direction (a head that starts at zero), they count as this share of the teacher's length.

The step that follows makes them as long as the gradient is, and the next gradient is as large as they are
short: at the whole length they stay short, and the steps after the first throw the student far off. Measured
on digits, where `dist` and standardised logits then learn as from a usual start.
"""

ROUNDING = 8.0
"""How many units in the last place of its mean a constant row may be away from it (measured: up to 4.4)."""


def normalized(
    student: Tensor, teacher: Tensor, dim: int | tuple[int, ...] = 1, *, power: int = 1
) -> tuple[Tensor, Tensor]:
    """Both divided by the L2 norms of their rows along dim (1e-12 at least), as `F.normalize` does.

    The median is over all rows of the tensor; see `lengths` for rows without direction. power: the rows are
    made of that power of a feature, and it is the feature that is faint or not.
    """
    s, t = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (student, teacher))
    share = FAINT**power
    for_s, for_t = s, t
    if not (_all_have_one(s, share) and _all_have_one(t, share)):
        # What is usual among either's norms is found once, and serves both.
        own_s, own_t = heard(s), heard(t)
        of_s, of_t = _usual(own_s), _usual(own_t)
        for_s = _lengths(s, own_s, of_s, of_s.median, of_t, share)
        for_t = _lengths(t, own_t, of_t, of_t.median, of_s, share)
    return student / for_s.clamp_min(1e-12).expand_as(student), teacher / for_t.clamp_min(1e-12).expand_as(
        teacher
    )


def lengths(
    norms: Tensor,
    *,
    like: Tensor | None = None,
    noise: Tensor | None = None,
    rows: Tensor | None = None,
    share: float = FAINT,
) -> Tensor:
    """What to divide rows by: their norms, and a usual length, without gradient, for those without direction.

    The usual length is the median of the norms; where that is 0 the mean of the norms above 0; where all
    are 0 a tenth of the usual length of `like` (the other network's norms, see `heard`), of 1 where that has
    none either.
    noise: the norm that rounding alone may leave of a row. rows: norms that tell which rows are faint,
    where these are not the ones that are divided by. share: of the median. No shape depends on the values, and no
    branch but on the CPU, where both give the same bits.
    """
    own = heard(norms, noise)
    telling = own if rows is None else heard(rows)
    if _all_have_one(telling, share):
        return norms
    usual = _usual(own)
    median = usual.median if rows is None else telling.median()
    return _lengths(norms, telling, usual, median, None if like is None else _usual(like), share)


def heard(norms: Tensor, noise: Tensor | None = None) -> Tensor:
    """The norms without gradient, 0 where rounding alone may have left them."""
    own = norms.detach()
    return own if noise is None else torch.where(own <= noise, torch.zeros_like(own), own)


def rounding(mean: Tensor, size: int) -> Tensor:
    """The norm that rounding may leave of a constant row of that many values once its mean is taken off."""
    return mean.detach().abs() * (ROUNDING * torch.finfo(mean.dtype).eps * math.sqrt(size))


def _all_have_one(norms: Tensor, share: float) -> bool:
    """Whether every row is known to have a direction: the shortest is not faint even beside the longest.

    Known on the CPU alone, where a value is read without a wait, and neither of fake tensors nor in a graph. Then
    `lengths` gives the norms themselves, and what is usual among them need not be found.
    """
    if (
        norms.device.type != "cpu"
        or type(norms) is not Tensor
        or torch.compiler.is_compiling()
        or not norms.numel()
    ):
        return False
    shortest, longest = norms.detach().aminmax()
    return float(shortest) > 2 * share * float(longest)


class _Usual(NamedTuple):
    """What is usual among norms. length: the median, where that is 0 the mean of those above 0; there: above 0."""

    median: Tensor
    length: Tensor
    there: Tensor


def _usual(norms: Tensor) -> _Usual:
    median = norms.median()
    mean = norms.sum() / (norms > 0).sum().clamp(min=1)
    length = torch.where(median > 0, median, mean)
    return _Usual(median, length, length > 0)


def _lengths(
    norms: Tensor, telling: Tensor, usual: _Usual, median: Tensor, like: _Usual | None, share: float
) -> Tensor:
    """As `lengths`. telling, median: the norms that tell which rows are faint, and their median."""
    one = norms.new_ones(())
    other = one if like is None else torch.where(like.there, like.length, one)
    instead = torch.where(usual.there, usual.length, START * other)
    return torch.where(telling <= share * median, instead, norms)
