"""A run on two processes is the same training as on one with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.equality import COMPARED, NORMALISING, in_a_group, spec_text, trained

HALF = "dataset.batch_sampler.kwargs.batch_size=4"
STAGES = """
  stages:
    - {name: alone, max_iter: 2, task_loss: false}
    - {name: together, max_iter: 2}"""

FEW = {
    "mean": (spec_text("kd_loss"), []),
    "gathered": (spec_text("sp"), []),
    "starts and ends": (
        spec_text("vid", job="\n  start_iter: 1\n  end_iter: 2"),
        ["trainer.max_iter=4"],
    ),
    "stages": (spec_text("ab", job=STAGES), []),
    "no task loss": (spec_text("l2_loss", job="\n  task_loss: false"), []),
    "standardised": (spec_text("cosine", job="\n  standardize: phi_s\n  standardize_images: 12"), []),
    "no labels": (
        spec_text("l2_loss").replace(
            "num_classes: 4\n        shape", "num_classes: 4\n        labels: none\n        shape"
        ),
        ["dataset.test.dataset.kwargs.labels=none"],
    ),
    "accumulated": (spec_text("vid"), ["trainer.accumulate_steps=2", "trainer.clip_grad_norm=0.5"]),
    "average": (spec_text("gkd_loss"), ["trainer.ema.enable=true", "trainer.ema.kwargs.decay=0.5"]),
}


def assert_equal_training(one: Any, many: Any, name: str, tolerance: float) -> None:
    assert isinstance(many, dict), (name, many)
    assert one["stages"] == many["stages"]
    assert len(one["losses"]) == len(many["losses"])
    for step, (alone, shared) in enumerate(zip(one["losses"], many["losses"], strict=True), 1):
        assert alone == pytest.approx(shared, rel=tolerance, abs=tolerance), (name, step)
    for key, value in one["weights"].items():
        torch.testing.assert_close(
            many["weights"][key],
            value,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, key=key: f"{name} {key}: {m}",
        )
    for alone, shared in zip(one["metrics"], many["metrics"], strict=True):
        assert alone == pytest.approx(shared, rel=1e-4, abs=1e-4), name


def compare(jobs: dict[str, tuple[str, list[str]]], folder: Path, tolerance: float, *extra: str) -> None:
    shared = in_a_group({name: (text, [*c, HALF, *extra]) for name, (text, c) in jobs.items()}, folder)
    for number, (name, (text, changes)) in enumerate(jobs.items()):
        alone = trained(text, str(folder / f"one{number}"), *changes)
        assert_equal_training(alone, shared[name], name, tolerance)


FIRST = ("mean", "gathered", "starts and ends", "accumulated", "average")
"""What the default tests compare: each kind of sum over processes once."""


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path) -> None:
    compare({name: FEW[name] for name in FIRST}, folder, 1e-6)


@pytest.mark.slow
def test_two_processes_train_as_one_with_stages_without_labels_or_task_loss(folder: Path) -> None:
    compare({name: job for name, job in FEW.items() if name not in FIRST}, folder, 1e-6)


@pytest.mark.slow
def test_every_loss_trains_on_two_processes_as_on_one(folder: Path) -> None:
    compare({name: (spec_text(name), []) for name in COMPARED}, folder, 1e-5)


@pytest.mark.slow
def test_synchronised_batch_norm_trains_on_two_processes_as_on_one(folder: Path) -> None:
    """A method's own BatchNorms are synchronised where the student's are."""
    # A great loss and a great step would make much of the last bits of a variance.
    slow = ["trainer.optimizer.kwargs.lr=0.0005"]
    names = ["kd_loss", *sorted(NORMALISING)]
    compare({name: (spec_text(name, norm="sync_bn", norm_kwargs="{}"), slow) for name in names}, folder, 1e-5)


@pytest.mark.slow
def test_sharded_parameters_train_as_whole_ones(folder: Path) -> None:
    jobs = {name: FEW[name] for name in ("mean", "starts and ends", "stages", "accumulated", "average")}
    jobs["tapped"] = (spec_text("cwd"), [])
    compare(jobs, folder, 1e-6, "trainer.parallel=fsdp")
