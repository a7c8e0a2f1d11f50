"""`kdcli predict`: what is answered agrees with `eval`; files, folders, patterns; what can't be answered says why."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kdcli.commands.options import PredictOptions
from kdcli.commands.predict import image_files, predict
from kdcli.errors import RunError, UsageError
from kdcli.exports.export import export
from kdcli.exports.predict import Prediction, Predictor, predictor_of_file, predictor_of_run
from kdcli.spec.parse import read
from kdcli.training.run_folder import reopen
from tests.scenes import SAMPLES, on_scenes, write_scenes
from tests.training.runs import spec_of, train_all
from tests.training.test_without_labels import FEATURES_ALONE

CLASSES = ("bright", "dark", "striped")

SPEC = """
runtime: {runner: {type: base}, random_seed: 1}
net:
  name: model
  type: cifar_resnet8
  kwargs: {num_classes: 3, in_channels: 3, widths: [4, 4, 8, 8]}
dataset:
  train: &side
    dataset:
      type: image_folder
      kwargs:
        root: FOLDER/train
        transformer:
        - {type: torch_resize, kwargs: {size: 20}}
        - {type: torch_center_crop, kwargs: {size: 16}}
        - {type: to_tensor}
        - {type: normalize, kwargs: {mean: [0.5, 0.4, 0.45], std: [0.2, 0.25, 0.3]}}
  test:
    dataset:
      type: image_folder
      kwargs:
        root: FOLDER/test
        transformer:
        - {type: torch_resize, kwargs: {size: 20}}
        - {type: torch_center_crop, kwargs: {size: 16}}
        - {type: to_tensor}
        - {type: normalize, kwargs: {mean: [0.5, 0.4, 0.45], std: [0.2, 0.25, 0.3]}}
  batch_sampler: {type: base, kwargs: {batch_size: 8}}
trainer: {max_epoch: 2, test_freq: 1, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
saver: {save_dir: FOLDER/run}
"""


def write_images(root: Path) -> None:
    """Images of unlike, non-square sizes; the classes overlap, so that some are answered wrongly."""
    draws = np.random.default_rng(0)
    for side, count in (("train", 12), ("test", 9)):
        for number, name in enumerate(CLASSES):
            folder = root / side / name
            folder.mkdir(parents=True)
            for place in range(count):
                height, width = (int(length) for length in draws.integers(18, 60, 2))
                pixels = draws.integers(0, 160, (height, width, 3)) + (50, 0, 20)[number]
                if number == 2:
                    pixels[::4] = 30
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{place}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on a folder of non-square images, its folder `run` beside them."""
    folder = tmp_path_factory.mktemp("predict")
    write_images(folder)
    train_all(spec_of(SPEC.replace("FOLDER", str(folder))))
    yield folder


def of_run(folder: Path, weights: Path | None = None) -> Predictor:
    opened = reopen(folder)
    return predictor_of_run(opened.parsed, opened.options, weights, None)


def accuracy(answered: list[Prediction]) -> float:
    right = [one.classes is not None and one.classes[0][1] == Path(one.image).parent.name for one in answered]
    return 100.0 * sum(right) / len(right)


def measured(root: Path) -> float:
    """The run's own best top-1 on the same images, as `eval` prints it."""
    return float(json.loads((root / "run/finished.json").read_text())["best"]["top1"])


def exported(root: Path, format: str, output: Path) -> Path:
    opened = reopen(root / "run")
    return export(opened.parsed, opened.options, format, output).path


@pytest.mark.slow
def test_a_run_answers_its_test_images_as_eval_measures_them(root: Path) -> None:
    files = image_files([str(root / "test")])
    assert len(files) == 27
    answered = list(of_run(root / "run").predictions(files))
    assert 0.0 < measured(root) < 100.0 and accuracy(answered) == pytest.approx(measured(root), abs=1e-9)
    for one in answered:
        assert one.classes is not None and sum(share for _, _, share in one.classes) == pytest.approx(1.0)
        assert [share for _, _, share in one.classes] == sorted((s for _, _, s in one.classes), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "format",
    [
        "safetensors",
        pytest.param("onnx", marks=pytest.mark.slow),
        pytest.param("torch-export", marks=pytest.mark.slow),
    ],
)
def test_a_file_alone_answers_as_its_run(root: Path, format: str, tmp_path: Path) -> None:
    suffix = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}[format]
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    path = exported(root, format, tmp_path / f"alone{suffix}")
    files = image_files([str(root / "test")])
    answered = list(predictor_of_file(path).predictions(files))
    assert accuracy(answered) == pytest.approx(measured(root), abs=1e-9)
    for mine, other in zip(answered, of_run(root / "run").predictions(files), strict=True):
        assert mine.classes is not None and other.classes is not None
        assert mine.classes[0][2] == pytest.approx(other.classes[0][2], abs=1e-5)


