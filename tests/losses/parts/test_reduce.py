"""Masks: broadcast before they are counted, never changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcli.errors import RunError
from kdcli.losses.bce import bce_loss
from kdcli.losses.dkd import dkd
from kdcli.losses.kd import gkd_loss, kd_loss
from kdcli.losses.l2 import l2_loss
from kdcli.losses.parts.reduce import broadcast_mask, times

S = torch.full((2, 3, 2, 2), 0.5)
T = torch.ones(2, 3, 2, 2)


@pytest.mark.parametrize("loss", [l2_loss, bce_loss])
def test_a_mask_over_positions_counts_for_every_channel(loss: Callable[..., Tensor]) -> None:
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0] = 1
    torch.testing.assert_close(loss(S, T, mask), loss(S, T))


@pytest.mark.parametrize("loss", [l2_loss, bce_loss])
@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 1, 2, 2), (2, 2, 2), (2,), (2, 3, 1, 1)])
def test_masks_of_any_fitting_shape_pick_the_same(
    loss: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    s, t = torch.rand(2, 3, 2, 2), torch.rand(2, 3, 2, 2)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[0] = True
    before = mask.clone()
    torch.testing.assert_close(loss(s, t, mask), loss(s[:1], t[:1]))
    assert mask.dtype is torch.bool and mask.equal(before)


def test_weights_count_as_much_as_they_weigh() -> None:
    weights = torch.tensor([0.5, 0.0])
    torch.testing.assert_close(l2_loss(S, T, weights), torch.tensor(0.25))
    torch.testing.assert_close(l2_loss(S, T, 1e-4 * weights), torch.tensor(0.25))


def test_batch_mean_divides_by_the_batch_whatever_the_mask() -> None:
    mask = torch.tensor([True, False])
    torch.testing.assert_close(l2_loss(S, T, mask, batch_mean=True), torch.tensor(12 * 0.25 / 2))


def test_feat_norm_flattens_the_mask_too() -> None:
    mask = torch.zeros(2, 1, 2, 2)
    mask[:, :, 0, 0] = 1
    s = torch.randn(2, 3, 2, 2)
    s_hat, t_hat = (x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (s, T))
    expected = (s_hat - t_hat).square()[:, :, 0, 0].mean()
    torch.testing.assert_close(l2_loss(s, T, mask, feat_norm=True), expected)


@pytest.mark.parametrize("loss", [l2_loss, bce_loss, kd_loss])
def test_a_mask_of_nothing_is_a_zero_on_the_graph(loss: Callable[..., Tensor]) -> None:
    s = S.clone().requires_grad_()
    value = loss(s, T, torch.zeros(2, dtype=torch.bool))
    value.backward()
    assert value == 0 and s.grad is not None and not s.grad.any()


def test_a_teacher_that_is_never_right_is_a_zero_on_the_graph() -> None:
    s = torch.randn(2, 3, requires_grad=True)
    value = gkd_loss(s, torch.tensor([[9.0, 0, 0], [9.0, 0, 0]]), torch.tensor([1, 2]))
    value.backward()
    assert value == 0 and s.grad is not None and not s.grad.any()


@pytest.mark.parametrize("shape", [(2,), (2, 2, 2), (2, 1, 2, 2)])
def test_kd_takes_masks_of_rows_and_positions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    mask = torch.zeros(shape)
    mask[1] = 1
    torch.testing.assert_close(kd_loss(s, t, mask), kd_loss(s[1:], t[1:]))


def test_a_mask_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\] does not fit"):
        broadcast_mask(torch.ones(5), S)
    with pytest.raises(ValueError, match="does not fit"):
        broadcast_mask(torch.ones(3, 2), S)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(RunError, match="KD450"):
        l2_loss(torch.ones(2, 3, 1, 1), T)
    with pytest.raises(RunError, match=r"takes logits \[B, K\]"):
        dkd(S, T, torch.tensor([0, 1]))
    with pytest.raises(RunError, match="one label a row"):
        dkd(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0]))


def test_times_one_is_the_loss_itself() -> None:
    loss = torch.tensor(2.0)
    assert times(loss, 1.0) is loss
    assert float(times(loss, 0.5)) == 1.0
