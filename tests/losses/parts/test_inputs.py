"""How a feature's axes are read."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kdcli.errors import RunError
from kdcli.losses.parts.inputs import as_map, as_vectors, only_maps, same_places, same_size


@pytest.mark.parametrize(
    ("student", "teacher", "fits"),
    [
        ((2, 3, 4, 4), (2, 5, 2, 2), True),
        ((2, 9, 3), (2, 9, 5), True),
        ((2, 3), (2, 5), True),
        ((2, 9, 3), (2, 10, 3), False),
        ((2, 9, 3), (2, 3, 3, 3), False),
        ((2, 3, 3, 3), (2, 9, 3), False),
        ((2, 9, 3), (2, 3), False),
        ((2, 3), (2, 3, 4, 4), False),
    ],
)
def test_which_features_have_the_same_places(
    student: tuple[int, ...], teacher: tuple[int, ...], fits: bool
) -> None:
    with nullcontext() if fits else pytest.raises(RunError, match="cannot match the positions"):
        same_places(student, teacher, "m")
    averaged = fits or 2 in (len(student), len(teacher))
    with nullcontext() if averaged else pytest.raises(RunError, match="KD450"):
        same_places(student, teacher, "m", averages=True)


def test_tokens_and_vectors_are_maps_too() -> None:
    tokens = torch.randn(2, 9, 5)
    assert as_map(tokens, "m").shape == (2, 5, 9, 1)
    assert torch.equal(as_map(tokens, "m")[1, 3, :, 0], tokens[1, :, 3])
    assert as_map(torch.randn(2, 5), "m").shape == (2, 5, 1, 1)
    torch.testing.assert_close(as_vectors(tokens, "m"), tokens.mean(1))


def test_each_direction_is_averaged_down_by_itself() -> None:
    one, other = same_size(torch.randn(1, 2, 8, 2), torch.randn(1, 3, 4, 6))
    assert one.shape == (1, 2, 4, 2) and other.shape == (1, 3, 4, 2)


def test_other_shapes_are_refused_by_the_name_of_the_method() -> None:
    with pytest.raises(RunError, match=r"`fsp` takes feature maps \[B, C, H, W\], not \[2, 5\]"):
        only_maps((2, 5), "fsp")
    with pytest.raises(RunError, match="`vid`"):
        as_map(torch.randn(2, 1, 1, 1, 1), "vid")
