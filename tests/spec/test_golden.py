"""Every code of this layer, said about a spec that earns it, word by word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdcli
from tests.spec.cases import CASES, ELSEWHERE
from tests.spec.specs import findings, plain

GOLDEN = Path(__file__).with_name("golden.txt")


def said(code: str) -> str:
    text, assignments = CASES[code]
    return plain(findings(text, *assignments))


def sections() -> dict[str, str]:
    parts = re.split(r"^== (KD\d{3})\n", GOLDEN.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {code: text.rstrip("\n") + "\n" for code, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("code", sorted(CASES))
def test_what_is_said(code: str) -> None:
    found = said(code)
    assert f" {code}: " in found
    assert found == sections()[code]


def test_every_code_of_the_layer_has_a_case() -> None:
    folder = Path(kdcli.__file__).parent / "spec"
    used = {code for file in folder.rglob("*.py") for code in re.findall(r"KD\d{3}", file.read_text())}
    assert used - ELSEWHERE == set(CASES)


def test_no_golden_is_left_over() -> None:
    assert set(sections()) == set(CASES)
