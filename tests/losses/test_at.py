"""Attention transfer."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.at import attention_transfer


def test_a_number_by_hand() -> None:
    # Attention: the student's energies are (9, 16)/√337, the teacher's (1, 0).
    student = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    root = 337**0.5
    expected = ((9 / root - 1) ** 2 + (16 / root) ** 2) / 2
    torch.testing.assert_close(attention_transfer(student, teacher), torch.tensor(expected))


def test_the_larger_map_is_averaged_down_and_channels_may_differ() -> None:
    torch.manual_seed(0)
    small = torch.rand(2, 3, 2, 2).repeat_interleave(2, 1)
    large = small[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert attention_transfer(small, large) == attention_transfer(large, small)
    assert attention_transfer(small[:, ::2], small[:, 1::2]) < 1e-6


def test_tokens_are_positions() -> None:
    tokens, others = torch.rand(2, 9, 5), torch.rand(2, 9, 7)
    as_maps = [x.transpose(1, 2).unflatten(2, (3, 3)) for x in (tokens, others)]
    torch.testing.assert_close(attention_transfer(tokens, others), attention_transfer(*as_maps))


@pytest.mark.parametrize("shapes", [((2, 5), (2, 5)), ((2, 9, 5), (2, 4, 5)), ((2, 5, 3, 3), (2, 9, 5))])
def test_what_has_no_common_positions_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(RunError, match="KD450"):
        attention_transfer(torch.rand(shapes[0]), torch.rand(shapes[1]))


def test_an_attention_of_third_powers_by_hand() -> None:
    # Attention: the student's energies are (1, 8)/√65, the teacher's (1, 0).
    student, teacher = (torch.tensor(row).view(1, 1, 1, 2) for row in ([1.0, 2.0], [2.0, 0.0]))
    root = 65**0.5
    expected = ((1 / root - 1) ** 2 + (8 / root) ** 2) / 2
    torch.testing.assert_close(attention_transfer(student, teacher, p=3), torch.tensor(expected))
