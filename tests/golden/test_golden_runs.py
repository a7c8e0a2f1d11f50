"""Runs and losses give what is on record: bit for bit on a machine that has one, near it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcli.losses import LOSSES
from tests.golden.measured import (
    DIGITS,
    RUNS,
    differences,
    environment_is_quiet,
    first_steps,
    loss_value,
    whole_run,
)
from tests.golden.recorded import machine, read

RECORDS: dict[str, Any] = read()
BITS = machine() in RECORDS and environment_is_quiet()
RECORD: dict[str, Any] = RECORDS[machine()] if BITS else next(iter(RECORDS.values()))


SLOWER = ("fashion_contrastive", "fashion_feature", "digits_two_teachers")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOWER else name for name in RUNS]
)
def test_the_first_steps_of_a_sample(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert differences(first_steps(name, tmp_path), RECORD["first_steps"][name], bits=BITS) == []


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_on_seeded_inputs(name: str) -> None:
    mine, recorded = loss_value(name), RECORD["losses"][name]
    if BITS:
        assert mine == recorded
    else:
        assert mine["value"] == pytest.approx(recorded["value"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not BITS, reason="this kind of machine has no record")
@pytest.mark.parametrize("name", DIGITS)
def test_a_whole_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert whole_run(f"digits_{name}", tmp_path) == RECORD["whole_runs"][f"digits_{name}"]
