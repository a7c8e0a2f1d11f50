"""Detectors exported: their boxes proved equal, what can't be proved refused, and the files run by others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kdcli.commands.export import exported_text
from kdcli.data.facts import DataFacts
from kdcli.errors import RunError, UsageError
from kdcli.exports.export import Exported, export, prove
from kdcli.models.network import build_network
from kdcli.spec.parse import read
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks.detection.deploy import Detector, refuse_strangers
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import reopen
from tests.models.detection.nets import batch, build, faster_rcnn
from tests.scenes import SAMPLES, on_scenes, write_scenes
from tests.training.runs import train_all


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run folder of a tiny Faster R-CNN after one step, its data beside it."""
    root = tmp_path_factory.mktemp("detector")
    changes = [*on_scenes(write_scenes(root)), f"saver.save_dir={root}/run", "trainer.test_freq=1"]
    train_all(read(str(SAMPLES / "scenes_student.yaml"), changes))
    yield root / "run"


def exported(root: Path, format: str, output: str, **kwargs: Any) -> Exported:
    found = reopen(root)
    return export(found.parsed, found.options, format, Path(output), **kwargs)


def test_safetensors_and_what_is_told(run: Path) -> None:
    done = exported(run, "safetensors", "student.safetensors")
    assert done.proof.difference == 0.0 and done.proof.boxes and done.proof.alone == 0 and done.real
    with safe_open(done.path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["input_shape"]) == [3, 128, 128]
    assert json.loads(metadata["inputs"]) == ["image", "image_size"]
    assert json.loads(metadata["outputs"]) == ["boxes", "scores", "labels", "image_index"]
    assert len(json.loads(metadata["class_names"])) == 10 and "from 0" in metadata["labels"]
    said = exported_text(done)
    assert f"{done.proof.boxes} boxes and scores of 3 test images, 0 boxes without a counterpart" in said


@pytest.mark.slow
def test_torch_export_runs_any_batch(run: Path) -> None:
    done = exported(run, "torch-export", "student.pt2")
    assert done.proof.boxes and done.proof.difference < 1e-3
    program: Any = torch.export.load(done.path).module()
    for count in (1, 5):
        boxes, scores, labels, images = program(torch.rand(count, 3, 128, 128), torch.full((count, 2), 128.0))
        assert boxes.shape == (len(scores), 4) and int(labels.max()) < 10 and int(images.max()) == count - 1


@pytest.mark.slow
def test_onnx_runs_without_torch(run: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = exported(run, "onnx", "student.onnx", size=(160, 128))
    assert done.proof.boxes and done.proof.difference < 1e-2
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        image = torch.rand(count, 3, 160, 128).numpy()
        given = {"image": image, "image_size": torch.full((count, 2), 128.0).numpy()}
        boxes, scores, _, images = session.run(None, given)
        assert boxes.shape == (len(scores), 4) and boxes.max() <= 128 and images.max() == count - 1
    assert json.loads(session.get_modelmeta().custom_metadata_map["input_shape"]) == [3, 160, 128]


@pytest.mark.slow
def test_sizes(run: Path) -> None:
    with pytest.raises(UsageError, match="128x128"):
        exported(run, "safetensors", "student.safetensors", size=(128, 64))
    done = exported(run, "safetensors", "student.safetensors", size=(160, 192))
    assert json.loads(done.metadata["input_shape"]) == [3, 160, 192]


@pytest.mark.slow
def test_without_the_data_the_size_is_asked_for(run: Path) -> None:
    gone = [
        *on_scenes(run.parent),
        "dataset.test.dataset.kwargs.meta_file=gone.json",
        f"saver.save_dir={run}",
    ]
    parsed = read(str(SAMPLES / "scenes_student.yaml"), gone)
    options = RunOptions(places=parsed.places)
    with pytest.raises(UsageError, match="input size"):
        export(parsed, options, "safetensors", Path("student.safetensors"))
    done = export(parsed, options, "safetensors", Path("student.safetensors"), size=(96, 96))
    assert not done.real and done.proof.boxes


def test_a_detector_of_torchvision_is_weights_only() -> None:
    name = "ssdlite320_mobilenet_v3_large"
    net = build_network(
        [ModuleSpec(name="model", type=f"torchvision.{name}", kwargs={"num_classes": 4})], path=("net",)
    )
    assert not Detector(net, 0).followed and Detector(build(faster_rcnn()), 0).followed


def test_a_graph_of_unknown_modules_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detector, "followed", False)
    with pytest.raises(RunError) as caught:
        exported(run, "torch-export", "student.pt2")
    assert [found.code for found in caught.value.diagnostics] == ["KD763"]
    assert not Path("student.pt2").exists()


