"""A NaN or Inf stops the run, or is skipped within a budget, before it reaches the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.errors import RunError
from kdcli.models.weights import read_weights
from kdcli.records import Notice, Saved, Step
from kdcli.training import train as loop
from kdcli.training.checkpoint import checkpoints, load_checkpoint
from kdcli.training.nonfinite import FiniteCheck
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all


def spoil(run: Run, *steps: int, gradient: bool = False) -> None:
    """Make the student's task loss (or a gradient alone) NaN at these steps, once training has begun."""
    forward, done = run.trainee.forward, [0]

    def spoiled(batch: Any, views: Any, step_info: Any, weighted: bool = True) -> dict[str, torch.Tensor]:
        losses = forward(batch, views, step_info, weighted)
        if weighted:
            done[0] += 1
            if done[0] in steps:
                loss = losses["task.loss"]
                if gradient:
                    loss.register_hook(lambda g: g * float("nan"))
                else:
                    losses["task.loss"] = loss * float("nan")
                    next(run.student.buffers()).data.fill_(float("nan"))
        return losses

    run.trainee.forward = spoiled  # type: ignore[method-assign]


def failed_run(**how: Any) -> tuple[list[Any], RunError, Path]:
    """The records of a run whose seventh step goes wrong, and the error it stops with."""
    records = []
    with run_of(spec_of(SPEC, "trainer.log_freq=2")) as run:
        spoil(run, 7, **how)
        with pytest.raises(RunError) as caught:
            for record in train(run):
                records.append(record)
        return records, caught.value, run.folder.root


@pytest.mark.parametrize("gradient", [False, True])
def test_the_run_stops_and_names_what_is_needed_to_do_the_step_again(gradient: bool) -> None:
    records, error, root = failed_run(gradient=gradient)
    diagnostic = error.diagnostics[0]
    assert diagnostic.code == "KD730" and "at step 7" in diagnostic.message
    assert ("the gradient of `student." if gradient else "the loss `task.loss`") in diagnostic.message
    assert [r.step for r in records if isinstance(r, Saved)] == [5]
    state = load_checkpoint(checkpoints(root / "checkpoints")[0])
    assert all(bool(t.isfinite().all()) for t in state["trainee"].values())
    replay = torch.load(root / "replay_00000007.pt", weights_only=True)
    assert replay["step"] == 7 and replay["epoch"] == 1
    own = replay["processes"][0]
    with run_of(spec_of(SPEC), overwrite=True) as run:
        batches = list(run.train_loader.batches(1))
    assert own["indices"] == [batches[1]["indices"].tolist()]
    assert set(own["losses"][0]) == {"task.loss", "mimic_job0.teacher0.loss"}
    assert own["generators"]["cpu"].dtype == torch.uint8


@pytest.mark.parametrize("gradient", [False, True])
def test_on_cuda_a_flag_is_read_at_log_points_and_no_bad_weights_are_saved(
    gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FiniteCheck", lambda run: FiniteCheck(run, deferred=True))
    records, error, root = failed_run(gradient=gradient)
    assert "at step 7" in error.diagnostics[0].message
    assert max(r.step for r in records if isinstance(r, Step)) == 8
    assert [r.step for r in records if isinstance(r, Saved)] == [5]
    replay = torch.load(root / "replay_00000007.pt", weights_only=True)
    assert len(replay["processes"][0]["indices"][0]) == 8


def test_bad_steps_are_skipped_within_the_budget() -> None:
    spec = spec_of(SPEC, "trainer.on_nonfinite=skip", "trainer.nonfinite_budget=2")
    with run_of(spec) as run:
        spoil(run, 3, 8)
        records = list(train(run))
    told = [r.message for r in records if isinstance(r, Notice) and "skipped" in r.message]
    assert told == [
        "step 3 skipped: the loss `task.loss` is not finite (1 of at most 2)",
        "step 8 skipped: the loss `task.loss` is not finite (2 of at most 2)",
    ]
    weights = read_weights(Path("runs/small/student.safetensors"))
    assert all(bool(t.isfinite().all()) for t in weights.values())
    with run_of(spec, overwrite=True) as run:
        spoil(run, 3, 5, 8)
        with pytest.raises(RunError, match="at step 8"):
            list(train(run))


def test_the_budget_holds_over_a_resume() -> None:
    spec = spec_of(SPEC, "trainer.on_nonfinite=skip", "trainer.nonfinite_budget=1", "saver.auto_resume=true")
    with run_of(spec) as run:
        spoil(run, 3)
        for record in train(run):
            if isinstance(record, Saved):
                break
    with run_of(spec) as run:
        spoil(run, 1)
        with pytest.raises(RunError, match="at step 6"):
            list(train(run))


def test_a_good_run_leaves_no_replay() -> None:
    train_all(spec_of(SPEC, "trainer.max_iter=2"))
    assert not list(Path("runs/small").glob("replay_*"))
