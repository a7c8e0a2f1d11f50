"""What a student has learnt, by numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from kdcli.tasks.mimicry import explained, has_learnt_more, moments, primary_of


def test_explained_variance_by_hand() -> None:
    """Two channels over three images. t - mean: (-1, 0, 1), (0, 0, 0); s - mean: (-1, 1, 0), (0, 0, 0).

    Shared 1, of t 2, of s 2: 1 - residual / variance = 1/4.
    """
    teacher = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    student = torch.tensor([[4.0, 0.0], [6.0, 0.0], [5.0, 0.0]])
    assert explained(moments(student, teacher)) == pytest.approx(0.25)


def test_explained_variance_is_one_less_the_residual_of_the_best_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 3, 4, 2, generator=generator) + 2
    student = 0.1 * teacher + 0.05 * torch.randn(5, 3, 4, 2, generator=generator) - 7
    t, s = (x.double().movedim(1, -1).flatten(0, -2) for x in (teacher, student))
    a = ((s - s.mean(0)) * (t - t.mean(0))).sum() / (s - s.mean(0)).square().sum()
    residual = (t - t.mean(0) - a * (s - s.mean(0))).square().sum()
    wanted = 1 - residual / (t - t.mean(0)).square().sum()
    assert explained(moments(student, teacher)) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 5), (6, 10, 4)])
def test_batches_add_up(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(shape, generator=generator) for _ in range(2))
    parts = moments(student[:2], teacher[:2]) + moments(student[2:], teacher[2:])
    assert explained(parts) == pytest.approx(explained(moments(student, teacher)), rel=1e-9)
    assert len(parts) == 4 + 2 * 4


def test_limits() -> None:
    teacher = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    assert explained(moments(3 * teacher + 5, teacher)) == pytest.approx(1.0)
    assert explained(moments(-teacher, teacher)) == 0.0
    assert explained(moments(torch.ones(8, 3), teacher)) == 0.0
    assert explained(moments(teacher, torch.full((8, 3), 0.1))) == 0.0
    assert explained(moments(teacher[:1], teacher[:1])) == 0.0


def test_the_best_is_chosen_by_the_first_figure_that_differs() -> None:
    old = {"explained_variance": 0.0, "distill_loss": 3.0}
    assert primary_of(old) == "explained_variance"
    assert primary_of({"distill_loss": 3.0, "agreement": 1.0}) == "agreement"
    assert primary_of({**old, "probe_top1": 1.0}) == "probe_top1"
    assert has_learnt_more({"explained_variance": 0.1, "distill_loss": 9.0}, old)
    assert not has_learnt_more({"explained_variance": 0.0, "distill_loss": 4.0}, old)
    assert has_learnt_more({"explained_variance": 0.0, "distill_loss": 2.0}, old)
    assert not has_learnt_more(old, old)
    assert has_learnt_more({}, {})