@pytest.mark.slow
def test_the_runs_own_student_file_is_one_too(root: Path) -> None:
    files = image_files([str(root / "test")])
    answered = list(predictor_of_file(root / "run/student_best.safetensors").predictions(files))
    assert answered == list(of_run(root / "run").predictions(files))


@pytest.mark.slow
def test_the_documented_lines_give_evals_figure(root: Path, tmp_path: Path, capsys: Any) -> None:
    """sample_configs/run_onnx.py: numpy, Pillow and onnxruntime alone, on non-square images."""
    pytest.importorskip("onnxruntime")
    path = exported(root, "onnx", tmp_path / "alone.onnx")
    run_onnx = runpy.run_path(str(SAMPLES / "run_onnx.py"))
    files = [str(file) for file in image_files([str(root / "test")])]
    run_onnx["main"](str(path), files)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    right = sum(Path(file).parent.name == name for file, name in lines)
    assert len(lines) == 27 and 100.0 * right / 27 == pytest.approx(measured(root), abs=1e-9)


@pytest.mark.slow
def test_the_documented_lines_make_the_pixels_that_kdcli_makes(root: Path) -> None:
    pytest.importorskip("onnxruntime")
    run_onnx = runpy.run_path(str(SAMPLES / "run_onnx.py"))
    predictor = of_run(root / "run")
    record = json.loads(predictor.metadata["preprocess"])
    for file in image_files([str(root / "test" / "striped")]):
        mine, _ = predictor.preprocess(predictor.preprocess.pixels(file))
        found = torch.from_numpy(run_onnx["preprocessed"](str(file), record))[0]
        # Two resampling filters round to bytes: seldom by one level of 255, over the smallest std.
        assert (found - mine).abs().max() <= 1.01 / 255 / 0.2
        assert ((found - mine).abs() > 1e-5).float().mean() < 0.05
    with pytest.raises(ValueError, match="by hand"):
        run_onnx["preprocessed"](str(file), {**record, "steps": [{"type": "mine:Blur", "kwargs": {}}]})


def options(spec: Path | str, *images: Path | str, **more: Any) -> PredictOptions:
    return PredictOptions(spec=str(spec), images=tuple(map(str, images)), **more)


@pytest.mark.slow
def test_what_can_not_be_read_is_named_and_the_rest_answered(root: Path, tmp_path: Path, capsys: Any) -> None:
    good, bad = root / "test/dark/0.png", tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(RunError) as caught:
        predict(options(root / "run", tmp_path / "gone.png", good, bad, format="json"))
    assert [found.code for found in caught.value.diagnostics] == ["KD882", "KD882"]
    assert (
        "gone.png" in caught.value.diagnostics[0].message and "exist" in caught.value.diagnostics[0].message
    )
    document = json.loads(capsys.readouterr().out)
    assert [sorted(one) for one in document["images"]] == [
        ["error", "image"],
        ["classes", "image"],
        ["error", "image"],
    ]
    assert document["kind"] == "classes" and len(document["images"][1]["classes"]) == 3


