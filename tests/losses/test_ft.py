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


def centred(*stacks: torch.nn.Module) -> None:
    """Make each convolution of one channel give what it is given."""
    for layer in (layer for stack in stacks for layer in stack.modules()):
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.zeros_(layer.weight)
            layer.weight.data[:, :, 1, 1] = 1.0
            assert layer.bias is not None
            torch.nn.init.zeros_(layer.bias)


def norms_of(stack: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [layer for layer in stack.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_factors_of_other_powers_by_hand() -> None:
    one = (1, 1, 1, 2)
    loss = FactorTransfer(one, one, k=1.0, p1=3, p2=2, translator_bn=False, paraphraser_bn=True)
    centred(loss.translator, loss.paraphraser)
    norms = norms_of(loss.paraphraser.encoder)
    assert len(norms) == 3 and not norms_of(loss.translator)
    norms[0].running_mean.fill_(-1.0)  # type: ignore[union-attr]
    student, teacher = (torch.tensor(row).view(one) for row in ([1.0, 2.0], [2.0, 0.0]))
    # The norm adds 1 to the teacher's (2, 0); third powers over their lengths: (1, 8)/√65 and (27, 1)/√730.
    s, t = (1 / 65**0.5, 8 / 65**0.5), (27 / 730**0.5, 1 / 730**0.5)
    expected = ((s[0] - t[0]) ** 2 + (s[1] - t[1]) ** 2) / 2
    torch.testing.assert_close(loss(student, teacher), torch.tensor(expected))


def test_a_paraphraser_with_batch_norms() -> None:
    teacher = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    plain, normed = (FactorParaphrase((1, 1, 1, 2), k=1.0, use_bn=bn).eval() for bn in (False, True))
    centred(plain, normed)
    assert not norms_of(plain) and len(norms_of(normed)) == 6
    norms_of(normed)[0].running_mean.fill_(-1.0)  # type: ignore[union-attr]
    # Reconstructed as it is; (3, 1) with the first norm, but for the 1e-5 in each of six deviations.
    assert plain(teacher) == 0 and abs(float(normed(teacher).detach()) - 1.0) < 1e-3
    wider = FactorParaphrase((1, 8, 2, 2), k=0.25)
    assert wider.paraphraser.encoder(torch.rand(1, 8, 2, 2)).shape == (1, 2, 2, 2)
