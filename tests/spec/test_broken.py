"""A right spec broken in one place is told so at that line, whatever the place."""

from __future__ import annotations

from dataclasses import replace

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.spec.specs import BASE, findings

LINES = BASE.splitlines()
KEYED = [
    index
    for index, line in enumerate(LINES)
    if ":" in line and not line.startswith(("x-", "crop", "classes", "teacher0"))
]
"""Every line with a key of the language or of a component."""


def broken(index: int, line: str) -> str:
    return "\n".join([*LINES[:index], line, *LINES[index + 1 :]]) + "\n"


def lines_of(text: str) -> list[int]:
    found = findings(text)
    assert found, "nothing was found"
    assert all(one.span is not None for one in found)
    lines = [one.span.line for one in found if one.span is not None]
    return lines + [one.span.written.line for one in found if one.span is not None and one.span.written]


def key_of(line: str) -> str:
    return line.strip().removeprefix("- ").split(":")[0]


OPEN = ("cfgs", "kwargs")
"""Below these stand names that are the user's own: a loss may have any."""


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(KEYED), st.sampled_from(["x", "q_", "zz"]))
def test_a_renamed_key(index: int, slip: str) -> None:
    key = key_of(LINES[index])
    assume(key not in ("loss",))
    renamed = LINES[index].replace(f"{key}:", f"{slip}{key}:", 1)
    assert index + 1 in lines_of(broken(index, renamed)) or key == "net"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KEYED))
def test_a_key_given_twice(index: int) -> None:
    line = LINES[index]
    key = key_of(line)
    indent = len(line) - len(line.lstrip()) + (2 if line.strip().startswith("- ") else 0)
    double = (
        f"{line}\n{' ' * indent}{key}: 1"
        if not line.rstrip().endswith(":")
        else f"{' ' * indent}{key}: 1\n{line}"
    )
    if line.strip().startswith("- ") and line.rstrip().endswith(":"):
        return
    assert {index + 1, index + 2} & set(lines_of(broken(index, double)))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(KEYED), st.sampled_from(["[[1, {a: b}]]", "{zz: {yy: 1}}", "'%%'"]))
def test_a_value_of_another_kind(index: int, value: str) -> None:
    line = LINES[index]
    key = key_of(line)
    assume(
        key
        not in ("task_names", "save_dir", "loss", "mimic_name", "teacher_weight", "normalize", "image_reader")
    )
    assume(not line.rstrip().endswith(":"))
    if key == "name":
        assume(value != "'%%'")
    if key == "kwargs" and value.startswith("{"):
        assume("T" in line or "lr" in line)
    head = line[: line.index(f"{key}:")]
    text = broken(index, f"{head}{key}: {value}")
    assume(isinstance(yaml.safe_load(text), dict))
    if key == "kwargs" and "lr" in line:
        return  # an optimizer's arguments are torch's to check
    assert index + 1 in lines_of(text)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, len(BASE) - 1), st.characters(codec="utf-8"))
def test_any_character_anywhere_never_crashes(place: int, sign: str) -> None:
    for text in (BASE[:place] + sign + BASE[place:], BASE[:place] + sign + BASE[place + 1 :]):
        for one in findings(text):
            assert one.span is not None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(LINES) - 1))
def test_a_dropped_line_never_crashes(index: int) -> None:
    text = "\n".join([*LINES[:index], *LINES[index + 1 :]]) + "\n"
    assert [replace(one, span=None) for one in findings(text) if one.span is None] == []
