"""Factor transfer and its first stage."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.ft import FactorParaphrase, FactorTransfer

STUDENT, TEACHER = (2, 3, 8, 8), (2, 6, 4, 4)


def test_it_is_the_l1_distance_of_normalised_factors() -> None:
    torch.manual_seed(0)
    loss = FactorTransfer(STUDENT, TEACHER).double()
    student, teacher = torch.randn(STUDENT).double(), torch.randn(TEACHER).double()
    translated = torch.nn.functional.avg_pool2d(loss.translator(student), 2)
    energies = [x.square().mean(1).flatten(1) for x in (translated, loss.paraphraser.encoder(teacher))]
    factors = [x / x.norm(dim=1, keepdim=True) for x in energies]
    torch.testing.assert_close(loss(student, teacher), (factors[0] - factors[1]).abs().mean())
    assert translated.shape[1] == 3, "k is ½"


def test_the_paraphraser_is_frozen_and_comes_from_the_earlier_stage() -> None:
    first, other = FactorParaphrase(TEACHER), FactorParaphrase((2, 8, 4, 4))
    loss = FactorTransfer(STUDENT, TEACHER)
    assert not loss.inherit([other])
    assert loss.inherit([torch.nn.ReLU(), first, other])
    for name, value in first.paraphraser.state_dict().items():
        assert torch.equal(loss.paraphraser.state_dict()[name], value)
    loss.train()
    assert not loss.paraphraser.training and loss.translator.training
    loss(torch.randn(STUDENT), torch.randn(TEACHER)).backward()
    assert all(p.grad is None for p in loss.paraphraser.parameters())
    assert all(p.grad is not None for p in loss.translator.parameters())


def test_the_first_stage_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    loss = FactorParaphrase((8, 4, 4, 4), k=1.0)
    teacher = torch.rand(8, 4, 4, 4)
    torch.testing.assert_close(loss(teacher), (loss.paraphraser(teacher) - teacher).square().mean())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    before = loss(teacher).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(teacher).backward()
        optimizer.step()
    assert loss(teacher).item() < before / 2


def test_vectors_are_refused() -> None:
    with pytest.raises(RunError, match="KD450"):
        FactorTransfer((2, 3), (2, 6))
