"""A run that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.engine.checkpoint import checkpoints, load_checkpoint, step_of
from kdcli.models.weights import read_weights
from kdcli.report.metrics import CLOCK_FIELDS, read_metrics
from tests.engine.processes import finish, screen, start
from tests.engine.runs import SPEC

HARD = (
    SPEC.replace(
        "  cfgs:\n    loss: {type: kd_loss, kwargs: {T: 2}}\n",
        "  cfgs:\n    loss: {type: kd_loss, kwargs: {T: 2}}\n"
        "    crd: {type: crd, kwargs: {feat_dim: 4, K: 6}}\n",
    ).replace(
        "batch_sampler:",
        "dataloader:\n"
        "    type: base\n"
        "    kwargs:\n"
        "      in_memory: false\n"
        "      batch_fn: {type: batch_mixup, kwargs: {alpha: 1.0, num_classes: 4}}\n"
        "  batch_sampler:",
    )
    + """
  log_freq: 2
  save_freq: 1
  accumulate_steps: 2
  keep_checkpoints: 2
  ema: {enable: true, ema_type: linear, kwargs: {decay: 0.9}}
saver: {save_dir: out, auto_resume: true}
"""
)
"""Augmentation, mixup, a bank, an average, accumulation; batches made sample by sample."""


def the_same(one: Any, other: Any) -> bool:
    """Bit for bit, through nested containers."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(the_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(the_same, one, other))
    return bool(one == other)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, the clock aside."""
    newest = checkpoints(folder / "out/checkpoints")[0]
    text = screen(folder)
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


def write_spec(folder: Path, text: str = HARD, name: str = "hard.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_killed_run_goes_on_exactly(folder: Path) -> None:
    spec = write_spec(folder)
    whole, parts = folder / "whole", folder / "parts"
    whole.mkdir()
    parts.mkdir()
    finish(spec, "trainer.save_every_minutes=1e-9", folder=whole)
    run = start(spec, "trainer.save_every_minutes=1e-9", folder=parts)
    run.wait_for("Saved", 2)
    run.kill()
    assert run.codes() == [-9]
    finish(spec, folder=parts)
    assert_same(outcome(whole), outcome(parts))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_moments_equals_one_that_was_not(
    folder: Path, processes: int, workers: int
) -> None:
    """Twenty kills over the four cases, one of each five inside a save."""
    spec = write_spec(folder)
    changes = [f"dataset.dataloader.kwargs.num_workers={workers}", "trainer.max_epoch=6"]
    whole, parts = folder / "whole", folder / "parts"
    whole.mkdir()
    parts.mkdir()
    began = time.monotonic()
    run = start(spec, *changes, folder=whole, processes=processes)
    run.wait_for("Plan")
    planned = time.monotonic()
    assert set(run.codes()) == {0}, screen(whole)
    length = time.monotonic() - planned
    moments = random.Random(began)
    every_step = [*changes, "trainer.save_every_minutes=1e-9", "trainer.log_freq=1"]
    for number in range(5):
        inside = number == 2
        run = start(spec, *every_step, folder=parts, processes=processes, die_in_save=2 if inside else None)
        if inside:
            run.processes[0].join(60.0)
            time.sleep(0.2)
        else:
            run.wait_for("Plan")
            time.sleep(moments.uniform(0.0, 0.5 * length))
        run.kill()
        codes = run.codes()
        assert codes[0] == -9 or set(codes) == {0}, screen(parts)
    finish(spec, *changes, folder=parts, processes=processes)
    assert_same(outcome(whole), outcome(parts))
    assert not [path for path in parts.rglob("*.tmp")]


@pytest.mark.slow
def test_resumed_between_the_last_step_of_an_epoch_and_its_evaluation(folder: Path) -> None:
    spec = write_spec(folder)
    whole, parts = folder / "whole", folder / "parts"
    whole.mkdir()
    parts.mkdir()
    every = "trainer.save_every_minutes=1e-9"
    finish(spec, folder=whole)
    for die_in_save in (3, 2):  # after the save that precedes the evaluation, inside the one that follows
        run = start(spec, every, "trainer.log_freq=1", folder=parts, die_in_save=die_in_save)
        assert run.codes() == [-9]
    steps = [step_of(path) for path in checkpoints(parts / "out/checkpoints")]
    assert steps[0] >= 2
    finish(spec, folder=parts)
    assert_same(outcome(whole), outcome(parts))
