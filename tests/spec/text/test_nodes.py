"""Scalars by YAML 1.2's core schema, and nodes as data."""

from __future__ import annotations

import math

import pytest

from kdcli.spec.text.nodes import NumberTooLong, Scalar, describe, kind, leaves, plain_value, to_data
from kdcli.spec.text.source import compose


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("007", 7),
        ("+12", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1.2.3", "1.2.3"),
        ("2026-11-23", "2026-11-23"),
        ("-", "-"),
        (".", "."),
        ("e3", "e3"),
        ("~", None),
        ("null", None),
        ("", None),
        ("nUll", "nUll"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("inf", "inf"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    found = plain_value(text)
    assert found == value
    assert type(found) is type(value)


def test_nan() -> None:
    found = plain_value(".nan")
    assert isinstance(found, float)
    assert math.isnan(found)


def test_a_number_of_too_many_digits() -> None:
    with pytest.raises(NumberTooLong):
        plain_value("1" * 5000)


def test_quoted_scalars_are_text() -> None:
    tree = compose("a: '1'\nb: \"true\"\nc: !!str 3\nd: !!float 3\n", "f").tree
    assert tree is not None
    assert to_data(tree) == {"a": "1", "b": "true", "c": "3", "d": 3.0}


def test_words() -> None:
    tree = compose("[a, 1, 1.5, true, ~, [], {}]", "f").tree
    assert tree is not None
    assert [describe(value) for value in to_data(tree)] == [
        "the text 'a'",
        "the number 1",
        "the number 1.5",
        "true",
        "nothing",
        "a list",
        "a mapping",
    ]
    assert kind(tree) == "a list"
    assert len(describe("x" * 500)) < 60
    assert isinstance(compose("", "f").tree, Scalar | None)


def test_leaves_by_dotted_key() -> None:
    data = {
        "a": {"b": 1, "c": {}},
        "nets": [{"name": "x"}, [2, 3]],
        "sizes": [4, (5,)],
        "rates": [6, 7],
        "n": None,
    }
    plain = {"a.b": 1, "a.c": {}, "nets.0.name": "x", "nets.1": [2, 3], "sizes.0": 4, "sizes.1": (5,)}
    assert dict(leaves(data)) == {**plain, "rates": [6, 7], "n": None}
    assert dict(leaves([2, 3], "x", every_list=True)) == {"x.0": 2, "x.1": 3}
    assert dict(leaves(7)) == {"": 7}
