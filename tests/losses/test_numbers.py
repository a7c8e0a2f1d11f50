"""One number per loss, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.losses.bce import bce_loss
from kdcli.losses.ce import ce_loss
from kdcli.losses.dist import dist
from kdcli.losses.dkd import dkd
from kdcli.losses.kd import gkd_loss, kd_loss
from kdcli.losses.kl import kl_loss
from kdcli.losses.l2 import l2_loss
from kdcli.losses.logit_mse import logit_mse
from kdcli.losses.mlkd import mlkd
from kdcli.losses.nkd import nkd
from kdcli.losses.parts.logits import standardize
from kdcli.losses.rld import rld
from kdcli.losses.tfkd import tfkd_reg, tfkd_self
from kdcli.losses.ttm import ttm, wttm
from kdcli.losses.uskd import USKD
from kdcli.losses.wsld import wsld

LN = math.log
QUARTERS = 0.75 * LN(1.5) + 0.25 * LN(0.5)
"""KL of (3/4, 1/4) from (1/2, 1/2)."""


def d(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def logs(*probabilities: float) -> Tensor:
    return d(list(probabilities)).log()


def is_close(value: Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-9)


def test_l2() -> None:
    s, t = d([1, 2], [3, 4]), d([0, 0], [0, 0])
    assert is_close(l2_loss(s, t), 30 / 4)
    assert is_close(l2_loss(s, t, batch_mean=True), 30 / 2)
    along, across = d([3, 4], [0, 2]), d([10, 0], [0, 1])
    assert is_close(l2_loss(along, across, feat_norm=True, batch_mean=True), (0.4**2 + 0.8**2) / 2)


def test_l2_of_a_zero_feature_normalises_to_zero() -> None:
    s = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss = l2_loss(s, d([3, 4, 0]), feat_norm=True, batch_mean=True)
    loss.backward()
    assert is_close(loss, 1.0)
    assert s.grad is not None and s.grad.isfinite().all()


def test_kl() -> None:
    s, t = d([0, -5]), d([LN(3), -1])
    assert is_close(kl_loss(s, t), QUARTERS)
    maps = t.repeat(2, 1)[:, :, None, None].expand(2, 2, 3, 3)
    assert is_close(kl_loss(torch.zeros_like(maps), maps), 9 * QUARTERS)
    p, q = (0.25 + 1e-6, 0.75 + 1e-6), 0.5 + 1e-6
    expected = 0.25 * LN(p[0] / q) + 0.75 * LN(p[1] / q)
    assert is_close(kl_loss(d([2, 2]), d([1, 3]), norm="l2"), expected)


def test_kl_of_features_without_positive_values_is_finite() -> None:
    s = torch.full((2, 3), -1.0, requires_grad=True)
    loss = kl_loss(s, torch.ones(2, 3), norm="l2")
    loss.backward()
    assert loss.isfinite() and s.grad is not None and s.grad.isfinite().all()


def test_kd() -> None:
    s, t = d([0, 0], [1, 1]), d([2 * LN(3), 0], [5, 5])
    assert is_close(kd_loss(s, t, T=2.0), 4 * QUARTERS / 2)
    assert is_close(kd_loss(s, t, torch.tensor([True, False]), T=2.0), 4 * QUARTERS)


def test_kd_of_maps_is_a_mean_over_positions() -> None:
    t = d([LN(3), 0])[:, :, None, None].expand(1, 2, 3, 4)
    assert is_close(kd_loss(torch.zeros_like(t), t), QUARTERS)


def test_gkd_takes_only_rows_where_the_teacher_is_right() -> None:
    s, t = d([0, 0], [0, 0], [0, 0]), d([LN(3), 0], [0, LN(9)], [7, 0])
    assert is_close(gkd_loss(s, t, torch.tensor([0, 0, 1])), QUARTERS)
    assert is_close(gkd_loss(s, 2 * t, torch.tensor([0, 0, 1]), T=2.0), 4 * QUARTERS)


def test_ce() -> None:
    assert is_close(ce_loss(d([0, 0]), d([LN(9), 0]), T=2.0), LN(2))
    soft = -(0.75 * LN(0.8) + 0.25 * LN(0.2))
    assert is_close(ce_loss(d([4 * LN(2), 0]), d([2 * LN(3), 0]), T=2.0), soft)


def test_bce() -> None:
    s, t = d([0.5, 0.25]), d([1.0, 0.0])
    expected = LN(2) - LN(0.75)
    assert is_close(bce_loss(s, t), expected / 2)
    assert is_close(bce_loss(s, t, batch_mean=True), expected)
    logits = d([0.0, 2 * LN(3)])
    assert is_close(bce_loss(logits, d([0.0, 0.0]), T=2.0, from_logits=True), (LN(2) - LN(0.1875) / 2) / 2)


def test_dkd() -> None:
    s, t = d([0, 0, 0]), logs(0.5, 0.375, 0.125)
    target = 0.5 * LN(1.5) + 0.5 * LN(0.75)
    label = torch.tensor([0])
    assert is_close(dkd(s, t, label, T=1.0), target + 8 * QUARTERS)
    assert is_close(dkd(s, 2 * t, label, T=2.0, alpha=0.0), 4 * 8 * QUARTERS)
    assert is_close(dkd(s, t, label, T=1.0, alpha=3.0, beta=0.5), 3 * target + 0.5 * QUARTERS)


def test_dkd_grows_over_the_epochs() -> None:
    s, t, label = d([0, 0, 0]), logs(0.5, 0.375, 0.125), torch.tensor([0])
    whole = dkd(s, t, label)
    for epoch, share in ((0, 1 / 20), (9, 0.5), (19, 1.0), (100, 1.0)):
        assert is_close(dkd(s, t, label, epoch), whole.item() * share)
    assert is_close(dkd(s, t, label, 0, warmup_epochs=0), whole.item())
    assert is_close(dkd(s, t, label, 0, warmup_epochs=4), whole.item() / 4)


def test_rld() -> None:
    s, t = d([0, 0, 0]), logs(0.5, 0.375, 0.125)
    confidence = 0.5 * LN(1.5) + 0.5 * LN(0.75)
    assert is_close(rld(s, t, torch.tensor([0]), T=1.0), confidence + 8 * QUARTERS)
    # Only one class lies below the second, and no class below the last.
    assert is_close(rld(s, t, torch.tensor([1]), T=1.0), confidence)
    assert is_close(rld(s, t, torch.tensor([2]), T=1.0), confidence)


def test_rld_at_other_temperatures() -> None:
    # Probabilities (4, 3, 1)/8 to the second power at alpha_T 3, to the third at T 2.
    s, t = d([0, 0, 0]), 6 * logs(0.5, 0.375, 0.125)
    confidence = 8 / 13 * LN(8 / 13 * 3) + 5 / 13 * LN(5 / 13 * 3 / 2)
    correlation = 27 / 28 * LN(27 / 14) + 1 / 28 * LN(1 / 14)
    loss = rld(s, t, torch.tensor([0]), alpha=0.5, beta=2.0, T=2.0, alpha_T=3.0)
    assert is_close(loss, 0.5 * 9 * confidence + 2 * 4 * correlation)


def test_rld_grows_over_the_epochs() -> None:
    s, t, label = d([0, 0, 0]), logs(0.5, 0.375, 0.125), torch.tensor([0])
    whole = rld(s, t, label).item()
    for warmup_epochs, epoch, share in (
        (20, 0, 0.05),
        (20, 9, 0.5),
        (20, 19, 1.0),
        (4, 0, 0.25),
        (0, 0, 1.0),
    ):
        assert is_close(rld(s, t, label, epoch, warmup_epochs=warmup_epochs), whole * share)


def test_dist_of_opposites() -> None:
    s = d([3, 0], [0, 3])
    assert dist(s, s.flip(1)).item() == pytest.approx(4, rel=1e-6)
    assert dist(s, s.flip(1), beta=0.5, gamma=0.0, T=2.0).item() == pytest.approx(4, rel=1e-6)
    assert dist(s, s).abs() < 1e-6


def test_dist_at_a_temperature() -> None:
    s, t = d([1, 0, 3], [2, 2, 0]), d([0, 1, 5], [4, 0, 1])
    p, q = (s / 3).softmax(1), (t / 3).softmax(1)
    rows, columns = (
        sum(1 - torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(*sides, strict=True)) / n
        for sides, n in (((p, q), 2), ((p.T, q.T), 3))
    )
    expected = 9 * (0.5 * rows + 2 * columns)
    assert dist(s, t, beta=0.5, gamma=2.0, T=3.0).item() == pytest.approx(expected, rel=1e-5)


def test_nkd() -> None:
    s, t = d([0, 0, 0]), logs(0.5, 0.375, 0.125)
    assert is_close(nkd(s, t, torch.tensor([0])), 0.5 * LN(3) + 1.5 * LN(2))
    assert is_close(nkd(s, t, torch.tensor([0]), gamma=1.0, T=3.0), 0.5 * LN(3) + 9 * LN(2))
    # At T 3 both are (3/4, 1/4) beside the label, whose own probabilities know no T.
    entropy = LN(4) - 0.75 * LN(3)
    target = 64 / (64 + 27 + 1) * LN(1 + 27 + 1)
    assert is_close(
        nkd(d([0, 3 * LN(3), 0]), 3 * t, torch.tensor([0]), gamma=2.0, T=3.0), target + 18 * entropy
    )


def test_ttm() -> None:
    s, t = d([0, 0]), logs(0.8, 0.2)
    expected = 2 / 3 * LN(4 / 3) + 1 / 3 * LN(2 / 3)
    assert is_close(ttm(s, t, gamma=0.5), expected)
    assert is_close(wttm(s, t, gamma=0.5), expected * (math.sqrt(0.8) + math.sqrt(0.2)))


def test_wsld() -> None:
    s = d([0, 0])
    loss = wsld(s, s, torch.tensor([1]))
    assert loss.item() == pytest.approx(4 * (1 - math.exp(-1)) * LN(2), rel=1e-6)
    s, entropy = d([3 * LN(3), 0]), LN(4) - 0.75 * LN(3)
    loss = wsld(s, s, torch.tensor([1]), T=3.0)
    assert loss.item() == pytest.approx(9 * (1 - math.exp(-1)) * entropy, rel=1e-6)


def test_logit_mse() -> None:
    assert is_close(logit_mse(d([1, 2]), d([0, 4])), 2.5)


def test_mlkd() -> None:
    classes = (0.3125**2 + 2 * 0.0625**2 + 0.1875**2) / 2
    loss = mlkd(d([0, 0]), d([LN(3), 0]), temperatures=[1.0])
    relations = (0.625 - 0.5) ** 2 + 0.5 * classes
    assert is_close(loss, QUARTERS + relations)
    loss = mlkd(d([0, 0]), d([2 * LN(3), 0]), temperatures=[2.0])
    assert is_close(loss, 4 * QUARTERS + relations)
    both = mlkd(d([0, 0]), d([2 * LN(3), 0]), temperatures=[2.0, 5.0])
    assert is_close(both - loss, mlkd(d([0, 0]), d([2 * LN(3), 0]), temperatures=[5.0]).item())


def test_mlkd_standardizes_for_kl_alone() -> None:
    s, t = d([0, 1, 3]), d([5, 1, 0])
    kl = kd_loss(standardize(s), standardize(t)) - kd_loss(s, t)
    plain = mlkd(s, t, temperatures=[1.0])
    assert is_close(mlkd(s, t, temperatures=[1.0], standardize=True) - plain, kl.item())


def test_tfkd() -> None:
    assert is_close(tfkd_self(d([0, 0]), d([LN(9), 0]), T=2.0), 4 * QUARTERS / 2)
    assert is_close(tfkd_self(d([0, 0]), d([LN(9), 0]), T=2.0, multiplier=3.0), 6 * QUARTERS)
    p = 1 / (1 + math.exp(-0.98 / 20))
    expected = (p * LN(2 * p) + (1 - p) * LN(2 * (1 - p))) / 2
    loss = tfkd_reg(d([0, 0]), torch.tensor([0]))
    assert loss.item() == pytest.approx(100 * expected, rel=1e-6)


def test_tfkd_reg_by_hand() -> None:
    # The virtual teacher is the softmax of (0.6, 0.2, 0.2) / 2.
    e = math.exp(0.2)
    p, q = e / (e + 2), 1 / (e + 2)
    expected = 10 * (p * LN(3 * p) + 2 * q * LN(3 * q)) / 3
    loss = tfkd_reg(d([0, 0, 0]), torch.tensor([0]), T=2.0, correct_probability=0.6, multiplier=10.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_uskd() -> None:
    loss = USKD((1, 4), 3).double()
    for parameter in loss.parameters():
        torch.nn.init.zeros_(parameter)
    logits = logs(1 / 7, 4 / 7, 2 / 7)
    others = -(2 / 3 * LN(2 / 3) + 1 / 3 * LN(1 / 3))
    value = loss(torch.ones(1, 4, dtype=torch.float64), logits, torch.tensor([0]))
    assert is_close(value, LN(7) + 0.1 * others + 0.005 * LN(3))
    weighed = USKD((1, 4), 3, alpha=2.0, beta=3.0, mu=4.0).double()
    weighed.load_state_dict(loss.state_dict())
    value = weighed(torch.ones(1, 4, dtype=torch.float64), logits, torch.tensor([0]))
    assert is_close(value, 2 * LN(7) + 3 * others + 4 * LN(3))


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3, 3), (2, 5, 4)])
def test_uskd_takes_vectors_maps_and_tokens(shape: tuple[int, ...]) -> None:
    loss = USKD(shape, 3)
    assert loss.classifier.in_features == 4
    assert loss(torch.randn(shape), torch.randn(2, 3), torch.tensor([0, 2])).isfinite()


def test_standardize() -> None:
    torch.testing.assert_close(standardize(d([1, 2, 3])), d([-1, 0, 1]), atol=1e-6, rtol=0)
    constant = torch.full((1, 4), 7.0, requires_grad=True)
    standardize(constant).sum().backward()
    assert constant.grad is not None and constant.grad.isfinite().all()
    assert standardize(torch.full((1, 4), 60000.0, dtype=torch.float16)).dtype is torch.float32
