"""report_data.json: every section, as the report reads it; bounded; and what is left out is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.analysis import collected as report_data
from kdcli.analysis.collected import write_report_data
from kdcli.data.facts import DataFacts
from kdcli.errors import RunError
from kdcli.models.weights import save_safetensors
from kdcli.records import Notice
from kdcli.report.report_data import ReportData, read_report_data
from kdcli.tasks.classification.metrics import Predictions
from kdcli.tasks.detection.outputs import scenes
from kdcli.tasks.pictures import image_uri, map_uri
from kdcli.training.run_folder import reopen
from tests.training.runs import SPEC, run_of, spec_of, train_all

CPU = torch.device("cpu")
FEATURES = (
    "mimic.cfgs.loss.type=l2_loss",
    "mimic.cfgs.loss.kwargs=null",
    "mimic.adapter=auto",
    "mimic.student.mimic_name=[model.layer2, model.layer3]",
    "mimic.teacher0.mimic_name=[model.layer2, model.layer3]",
    "mimic.teacher0.teacher_weight=teacher.safetensors",
    "trainer.max_epoch=1",
)


def trained(*changes: str) -> Path:
    """A finished run with a teacher whose weights lie beside it."""
    random = spec_of(SPEC, "saver.save_dir=unused")
    with run_of(random) as run:
        save_safetensors(run.teachers["teacher0"].net.state_dict(), Path("teacher.safetensors"))
    train_all(spec_of(SPEC, *FEATURES, "saver.save_dir=run", *changes))
    return Path("run")


def collected(root: Path) -> tuple[ReportData, list[Notice]]:
    run = reopen(root)
    path, notices = write_report_data(run.parsed, run.options, CPU)
    return read_report_data(path), notices


def test_every_section_is_collected_and_read_again() -> None:
    data, notices = collected(trained())
    assert notices == []
    assert [row.network for row in data.comparison] == ["student", "teacher0"]
    assert data.comparison[1].agreement is not None
    assert data.class_accuracy is not None and sum(data.class_accuracy.support) == 20
    assert data.reliability is not None
    assert sum(one.count for one in data.reliability["teacher0"]) == 20
    assert data.measured == (20, 20)
    assert data.confusion is not None and len(data.confusion.classes) == len(data.class_accuracy.classes)
    for name, rows in data.confusion.networks.items():
        assert [sum(row) for row in rows] == list(data.class_accuracy.support)
        shares = data.class_accuracy.networks[name]
        right = [None if not sum(row) else row[k] / sum(row) for k, row in enumerate(rows)]
        assert right == list(shares), "two counts of the same answers"
    assert data.worst_classes and all(one.pictures for one in data.worst_classes)
    assert len(data.disagreements) == 12
    assert set(data.disagreements[0].answers) == {"student", "teacher0"}
    assert len(data.features) == 2 and len(data.features[0].rows) == 4
    (similarity,) = data.cka
    assert similarity.student_layers[0] == "model.conv1"
    assert all(0.0 <= value <= 1.0 for row in similarity.values for value in row)


def test_a_teacher_without_weights_is_left_out_aloud() -> None:
    root = trained()
    Path("teacher.safetensors").unlink()
    data, notices = collected(root)
    assert [row.network for row in data.comparison] == ["student"]
    assert data.cka == () and data.disagreements == ()
    assert [notice.level for notice in notices] == ["warning"]
    assert "teacher0" in notices[0].message


def test_the_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    root = trained()
    monkeypatch.setattr(report_data, "IMAGES", 8)
    data, _ = collected(root)
    assert data.class_accuracy is not None and sum(data.class_accuracy.support) == 8
    assert reopen(root).folder.finished.exists()


def test_a_run_folder_moved_elsewhere_is_read_there() -> None:
    root = trained().rename("elsewhere")
    assert reopen(root).parsed.spec.saver.save_dir == "elsewhere"
    data, _ = collected(root)
    assert data.comparison


@pytest.mark.parametrize("there", [True, False])
def test_what_is_no_run_is_one_line(there: bool) -> None:
    if there:
        Path("empty").mkdir()
    with pytest.raises(RunError) as caught:
        reopen(Path("empty"))
    assert [found.code for found in caught.value.diagnostics] == ["KD750"]


def test_answers_count_by_class_and_confidence() -> None:
    answers = Predictions(["student", "teacher0"], 2)
    sure = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    other = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    answers.update({"student": sure, "teacher0": other}, torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]))
    accuracy = answers.class_accuracy(["cat", "dog"])
    assert accuracy == {
        "classes": ["cat", "dog"],
        "support": [1, 2],
        "networks": {"student": [1.0, 0.5], "teacher0": [1.0, 1.0]},
    }
    (one,) = answers.reliability()["student"]
    assert one["count"] == 3 and one["accuracy"] == pytest.approx(2 / 3)
    worst = answers.disagreements(["cat", "dog"], None, None)[0]
    assert (
        worst["label"],
        worst["answers"]["student"]["answer"],
        worst["answers"]["teacher0"]["answer"],
    ) == (
        "dog",
        "cat",
        "dog",
    )


def test_wrong_answers_are_counted_by_class() -> None:
    answers = Predictions(["student", "teacher0"], 3)
    logits = torch.full((6, 3), 0.0)
    for row, answer in enumerate([0, 1, 1, 1, 2, 0]):
        logits[row, answer] = 2.0 + row
    logits[5] = torch.nan  # no answer: wrong, and mistaken for nothing
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    right = torch.eye(3)[labels] * 9
    answers.update({"student": logits, "teacher0": right}, torch.rand(6, 1, 200, 100), labels)
    confusion = answers.confusion(["cat", "dog", "cow"])
    assert confusion["networks"]["student"] == [[1, 2, 0], [0, 1, 0], [0, 0, 1]]
    assert confusion["networks"]["teacher0"] == [[3, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert confusion["mistaken"] == {
        "student": [{"label": "cat", "answer": "dog", "count": 2, "of": 3}],
        "teacher0": [],
    }
    worst = answers.worst_classes(["cat", "dog", "cow"], None, None)
    assert [(one["class"], one["support"], one["shares"]["student"]) for one in worst] == [
        ("cat", 3, pytest.approx(1 / 3)),
        ("cow", 2, 0.5),
    ]
    confidences = [one["answers"]["student"]["confidence"] for one in worst[0]["pictures"]]
    assert len(confidences) == 2 and confidences == sorted(confidences, reverse=True)
    assert worst[0]["pictures"][0]["answers"]["teacher0"]["answer"] == "cat"


def test_of_many_classes_the_pairs_are_shown_alone() -> None:
    answers = Predictions(["student"], 31)
    logits = torch.eye(31)[[5, 6]] * 9
    answers.update({"student": logits}, torch.rand(2, 1, 4, 4), torch.tensor([5, 7]))
    found = answers.confusion([str(k) for k in range(31)])
    assert found["classes"] == [] and found["networks"] == {}
    assert found["mistaken"]["student"] == [{"label": "7", "answer": "6", "count": 1, "of": 1}]
    huge = Predictions(["student"], 2000)
    huge.update({"student": torch.rand(2, 2000)}, torch.rand(2, 1, 4, 4), torch.tensor([5, 7]))
    assert huge.answers["student"].numel() == 0


def test_pictures_of_maps_tokens_and_odd_images() -> None:
    assert image_uri(torch.rand(2, 5, 5)).startswith("data:image/png;base64,")
    assert image_uri(torch.full((3, 4, 4), torch.nan)).startswith("data:image/png")
    assert map_uri(torch.rand(8, 3, 3)) is not None
    assert map_uri(torch.rand(17, 8)) is not None, "16 patches behind a class token"
    assert map_uri(torch.rand(8)) is None


def test_detectors_show_their_boxes_beside_the_truth() -> None:
    class Detector(torch.nn.Module):
        """Finds one box of class 2 in the second image, and is unsure of another."""

        def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            rows = [[1, 2.0, 2.0, 8.0, 8.0, 0.9, 2], [0, 0.0, 0.0, 4.0, 4.0, 0.1, 1]]
            return {"dt_bboxes": torch.tensor(rows)}

    batch = {
        "image": torch.rand(2, 3, 16, 16),
        "image_info": [(12, 10, 1.0, 1.0, 12, 10)] * 2,
        "boxes": [torch.zeros(0, 5), torch.tensor([[2.0, 2.0, 8.0, 9.0, 2.0]])],
    }
    shown = scenes({"student": Detector()(batch)}, batch, DataFacts(class_names=("cat", "dog")))
    assert [(scene["width"], scene["height"]) for scene in shown] == [(10, 12)] * 2
    assert shown[0]["boxes"] == {"truth": [], "student": []}
    assert shown[1]["boxes"] == {
        "truth": [[2.0, 2.0, 8.0, 9.0, "dog", None]],
        "student": [[2.0, 2.0, 8.0, 8.0, "dog", 0.9]],
    }
    Path("report_data.json").write_text(json.dumps({"version": 1, "detections": shown}))
    assert len(read_report_data(Path("report_data.json")).detections) == 2


def test_a_run_under_way_is_shown_from_its_checkpoint() -> None:
    root = trained()
    for name in ("finished.json", "student.safetensors", "student_best.safetensors"):
        (root / name).unlink()
    data, notices = collected(root)
    assert data.comparison[0].file_bytes is None and notices == []
