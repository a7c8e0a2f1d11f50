"""Classification measured: by hand, with answers that are none, and as the sum of two processes."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.tasks.classification.metrics import ClassificationMeter, Predictions, agreement_sums
from kdcli.tasks.classification.task import Classification

NAN, INF = float("nan"), float("inf")


def measured(logits: list[list[float]], labels: list[int]) -> tuple[dict[str, float], ClassificationMeter]:
    meter = ClassificationMeter((1, 2))
    batch = {"labels": torch.tensor(labels), "indices": torch.arange(len(labels)) + 7}
    meter.update({"logits": torch.tensor(logits)}, batch)
    return meter.result(meter.sums()), meter


def test_by_hand() -> None:
    found, _ = measured([[0.0, math.log(3.0)], [math.log(4.0), 0.0]], [1, 1])
    assert found["top1"] == 50.0 and found["top2"] == 100.0
    assert found["cross_entropy"] == pytest.approx((-math.log(3 / 4) - math.log(1 / 5)) / 2)
    # Confidence 0.75 and right, 0.8 and wrong: two bins.
    assert found["calibration_error"] == pytest.approx(100 * (0.25 + 0.8) / 2)


def test_as_many_ranks_as_topk_says() -> None:
    # The label's rank is 1, 2, 3 and 4 of four classes.
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 4)
    for topk, expected in (((1, 5), [25.0, 100.0]), ((2, 3), [50.0, 75.0])):
        meter = ClassificationMeter(topk)
        meter.update({"logits": logits}, {"labels": torch.arange(4), "indices": torch.arange(4)})
        found = meter.result(meter.sums())
        assert [found[f"top{k}"] for k in topk] == expected
    assert Classification([3]).topk == (1, 3) and Classification([5, 1]).topk == (5, 1)


@pytest.mark.parametrize("bad", [[NAN, 0.0], [0.0, NAN], [INF, 0.0], [INF, INF], [-INF, -INF], [NAN, INF]])
def test_an_answer_that_is_none_is_wrong_and_leaves_the_rest_alone(bad: list[float]) -> None:
    good = [[0.0, 2.0], [2.0, 0.0], [0.5, 0.0]]
    alone, _ = measured(good, [1, 0, 1])
    for label in (0, 1):
        with_bad, meter = measured([*good, bad], [1, 0, 1, label])
        assert with_bad["top1"] == pytest.approx(alone["top1"] * 3 / 4)
        assert with_bad["top2"] == 75.0
        for name in ("cross_entropy", "calibration_error"):
            assert with_bad[name] == pytest.approx(alone[name])
        assert meter.unanswered(meter.sums()) == 1 and meter.unanswered_samples() == [10]


@pytest.mark.parametrize(
    ("answers", "labels", "one"),
    [
        ([2] * 30, [2] * 20 + [0] * 10, 2),
        ([2] * 30, [2] * 21 + [0] * 9, None),  # nine others may be chance
        ([2] * 29 + [1], [2] * 20 + [0] * 10, None),
        ([0] * 30, [1] * 30, 0),
        ([1, 3] * 15, [2] * 30, None),
    ],
)
def test_one_answer_to_every_image_is_seen_whatever_the_batches(
    answers: list[int], labels: list[int], one: int | None
) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(answers), 4).float()
    for size in (30, 7, 1):
        meters = [ClassificationMeter((1, 2)) for _ in range(3)]  # the third process has no batch
        for number, start in enumerate(range(0, 30, size)):
            end = start + size
            batch = {
                "labels": torch.tensor(labels[start:end]),
                "indices": torch.arange(len(labels[start:end])),
            }
            meters[number % 2].update({"logits": logits[start:end]}, batch)
        sums = torch.stack([meter.sums() for meter in meters]).sum(0)
        assert meters[0].one_answer(sums) == one
    silent = torch.full((5, 4), NAN)
    meters[0].update(
        {"logits": silent}, {"labels": torch.zeros(5, dtype=torch.long), "indices": torch.arange(5)}
    )
    sums = torch.stack([meter.sums() for meter in meters]).sum(0)
    assert meters[0].one_answer(sums) == one and meters[0].unanswered(sums) == 5


def test_a_class_that_is_ruled_out_is_an_answer() -> None:
    found, meter = measured([[-INF, 1.0], [1.0, -INF]], [1, 0])
    assert found["top1"] == 100.0 and meter.unanswered(meter.sums()) == 0


def test_nothing_but_nan_has_finite_metrics() -> None:
    found, meter = measured([[NAN, NAN]] * 3, [0, 1, 0])
    assert found == {"top1": 0.0, "top2": 0.0, "cross_entropy": 0.0, "calibration_error": 0.0}
    assert meter.unanswered(meter.sums()) == 3


def test_agreement_is_of_what_both_answer() -> None:
    student = torch.tensor([[2.0, 0.0], [NAN, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [INF, 0.0]])
    count, equal, divergence = agreement_sums(student, teacher).tolist()
    assert (count, equal) == (1.0, 1.0)
    p, q = torch.tensor([1.0, 0.0]).softmax(0), torch.tensor([2.0, 0.0]).softmax(0)
    assert divergence == pytest.approx(float((p * (p / q).log()).sum()))


def test_the_report_counts_it_as_wrong_too() -> None:
    answers = Predictions(["student", "teacher0"], 2)
    logits = {
        "student": torch.tensor([[NAN, 0.0], [2.0, 0.0]]),
        "teacher0": torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
    }
    answers.update(logits, torch.zeros(2, 1, 2, 2), torch.tensor([0, 0]))
    accuracy = answers.class_accuracy(["a", "b"])["networks"]
    assert accuracy == {"student": [0.5, None], "teacher0": [1.0, None]}
