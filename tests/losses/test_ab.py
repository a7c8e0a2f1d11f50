"""Activation boundaries."""

from __future__ import annotations

import torch

from kdcli.losses.ab import ActivationBoundaries


def test_a_number_by_hand() -> None:
    loss = ActivationBoundaries([(2, 3), (2, 3)], [(2, 3), (2, 3)])
    assert not list(loss.parameters()), "equal shapes need no connector"
    student = torch.tensor([[-2.0, 0.5, 2.0], [-2.0, 0.5, 2.0]])
    teacher = torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    # Row 1, off: 0 + 1.5² + 3². Row 2, on: 3² + 0.5² + 0. The first of two layers weighs a half.
    layer = (1.5**2 + 3**2 + 3**2 + 0.5**2) / 2 / 1000 * 3
    torch.testing.assert_close(loss([student] * 2, [teacher] * 2), torch.tensor(1.5 * layer))


def test_a_student_beyond_the_margin_on_the_right_side_is_done() -> None:
    loss = ActivationBoundaries([(4, 3)], [(4, 3)], margin=0.5)
    teacher = torch.randn(4, 3)
    assert loss([teacher.sign() * 0.6], [teacher]) == 0
    assert loss([teacher.sign() * 0.4], [teacher]) > 0


def test_unlike_shapes_are_connected_without_relu() -> None:
    loss = ActivationBoundaries([(2, 3, 8, 8), (2, 4, 4, 4)], [(2, 5, 4, 4), (2, 4, 4, 4)])
    names = {name for name, _ in loss.named_parameters()}
    assert names == {f"connectors.0.{p}" for p in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")}
    connected = loss.connectors[0](torch.randn(2, 3, 8, 8))
    assert connected.shape == (2, 5, 4, 4) and (connected < 0).any()


def test_the_margin_is_in_the_square() -> None:
    loss = ActivationBoundaries([(2, 3)], [(2, 3)], margin=0.5)
    student = torch.tensor([[-2.0, 0.5, 2.0], [-2.0, 0.5, 2.0]])
    teacher = torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    # Row 1, off: 0 + 1² + 2.5². Row 2, on: 2.5² + 0 + 0.
    layer = (1 + 2.5**2 + 2.5**2) / 2 / 1000 * 3
    torch.testing.assert_close(loss([student], [teacher]), torch.tensor(layer))
