"""A cache shared by the processes of a run: the same losses as live, and every row once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.distill.cached import FILLED
from kdcli.report.run_files import read_metrics
from tests.training.processes import start
from tests.training.runs import SPEC


def losses(folder: str, spec: Path, *changes: str) -> list[dict[str, float]]:
    begun = start(spec, f"saver.save_dir={folder}", "trainer.max_epoch=3", *changes, processes=2)
    assert begun.codes() == [0, 0]
    return [line["losses"] for line in read_metrics(Path(folder) / "metrics.jsonl") if line["kind"] == "step"]


@pytest.mark.slow
def test_two_processes_share_a_cache() -> None:
    spec = Path("small.yaml")
    spec.write_text(SPEC)
    cache = "mimic.teacher0.cache={views: 3, dir: caches}"
    live = losses("live", spec)
    filling = losses("filling", spec, cache)
    reading = losses("reading", spec, cache)
    (folder,) = Path("caches").iterdir()
    assert (folder / FILLED).read_bytes() == bytes([1]) * 120
    for one in (filling, reading):
        assert len(one) == len(live) > 0
        for ours, theirs in zip(one, live, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
