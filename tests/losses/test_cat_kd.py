"""Class attention transfer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcli.errors import RunError
from kdcli.losses.cat_kd import ClassAttention


def test_a_number_by_hand() -> None:
    # One class, activation maps as they are: student (1, 0, 0, 0), teacher (3, 4, 0, 0)/5.
    loss = ClassAttention((1, 1, 2, 2), (1, 1, 2, 2), nn.Linear(7, 1))
    student = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    teacher = torch.tensor([3.0, 4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(loss(student, teacher), torch.tensor((0.4**2 + 0.8**2) / 4))
    assert loss(3 * teacher, teacher) < 1e-10


def test_the_teachers_activation_maps_are_its_classifier_at_each_position() -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(6, 3)
    loss = ClassAttention((2, 4, 8, 8), (2, 6, 4, 4), nn.Sequential(classifier), normalize=False)
    student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)
    activation = torch.einsum("bchw,kc->bkhw", teacher, classifier.weight)
    own = torch.einsum("bchw,kc->bkhw", student, loss.student_classifier.weight[:, :, 0, 0])
    pooled = nn.functional.avg_pool2d(own, 4) - nn.functional.avg_pool2d(activation, 2)
    torch.testing.assert_close(loss(student, teacher), pooled.square().mean())


def test_a_teacher_without_one_linear_classifier_is_refused() -> None:
    shapes = (2, 4, 4, 4), (2, 6, 4, 4)
    for classifier in (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), nn.Linear(5, 3)):
        with pytest.raises(RunError, match="KD450"):
            ClassAttention(*shapes, classifier)


def test_maps_pooled_to_one_cell_by_hand() -> None:
    student = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    teacher = torch.tensor([3.0, 4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    shapes = (1, 1, 2, 2), (1, 1, 2, 2)
    loss = ClassAttention(*shapes, nn.Linear(7, 1), resolution=1, normalize=False)
    torch.testing.assert_close(loss(student, teacher), torch.tensor((0.5 - 1.75) ** 2))
    assert ClassAttention(*shapes, nn.Linear(7, 1), resolution=1)(student, teacher) == 0
