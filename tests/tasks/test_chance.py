"""When a teacher counts as guessing."""

from __future__ import annotations

import pytest

from kdcli.tasks.classification.task import Classification


@pytest.mark.parametrize(
    ("top1", "classes", "samples", "guesses"),
    [
        (10.0, 10, 512, True),
        (19.0, 10, 512, True),
        (40.0, 10, 512, False),
        (0.2, 1000, 512, True),
        (30.0, 1000, 512, False),
        (25.0, 4, 8, False),  # too few to tell
        (25.0, 4, 100, True),
    ],
)
def test_near_chance_is_said_only_where_the_samples_can_tell(
    top1: float, classes: int, samples: int, guesses: bool
) -> None:
    assert Classification().near_chance({"top1": top1}, classes, samples) is guesses
