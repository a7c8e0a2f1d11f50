"""Softmax regression representation learning."""

from __future__ import annotations

import torch
from torch import nn

from kdcli.losses.srrl import SoftmaxRegression


def test_it_matches_vectors_and_what_the_teacher_makes_of_them() -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(5, 3)
    loss = SoftmaxRegression((4, 2, 3, 3), (4, 5, 6, 6), classifier, alpha=2.0, beta=3.0)
    student, teacher, logits = torch.randn(4, 2, 3, 3), torch.randn(4, 5, 6, 6), torch.randn(4, 3)
    vectors = loss.projector(student).mean((2, 3))
    matching = (vectors - teacher.mean((2, 3))).square().mean()
    regression = (vectors @ classifier.weight.T + classifier.bias - logits).square().mean()
    torch.testing.assert_close(loss(student, teacher, logits), 2 * matching + 3 * regression)
    target = vectors.detach()
    assert loss(student, target, classifier(target)) < 1e-10


def test_the_classifier_is_not_trained() -> None:
    loss = SoftmaxRegression((4, 2), (4, 5), nn.Sequential(nn.Dropout(), nn.Linear(5, 3))).train()
    assert not loss.teacher_classifier.training
    student = torch.randn(4, 2, requires_grad=True)
    loss(student, torch.randn(4, 5), torch.randn(4, 3)).backward()
    trained = {name for name, p in loss.named_parameters() if p.grad is not None}
    assert trained == {"projector.0.weight", "projector.1.weight", "projector.1.bias"}
    assert student.grad is not None and student.grad.any()
