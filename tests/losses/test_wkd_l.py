"""Wasserstein distillation of logits."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.losses.wkd_l import WassersteinLogit, class_similarity


def test_the_transport_between_two_other_classes_by_hand() -> None:
    # Three classes, label 0: all mass beside it is on class 1 or 2, at the cost 1 − 1/e of moving.
    loss = WassersteinLogit(3, T=1.0, gamma=10.0).double()
    student = torch.tensor([[0.0, 40.0, -40.0]]).double()
    teacher = torch.tensor([[0.0, -40.0, 40.0]]).double()
    labels = torch.tensor([0])
    p, log_q = 1 / (1 + math.exp(40.0)), -40.0
    expected = -p * log_q + 10 * (1 - math.exp(-1))
    assert math.isclose(loss(student, teacher, labels).item(), expected, rel_tol=1e-2)
    assert abs(loss(teacher, teacher, labels).item() - p * 40) < 1e-5, "nothing to move"


@pytest.mark.parametrize("sinkhorn_lambda", [0.05, 0.2])
def test_it_is_sinkhorn_over_the_classes_beside_the_label(sinkhorn_lambda: float) -> None:
    torch.manual_seed(0)
    loss = WassersteinLogit(5, iterations=3, sinkhorn_lambda=sinkhorn_lambda).double()
    loss.cost.copy_(torch.rand(5, 5))
    student, teacher = torch.randn(2, 5).double(), torch.randn(2, 5).double()
    labels = torch.tensor([3, 1])
    expected = 0.0
    for s, t, label in zip(student, teacher, labels.tolist(), strict=True):
        rest = [k for k in range(5) if k != label]
        p, q = (s[rest] / 2).softmax(0), (t[rest] / 2).softmax(0)
        cost = loss.cost[rest][:, rest] + 1e-8
        kernel = (-cost / sinkhorn_lambda).exp()
        u = torch.full((4,), 0.25).double()
        for _ in range(3):
            v = q / (kernel.T @ u + 1e-8)
            u = p / (kernel @ v + 1e-8)
        expected += 15 * (u[:, None] * kernel * v[None, :] * cost).sum().item()
        expected -= t.softmax(0)[label].item() * s.log_softmax(0)[label].item() / 2
    assert math.isclose(loss(student, teacher, labels).item(), expected, rel_tol=1e-9)


@pytest.mark.parametrize("count", [3, 9])
def test_similarity_is_linear_cka(count: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, count, 4).double()
    similarity = class_similarity(features)
    x, y = (features[k] - features[k].mean(0) for k in (0, 2))
    expected = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    torch.testing.assert_close(similarity[0, 2], expected)
    torch.testing.assert_close(similarity, similarity.T)
    rotated = features[0] @ torch.linalg.qr(torch.randn(4, 4).double()).Q
    torch.testing.assert_close(class_similarity(torch.stack([features[0], rotated]))[0, 1].item(), 1.0)


def test_the_costs_come_from_the_prepared_teacher_and_are_saved() -> None:
    torch.manual_seed(0)
    loss = WassersteinLogit(3)
    far = loss.cost.clone()
    torch.testing.assert_close(far, (1 - math.exp(-1)) * (1 - torch.eye(3)))
    by_class = torch.randn(3, 8, 3)
    for sample in range(8):
        loss.prepare(by_class[:, sample], torch.arange(3))
    loss.prepare(torch.randn(1, 3), torch.tensor([0]))
    loss.prepared()
    torch.testing.assert_close(loss.cost, 1 - torch.exp(class_similarity(by_class) - 1))
    resumed = WassersteinLogit(3)
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed.cost, loss.cost)


def test_a_class_without_samples_stays_far_from_all() -> None:
    loss = WassersteinLogit(3)
    far = loss.cost.clone()
    loss.prepared()
    assert torch.equal(loss.cost, far)
    loss.prepare(torch.randn(8, 3), torch.tensor([0, 1] * 4))
    loss.prepared()
    torch.testing.assert_close(loss.cost[2], far[2])
    assert loss.cost[0, 1] < far[0, 1]


@pytest.mark.parametrize(("sharpen", "cost"), [(2.0, 1 - math.exp(-2)), (0.0, 1.0)])
def test_what_a_distance_costs_by_hand(sharpen: float, cost: float) -> None:
    loss = WassersteinLogit(3, sharpen=sharpen)
    torch.testing.assert_close(loss.cost, cost * (1 - torch.eye(3)))


def test_a_class_is_judged_by_its_first_samples() -> None:
    torch.manual_seed(0)
    loss, by_class = WassersteinLogit(3, max_per_class=4), torch.randn(3, 8, 3)
    for sample in range(8):
        loss.prepare(by_class[:, sample], torch.arange(3))
    loss.prepared()
    torch.testing.assert_close(loss.cost, 1 - torch.exp(class_similarity(by_class[:, :4]) - 1))
