"""Every row of the methods' benchmark is a right spec."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdcli.losses import LOSSES
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.parse import parse
from tests.benchmarks.methods import ALONE, LEFT_OUT, MUTUAL, VARIANTS, Budget, folder_of, spec_of

BUDGET = Budget(steps=6, limit=128, test_limit=64, teacher=Path("teacher.safetensors"))
ROWS = [ALONE, *(name for name in LOSSES if name not in LEFT_OUT), *VARIANTS, MUTUAL]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_right(row: str) -> None:
    text = yaml.safe_dump(spec_of(row, 1, Path("runs"), BUDGET), sort_keys=False)
    parsed = parse(text, "row.yaml", base_dir=None)
    assert [found for found in check_references(parsed, tables()) if found.severity == "error"] == []


def test_rows_have_folders_of_their_own() -> None:
    assert len({folder_of(Path("runs"), row, 1) for row in ROWS}) == len(ROWS)
