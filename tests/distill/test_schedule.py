"""The weight of a loss at every step."""

from __future__ import annotations

import pytest

from kdcli.distill.terms import schedule_weight


def weights(steps: int, **given: object) -> list[float | None]:
    settings = {"start": 0, "end": None, "decay": None, "warm_up": -1, **given}
    return [schedule_weight(step, **settings) for step in range(steps)]  # type: ignore[arg-type]


def test_a_warm_up_is_the_share_of_its_steps() -> None:
    assert weights(6, warm_up=4) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_warm_up_counts_from_the_start() -> None:
    assert weights(5, start=2, warm_up=2) == [None, None, 0.0, 0.5, 1.0]


def test_a_loss_ends() -> None:
    assert weights(4, end=2) == [1.0, 1.0, None, None]


def test_decay_falls_from_start_to_end() -> None:
    assert weights(5, start=1, end=5, decay="linear") == [None, 1.0, 0.75, 0.5, 0.25]
    assert weights(3, end=2, decay="cosine") == [1.0, pytest.approx(0.5), None]
