"""Wasserstein distillation of features."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.wkd_f import WassersteinFeature


@pytest.mark.parametrize(("ratio", "eps"), [(2.0, 1e-5), (3.0, 0.5)])
def test_it_is_the_distance_of_means_and_deviations(ratio: float, eps: float) -> None:
    torch.manual_seed(0)
    loss = WassersteinFeature((2, 3, 4, 4), (2, 5, 4, 4), hidden=4, mean_cov_ratio=ratio, eps=eps)
    widths = [m.out_channels for m in loss.projector.modules() if isinstance(m, torch.nn.Conv2d)]
    assert widths == [4, 4, 5]
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    projected = loss.projector(student)
    means = projected.mean((2, 3)) - teacher.mean((2, 3))
    deviations = [(x.flatten(2).var(2) + eps).sqrt() for x in (projected, teacher)]
    expected = ratio * means.square().sum() + (deviations[0] - deviations[1]).square().sum()
    torch.testing.assert_close(loss(student, teacher), expected / 2)
    assert loss(student, projected) == 0
    assert loss(student, projected + 1) > 0


def test_the_cells_of_a_grid_are_those_of_adaptive_pooling() -> None:
    torch.manual_seed(0)
    loss = WassersteinFeature((2, 3, 7, 7), (2, 5, 7, 7), grid=4, hidden=4)
    x = torch.randn(2, 5, 7, 7)
    means, deviations = loss._gaussians(x)
    assert deviations.shape == (16, 2, 5)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, 4)
    torch.testing.assert_close(means.permute(1, 2, 0).unflatten(2, (4, 4)), expected)
    whole = loss(torch.randn(2, 3, 7, 7), x)
    assert whole.isfinite()


def test_unlike_sizes_take_the_other_projector_and_single_positions_are_refused() -> None:
    loss = WassersteinFeature((2, 3, 8, 8), (2, 5, 4, 4), projector="conv", grid=2)
    assert loss(torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)).isfinite()
    with pytest.raises(RunError, match="KD450") as caught:
        WassersteinFeature((2, 3, 8, 8), (2, 5, 4, 4))
    assert "projector: conv" in (caught.value.diagnostics[0].help or "")
    with pytest.raises(RunError, match="hold one position"):
        WassersteinFeature((2, 3, 4, 4), (2, 5, 4, 4), grid=4)
