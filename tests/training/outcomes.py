"""What two runs leave behind, compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdcli.models.weights import read_weights
from kdcli.report.run_files import CLOCK_FIELDS, read_metrics
from kdcli.training.checkpoint import checkpoints, load_checkpoint
from tests.training.processes import screen


def the_same(one: Any, other: Any) -> bool:
    """Bit for bit, through nested containers."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(the_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(the_same, one, other))
    return bool(one == other)


def outcome(folder: Path, text: str | None = None) -> dict[str, Any]:
    """All that a run in `folder`/out leaves behind, the clock aside; text: its screen, else process 0's."""
    newest = checkpoints(folder / "out/checkpoints")[0]
    text = screen(folder) if text is None else text
    table = text[text.rindex("\nnetwork  ") :]
    return {
        "last": read_weights(folder / "out/student.safetensors"),
        "best": read_weights(folder / "out/student_best.safetensors"),
        "state": {k: v for k, v in load_checkpoint(newest).items() if k != "spec"},
        "metrics": [
            {key: value for key, value in line.items() if key not in CLOCK_FIELDS}
            for line in read_metrics(folder / "out/metrics.jsonl")
        ],
        "table": table[: table.index("\nfinished")],
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in one:
        assert the_same(one[part], other[part]), part
