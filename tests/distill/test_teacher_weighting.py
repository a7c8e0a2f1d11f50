"""Several teachers: how much each counts, from the spec to the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import SpecError
from kdcli.spec.parse import ParsedSpec
from tests.distill.specs import TEACHER, network, spec_with
from tests.training.runs import run_of

T = 2.0


def spec_of_two(loss: str = "kd_loss", **job: Any) -> ParsedSpec:
    mimic = {
        "cfgs": {"loss": {"type": loss, "kwargs": {"T": T} if loss == "kd_loss" else {}}},
        "teacher0": {"mimic_name": ["logits"], **TEACHER},
        "teacher1": {"mimic_name": ["logits"], **TEACHER},
        "student": {"mimic_name": ["logits"]},
        **job,
    }
    return spec_with(mimic, teacher1=network([4, 8, 6, 8]))


def rows(student: Tensor, teacher: Tensor) -> Tensor:
    """T²·KL of each sample."""
    s, t = (student / T).log_softmax(1), (teacher / T).log_softmax(1)
    return (t.exp() * (t - s)).sum(1) * T**2


def entropies(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


@pytest.mark.parametrize("weighting", ["average", "entropy", "confidence"])
def test_the_weights_are_the_authors(weighting: str) -> None:
    with run_of(spec_of_two(teacher_weighting=weighting)) as run:
        batch = dict(next(run.train_loader.batches(0)))
        views = {name: teacher.view(batch) for name, teacher in run.teachers.items()}
        logits = [views[name].outputs["logits"] for name in ("teacher0", "teacher1")]
        run.trainee.eval()
        student = run.trainee.view(batch).outputs["logits"]
        losses = run.trainee(batch, views, StepInfo())
    if weighting == "average":
        weights = [torch.ones(8), torch.ones(8)]
    elif weighting == "entropy":
        # Of two teachers: half the other one's share of the entropy.
        first, second = (entropies(one) for one in logits)
        weights = [second / (first + second) / 2, first / (first + second) / 2]
    else:
        # Of two teachers: half the other one's share by softmax of the cross entropies.
        first, second = (F.cross_entropy(one, batch["labels"], reduction="none").exp() for one in logits)
        weights = [second / (first + second) / 2, first / (first + second) / 2]
    for name, one, weight in zip(("teacher0", "teacher1"), logits, weights, strict=True):
        expected = (weight * rows(student, one)).mean()
        assert torch.allclose(losses[f"mimic_job0.{name}.loss"], expected, rtol=1e-5)


def test_two_teachers_who_agree_share_evenly() -> None:
    with run_of(spec_of_two(teacher_weighting="confidence")) as run:
        batch = dict(next(run.train_loader.batches(0)))
        view = run.teachers["teacher0"].view(batch)
        run.trainee.eval()
        losses = run.trainee(batch, {"teacher0": view, "teacher1": view}, StepInfo())
        student = run.trainee.view(batch).outputs["logits"]
    # softmax of two equal errors is ½; (1 − ½)/(2 − 1)/2 = ¼ for each.
    quarter = rows(student, view.outputs["logits"]).mean() / 4
    assert torch.allclose(losses["mimic_job0.teacher0.loss"], quarter, rtol=1e-5)
    assert torch.allclose(losses["mimic_job0.teacher1.loss"], quarter, rtol=1e-5)


def test_a_loss_that_has_no_samples_to_weigh_is_told() -> None:
    with (
        pytest.raises(SpecError, match="can't weigh its samples") as caught,
        run_of(spec_of_two("dist", teacher_weighting="entropy")),
    ):
        pass
    assert caught.value.diagnostics[0].code == "KD453"
