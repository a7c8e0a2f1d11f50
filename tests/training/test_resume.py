"""A run that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from kdcli.models.weights import read_weights
from kdcli.training.checkpoint import checkpoints, step_of
from tests.training.outcomes import assert_same, outcome
from tests.training.processes import finish, screen, start
from tests.training.runs import SPEC

HARD = (
    SPEC.replace(
        "  cfgs:\n    loss: {type: kd_loss, kwargs: {T: 2}}\n",
        "  cfgs:\n    loss: {type: kd_loss, kwargs: {T: 2}}\n"
        "    crd: {type: crd, kwargs: {feat_dim: 4, K: 6, negatives: all}}\n",
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


def write_spec(folder: Path, text: str = HARD, name: str = "hard.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.slow
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
    # The watch looks, and remembers, at log points.
    changes = [
        f"dataset.dataloader.kwargs.num_workers={workers}",
        "trainer.max_epoch=6",
        "trainer.log_freq=1",
    ]
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
    every_step = [*changes, "trainer.save_every_minutes=1e-9"]
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
    finish(spec, "trainer.log_freq=1", folder=whole)
    for die_in_save in (3, 2):  # after the save that precedes the evaluation, inside the one that follows
        run = start(spec, every, "trainer.log_freq=1", folder=parts, die_in_save=die_in_save)
        assert run.codes() == [-9]
    steps = [step_of(path) for path in checkpoints(parts / "out/checkpoints")]
    assert steps[0] >= 2
    finish(spec, "trainer.log_freq=1", folder=parts)
    assert_same(outcome(whole), outcome(parts))


@pytest.mark.slow
def test_a_sharded_run_goes_on_exactly_and_its_checkpoint_is_whole(folder: Path) -> None:
    """FSDP's checkpoint holds whole tensors: one process may take it over, or DDP."""
    spec = write_spec(folder)
    sharded = "trainer.parallel=fsdp"
    whole, parts = folder / "whole", folder / "parts"
    whole.mkdir()
    parts.mkdir()
    finish(spec, sharded, folder=whole, processes=2)
    run = start(spec, sharded, "trainer.save_every_minutes=1e-9", folder=parts, processes=2)
    run.wait_for("Saved", 2)
    run.kill()
    assert run.codes()[0] == -9
    kept = shutil.copytree(parts / "out", folder / "kept")
    finish(spec, sharded, folder=parts, processes=2)
    assert_same(outcome(whole), outcome(parts))
    for number, (processes, allowed) in enumerate(
        ((2, ["trainer.parallel"]), (1, ["trainer.parallel", "world_size"]))
    ):
        other = folder / f"other{number}"
        shutil.copytree(kept, other / "out")
        refused = start(spec, folder=other, processes=processes)
        assert set(refused.codes()) == {1}
        assert "these keys differ: trainer.parallel" in screen(other)
        finish(spec, folder=other, processes=processes, allow_changed=allowed)
    ddp, fsdp = (read_weights(each / "out/student.safetensors") for each in (folder / "other0", parts))
    assert all(torch.allclose(ddp[name], fsdp[name], rtol=1e-5, atol=1e-5) for name in fsdp)
