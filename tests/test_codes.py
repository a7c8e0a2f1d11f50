"""Every code that kdcli can show is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdcli
from kdcli.codes import CODES

PACKAGE = Path(kdcli.__file__).parent


def used() -> set[str]:
    files = (file for file in PACKAGE.rglob("*.py") if PACKAGE / "codes" not in file.parents)
    return {code for file in files for code in re.findall(r"\bKD\d{3}\b", file.read_text(encoding="utf-8"))}


def test_every_code_is_explained() -> None:
    assert sorted(used() - set(CODES)) == []


def test_nothing_is_explained_that_cannot_be_shown() -> None:
    assert sorted(set(CODES) - used()) == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_an_explanation_says_something(code: str) -> None:
    found = CODES[code]
    assert 3 < len(found.title) < 60
    assert len(found.why) > 30
    assert found.example
