"""Samples with several labels: their list, their mixing, metrics of each head; accuracy by how frequent a class is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data.classification.meta_lists import cls
from kdcli.data.classification.mixing import Mixup
from kdcli.data.evaluators import class_counts, imagenet_lt
from kdcli.data.facts import DataFacts
from kdcli.data.image_readers import PillowReader
from kdcli.errors import KdError, SpecError
from kdcli.spec.places import Places
from kdcli.tasks.classification.metrics import ClassificationMeter, HeadsMeter, ShotAccuracy
from kdcli.tasks.classification.task import Classification, logits_fit
from tests.training.runs import spec_of

FIRST = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
SECOND = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
LABELS = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1]])


def test_metrics_of_each_head_and_their_mean() -> None:
    meter = Classification().meter(DataFacts(heads=2))
    assert isinstance(meter, HeadsMeter)
    half = slice(0, 2), slice(2, 4)
    for rows in half:
        batch = {"labels": LABELS[rows], "indices": torch.arange(4)[rows]}
        meter.update({"logits": [FIRST[rows], SECOND[rows]]}, batch)
    found = meter.result(meter.sums())
    # 3 of 4 and 2 of 4.
    assert (found["head0_top1"], found["head1_top1"], found["top1"]) == (75.0, 50.0, 62.5)
    alone = ClassificationMeter()
    alone.update({"logits": SECOND}, {"labels": LABELS[:, 1]})
    for name, value in alone.result(alone.sums()).items():
        assert found[f"head1_{name}"] == pytest.approx(value)
    assert len(HeadsMeter(2).sums()) == len(meter.sums()), "a process without samples gives as many"


def test_a_head_without_an_answer_is_counted() -> None:
    meter = HeadsMeter(2)
    broken = FIRST.clone()
    broken[1] = float("nan")
    meter.update({"logits": [broken, SECOND]}, {"labels": LABELS, "indices": torch.arange(10, 14)})
    assert meter.unanswered(meter.sums()) == 1 and meter.unanswered_samples() == [11]


def listed(folder: Path, lines: list[str]) -> object:
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(folder / "a.png")
    (folder / "list.txt").write_text("\n".join(lines))
    reader = PillowReader(image_dir=str(folder), path=(), places=Places(folder))
    return cls(reader, (), Places(folder), meta_file=str(folder / "list.txt"), meta_type="custom_cls")


def line(label: object) -> str:
    return json.dumps({"filename": "a.png", "label": label})


def test_a_line_may_have_several_labels(tmp_path: Path) -> None:
    source = listed(tmp_path, [line([0, 7]), line([2, 1])])
    assert source.labels.tolist() == [[0, 7], [2, 1]] and source.num_classes == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "lines", [[line([0, 7]), line([2])], [line([0, 1]), line(1)], [line([0, -1])], [line([])]]
)
def test_lists_of_labels_that_do_not_fit_are_told(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(KdError) as caught:
        listed(tmp_path, lines)
    assert caught.value.diagnostics[0].code in ("KD510", "KD515")


def test_every_label_of_a_sample_is_mixed() -> None:
    batch = {"image": torch.zeros(4, 1, 2, 2), "labels": LABELS}
    mixed = Mixup(alpha=0.0, num_classes=3)(batch, np.random.default_rng(0))["mixed_labels"]
    assert mixed.shape == (4, 2, 3) and torch.equal(mixed.argmax(2), LABELS)


@pytest.mark.parametrize(("heads", "labels"), [(2, None), (1, 2), (2, 3)])
def test_as_many_logits_as_labels(heads: int, labels: int | None) -> None:
    logits = [FIRST] * heads if heads > 1 else FIRST
    facts = DataFacts(labels="classes", num_classes=3, heads=labels)
    (found,) = logits_fit(spec_of().spec, {"logits": logits}, facts, facts)
    assert found.code == "KD584"
    fits = DataFacts(labels="classes", num_classes=3, heads=heads if heads > 1 else None)
    assert list(logits_fit(spec_of().spec, {"logits": logits}, fits, fits)) == []


def test_accuracy_by_the_frequency_of_a_class() -> None:
    # Images in training: 101, 100, 20, 19, 5; the last has no test image.
    metric = ShotAccuracy(counts=[101, 100, 20, 19, 5], topk=[1, 2], many_shot_thr=100, low_shot_thr=20)
    answers = torch.tensor([[0, 1], [1, 0], [1, 2], [1, 2], [3, 0], [2, 3]])
    logits = torch.zeros(6, 5).scatter(1, answers[:, :1], 2.0).scatter(1, answers[:, 1:], 1.0)
    metric.update({"logits": logits}, {"labels": torch.tensor([0, 0, 1, 2, 3, 3])})
    assert metric.result(metric.sums()) == {
        # Class 0: one of two at once, both among two.
        "many_shot_acc_top1": 50.0,
        "many_shot_acc_top2": 100.0,
        # Class 1 right, class 2 second.
        "median_shot_acc_top1": 50.0,
        "median_shot_acc_top2": 100.0,
        "low_shot_acc_top1": 50.0,
        "low_shot_acc_top2": 100.0,
    }
    assert metric.result(torch.zeros_like(metric.sums())) == {}


@pytest.mark.parametrize("text", [None, "[1, 2", '{"a": 1}', "[1, -2]", "[1.5]", "[]"])
def test_class_counts_that_can_not_be_read_are_told(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "counts.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SpecError) as caught:
        class_counts(file, ("x",))
    assert caught.value.diagnostics[0].code == "KD586"


def test_thresholds_upside_down_are_refused() -> None:
    with pytest.raises(ValueError, match="`low_shot_thr` is 200, more than `many_shot_thr`, 100"):
        imagenet_lt(cls_freq="a.json", low_shot_thr=200)
