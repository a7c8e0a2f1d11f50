"""A profile: where the time of a step goes, with nothing of the run touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcli.parallel.interrupts import listening
from kdcli.report.analysis_text import profile_text
from kdcli.training.profile import profile
from tests.training.runs import SPEC, run_of, spec_of, train_all


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 7, 100])
def test_the_parts_add_up_and_the_trace_names_them(steps: int) -> None:
    with run_of(spec_of(), profile=steps) as run, listening() as interrupts:
        found = profile(run, steps, interrupts)
    assert found.steps == min(steps, 10) and found.images == 8 * found.steps
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    parts = ["data", "teachers", "student forward", "losses", "backward", "optimizer", "logging", "rest"]
    assert list(found.parts) == parts
    assert all(seconds > 0 for name, seconds in found.parts.items() if name != "rest")
    assert found.parts["rest"] > -1e-4
    names = {event["name"] for event in json.loads(found.trace.read_text())["traceEvents"]}
    assert {"kdcli: teachers", "kdcli: optimizer"} <= names
    text = profile_text(found)
    assert all(name in text for name in parts) and str(found.trace) in text


def test_a_run_that_lies_there_stays_as_it_is() -> None:
    parsed = spec_of(SPEC, "saver.save_dir=here")
    train_all(parsed)
    before = {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()}
    with run_of(parsed, profile=2) as run, listening() as interrupts:
        found = profile(run, 2, interrupts)
    assert found.trace == Path("here/profile/trace.json")
    assert all(path.read_bytes() == content for path, content in before.items())