@pytest.mark.slow
def test_top_table_and_pictures(root: Path, tmp_path: Path, capsys: Any) -> None:
    predict(
        options(
            root / "run", root / "test/dark/0.png", root / "test/bright/0.png", top=1, pictures=tmp_path / "p"
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "class", "probability"] and len(lines) == 4
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["0.png", "0_2.png"]
    with Image.open(tmp_path / "p/0.png") as picture:
        assert picture.size[0] > 100


def test_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    for name in ("1.png", "0.png", "notes.txt"):
        (tmp_path / "dark" / name).write_bytes(b"")
    named = [tmp_path / "dark/0.png", tmp_path / "dark/1.png"]
    assert image_files([str(tmp_path / "dark/*.png")]) == image_files([str(tmp_path)]) == named
    (tmp_path / "a[1].png").write_bytes(b"")
    assert image_files([str(tmp_path / "a[1].png")]) == [
        tmp_path / "a[1].png"
    ]  # a name before it is a pattern
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError) as caught:
        image_files([str(tmp_path / "*.jpg"), str(tmp_path / "empty")])
    assert [found.code for found in caught.value.diagnostics] == ["KD883", "KD883"]


@pytest.mark.slow
def test_files_that_do_not_say_enough(root: Path, tmp_path: Path) -> None:
    save_file(load_file(root / "run/student.safetensors"), tmp_path / "bare.safetensors")
    (tmp_path / "half.onnx").write_bytes(b"half")
    torch.save({}, tmp_path / "weights.pth")
    image = root / "test/dark/0.png"
    for name, code, said in (
        ("bare.safetensors", "KD880", "how an image becomes its input, its network and its task"),
        ("half.onnx", "KD881", "half.onnx"),
        ("weights.pth", "KD881", "no file that"),
        ("gone.onnx", "KD881", "no run folder or file"),
    ):
        if name.endswith("half.onnx"):
            pytest.importorskip("onnx")
        with pytest.raises(RunError, match=said) as caught:
            predict(options(tmp_path / name, image))
        assert caught.value.diagnostics[0].code == code, name
    with pytest.raises(UsageError, match="--weights"):
        predict(options(root / "run/student.safetensors", image, weights=tmp_path / "weights.pth"))
    with pytest.raises(UsageError, match="no image"):
        predict(options(root / "run"))


@pytest.mark.slow
def test_a_student_without_a_head_gives_the_pooled_vector(tmp_path: Path, capsys: Any) -> None:
    train_all(spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path / 'run'}", "trainer.max_epoch=1"))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    predict(options(tmp_path / "run", tmp_path / "a.png", format="json"))
    said = capsys.readouterr()
    (answered,) = json.loads(said.out)["images"]
    assert "names no class" in said.err and len(answered["pooled"]) == 4
    with pytest.raises(RunError) as caught:
        predictor_of_file(tmp_path / "run/student.safetensors")
    assert caught.value.diagnostics[0].code == "KD880"


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_a_detectors_boxes_are_those_that_eval_counts(alone: bool, tmp_path: Path) -> None:
    from kdcli.analysis.comparison import compare
    from kdcli.parallel.distributed import Processes
    from kdcli.tasks.saved_outputs import DetectionOutputs

    changes = [*on_scenes(write_scenes(tmp_path)), f"saver.save_dir={tmp_path}/run", "trainer.test_freq=1"]
    train_all(read(str(SAMPLES / "scenes_student.yaml"), changes))
    opened = reopen(tmp_path / "run")
    rows = tmp_path / "rows.json"
    cpu = Processes(device=torch.device("cpu"))
    compare(opened.parsed, opened.options, cpu, None, DetectionOutputs(predictions=rows, pictures=None))
    counted = json.loads(rows.read_text())
    truth = json.loads((tmp_path / "test.json").read_text())
    files = [tmp_path / "test" / image["file_name"] for image in truth["images"]]
    found = (
        predictor_of_file(tmp_path / "run/student_best.safetensors") if alone else of_run(tmp_path / "run")
    )
    names = {one["id"]: one["name"] for one in truth["categories"]}
    for image, prediction in zip(truth["images"], found.predictions(files), strict=True):
        own = [row for row in counted if row["image_id"] == image["id"]]
        assert prediction.boxes is not None and len(prediction.boxes) == len(own) > 0
        for (_, name, score, (x1, y1, x2, y2)), row in zip(prediction.boxes, own, strict=True):
            assert name == names[row["category_id"]] and score == pytest.approx(row["score"], abs=1e-4)
            assert [x1, y1, x2 - x1, y2 - y1] == pytest.approx(row["bbox"], abs=0.02)
