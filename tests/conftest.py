"""The longest tests come first: a process that begins with one last keeps the others waiting for it."""

from __future__ import annotations

import pytest

LONGEST = ("test_precision_rises_and_frs_beats_the_plain_student",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest tests to the front; the others keep their order."""
    items.sort(key=lambda item: item.name not in LONGEST)