SIZES = torch.tensor([[96.0, 96.0], [80.0, 96.0]])


def shifted(answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (answer[0] + 0.05, *answer[1:])


def surer(answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (answer[0], answer[1] + 0.01, *answer[2:])


def renamed(answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*answer[:2], answer[2] + 1, answer[3])


def fewer(answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value[5:] for value in answer)


def more(answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat([value, value[:20]]) for value in answer)


@pytest.mark.parametrize(
    ("change", "said"),
    [(shifted, "boxes differ"), (surer, "scores differ"), (renamed, "other boxes"), (fewer, "other boxes"),
     (more, "other boxes")],
)  # fmt: skip
def test_other_answers_are_no_proof(change: Any, said: str) -> None:
    student = Detector(build(faster_rcnn()).eval(), 0)
    inputs = (batch()["image"], SIZES)
    assert prove(student, student.eager, inputs, 1e-4).difference == 0.0
    with pytest.raises(RunError, match=said) as caught:
        prove(student, lambda *given: change(student.eager(*given)), inputs, 1e-4)
    assert caught.value.diagnostics[0].code == "KD761"


def test_nothing_found_proves_nothing() -> None:
    modules = faster_rcnn()
    modules[6].kwargs["cfg"]["bbox_predictor"]["kwargs"]["bbox_score_thresh"] = 1.0
    student = Detector(build(modules).eval(), 0)
    with pytest.raises(RunError, match="no box"):
        prove(student, student.eager, (batch()["image"], SIZES), 1e-4)


def test_the_size_is_for_detectors() -> None:
    parsed = read(str(SAMPLES / "digits_student.yaml"), [])
    with pytest.raises(UsageError, match="detectors"):
        export(parsed, RunOptions(), "safetensors", size=(8, 8))


@pytest.mark.parametrize(
    ("boxes", "alone", "passes"),
    [(30, 1, True), (30, 2, False), (5, 1, False), (100, 2, True), (100, 3, False)],
)
def test_how_many_boxes_may_lack_a_counterpart(boxes: int, alone: int, passes: bool) -> None:
    with nullcontext() if passes else pytest.raises(RunError, match="no counterpart"):
        refuse_strangers(boxes, alone)


def test_classes_of_category_ids_are_called_by_the_ids() -> None:
    kwargs = {"num_classes": 6, "weights_backbone": None}
    spec = ModuleSpec(name="model", type="torchvision.fasterrcnn_mobilenet_v3_large_320_fpn", kwargs=kwargs)
    student = Detector(build_network([spec], path=("net",)), 0)
    names = ("shirt", "bag", "boot")
    gaps = DataFacts(num_classes=3, class_names=names, annotations={"categories": (1, 3, 5)})
    assert student.class_names(gaps) == ("shirt", "N/A", "bag", "N/A", "boot")
    without = DataFacts(num_classes=3, class_names=names, annotations={"categories": (1, 2, 3)})
    assert student.class_names(without) == names


@pytest.mark.slow
def test_a_pt2_file_is_read_where_no_detector_was_built(tmp_path: Path) -> None:
    """Reading brings the operation that a detector's program calls, in a process that knows of none."""
    code = (
        "import sys, torch; from pathlib import Path; from kdcli.exports.torch_export import TorchExport; "
        "program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),)); "
        "torch.export.save(program, sys.argv[1]); before = hasattr(torch.ops.kdcli, 'suppress'); "
        "TorchExport().read(Path(sys.argv[1]), None); print(before, hasattr(torch.ops.kdcli, 'suppress'))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "a.pt2")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False True\n"
