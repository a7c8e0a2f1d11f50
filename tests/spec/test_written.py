"""The resolved spec: complete, and equal when read again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.spec.parse import Dumper
from kdcli.spec.text.nodes import to_data
from kdcli.spec.text.source import compose
from tests.spec.cases import TWO_JOBS
from tests.spec.specs import BASE, changed, good

STAGES = changed(
    ("  student:\n    mimic", "  stages: [{name: a, max_iter: 5, jobs: []}]\n  student:\n    mimic"),
    ("  warm_up_iters: -1\n", "  temperature: {learned: true}\n"),
)


@pytest.mark.parametrize("text", [BASE, TWO_JOBS.replace("other", "teacher"), STAGES])
def test_round_trip(text: str) -> None:
    parsed = good(text)
    again = good(parsed.resolved_yaml())
    assert again.spec == parsed.spec
    assert again.hash() == parsed.hash()
    assert again.resolved_yaml() == parsed.resolved_yaml()


def test_the_hash_is_of_the_meaning() -> None:
    parsed = good()
    assert good("# a comment\n" + BASE.replace("4.0", "4.00")).hash() == parsed.hash()
    assert good(BASE, "trainer.test_freq=1").hash() == parsed.hash()
    assert good(BASE, "trainer.test_freq=2").hash() != parsed.hash()


def test_defaults_are_written_out() -> None:
    data = yaml.safe_load(good().resolved_yaml())
    assert data["runtime"]["random_seed"] == 131
    assert data["mimic"]["teacher0"]["teacher_bn_mode"] == "eval"
    assert list(data)[:3] == ["runtime", "net", "teacher0"]


VALUES = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=8)
    | st.sampled_from(
        ["on", "1e-3", "0o17", "~", "null", "", "<<", "=", ".inf", "- a", "a: b", "#", "12:30"]
    ),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text("ab<1~", min_size=1), below, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_every_value_reads_back(value: Any) -> None:
    text = yaml.dump({"v": value}, Dumper=Dumper, allow_unicode=True)
    composed = compose(text, "f")
    assert composed.findings == ()
    assert composed.tree is not None
    assert to_data(composed.tree) == {"v": value}


def test_infinity() -> None:
    composed = compose(yaml.dump([math.inf, -math.inf, 1e-05], Dumper=Dumper), "f")
    assert composed.tree is not None
    assert to_data(composed.tree) == [math.inf, -math.inf, 1e-05]
