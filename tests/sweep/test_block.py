"""What `validate` proves of the values of a `sweep` block: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdcli
from tests.sweep.test_sweep_command import SPEC  # which skips where there is no optuna

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("block", "codes", "line"),
    [
        ("mimic.cfgs.loss.kwargs.T: [1, 4]", [], 0),
        ("mimic.student.mimic_name: [[logits], [model.layer9]]", ["KD422"], 20),
        ("net.kwargs.widths: [[2, 2, 4, 4], [2, 2]]", ["KD402"], 20),
        ("method: [kd_loss, cwd]", [], 0),
        ("pairs: auto", [], 0),
    ],
)
def test_values_that_fit_no_network_are_told_at_their_line(
    block: str, codes: list[str], line: int, tmp_path: Path
) -> None:
    cfg = tmp_path / "cfg.yaml"
    cfg.write_text(f"{SPEC}sweep:\n  {block}\n")
    found = [one for one in kdcli.validate(cfg) if one.severity == "error"]
    assert [one.code for one in found] == codes
    assert [one.span is not None and one.span.line for one in found] == [line] * len(codes)
