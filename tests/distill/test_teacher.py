"""Teachers: frozen, with their own pixels, and batch statistics that leave no trace."""

from __future__ import annotations

import copy

import torch
from torch import nn

from kdcli.distill.taps import Taps
from kdcli.distill.teacher import PixelChange, Teacher
from kdcli.models.network import Network


def net() -> Network:
    torch.manual_seed(0)
    return Network(
        {"model": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))}
    )


def test_batch_statistics_normalise_by_the_batch_and_change_nothing() -> None:
    batch = {"image": 5 + 3 * torch.randn(16, 1, 4, 4)}
    plain = net()
    before = copy.deepcopy(plain.state_dict())
    with Taps(plain, ["model.1"], outputs=()) as taps:
        teacher = Teacher("teacher0", taps, batch_statistics=True)
        teacher.learn(batch)
        feature = teacher.view(batch).features["model.1"]
    assert isinstance(feature, torch.Tensor)
    assert torch.allclose(feature.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(feature.var((0, 2, 3), unbiased=False), torch.ones(2), atol=1e-3)
    after = plain.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_view_has_no_gradient() -> None:
    batch = {"image": torch.randn(2, 1, 4, 4)}
    with Taps(net(), ["logits"], outputs=()) as taps:
        teacher = Teacher("teacher0", taps)
        teacher.learn(batch)
        feature = teacher.view(batch).features["logits"]
    assert isinstance(feature, torch.Tensor) and not feature.requires_grad


def test_pixels_are_normalised_anew_and_resized() -> None:
    raw = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    student = (raw - mean[:, None, None]) / std[:, None, None]
    change = PixelChange((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), None)
    assert torch.allclose(change(student), (raw - 0.5) / 0.25, atol=1e-6)
    bigger = PixelChange((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (8, 8))
    kept = student.clone()
    assert bigger(student).shape == (2, 3, 8, 8) and torch.equal(student, kept)
