"""Classes have names: the test side is numbered by the training side, and labels fit the student's logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data.classes import numbered_like
from kdcli.data.sources import OpenedData
from kdcli.errors import SpecError
from kdcli.spec.schema import DataPart
from tests.data.conftest import open_side
from tests.training.conftest import Kdcli

GREY = {"a": 20, "b": 120, "c": 240}
"""Classes that any network can tell apart."""

SPEC = """\
runtime: {random_seed: 3}
net: {name: model, type: cifar_resnet8, kwargs: {num_classes: 3, in_channels: 1, widths: [4, 4, 4, 8]}}
dataset:
  train:
    dataset: {type: image_folder, kwargs: {root: train, color_mode: GRAY, transformer: &t [{type: to_tensor}]}}
  test:
    dataset: {type: image_folder, kwargs: {root: test, color_mode: GRAY, transformer: *t}}
  batch_sampler: {type: base, kwargs: {batch_size: 8}}
trainer:
  max_epoch: 12
  test_freq: 12
  optimizer: {type: AdamW, kwargs: {lr: 0.02}}
"""


def lay(root: Path, classes: dict[str, int], images: int) -> None:
    """A folder a class, its images of nearly one grey."""
    random = np.random.default_rng(len(classes))
    for name, grey in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = np.clip(grey + random.normal(0, 6, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


@pytest.fixture
def spec(folder: Path) -> Iterator[str]:
    lay(folder / "train", GREY, 16)
    Path("cfg.yaml").write_text(SPEC)
    yield "cfg.yaml"


def scores(out: str, network: str = "student last") -> float:
    line = next(line for line in out.splitlines() if line.startswith(network))
    return float(line.removeprefix(network).split()[0])


@pytest.mark.slow
def test_a_class_that_the_test_data_lacks_moves_no_number(kdcli: Kdcli, spec: str) -> None:
    """Each side numbered its own folders: a perfect student showed 50.00."""
    lay(Path("test"), {"a": GREY["a"], "c": GREY["c"]}, 6)
    code, out, err = kdcli("train", spec, "--no-report")
    assert code == 0 and "no images of the class `b`" in out + err
    assert scores(out + err) == 100.0
    assert json.loads(Path("runs/cfg/data.json").read_text())["train"]["classes"] == ["a", "b", "c"]
    # What a run was trained with holds when it is opened again, whatever became of its training data.
    shutil.rmtree("train/a")
    code, out, err = kdcli("eval", "runs/cfg")
    assert code == 0 and scores(out, "top1") == 100.0, out + err


def test_a_class_that_is_not_trained_on_is_told(kdcli: Kdcli, spec: str) -> None:
    lay(Path("test"), {"a": 20, "bb": 120}, 2)
    for command in (["validate", "--files", spec], ["train", spec]):
        code, out, err = kdcli(*command)
        assert (
            code == 1 and "KD541: class `bb` of the test data is no class of the training data" in out + err
        )
        assert "known names: a, b, c; rename it" in out + err


def test_a_root_that_is_a_folder_too_high_is_one_error(kdcli: Kdcli, spec: str) -> None:
    lay(Path("test"), GREY, 2)
    for command in (["validate", "--files", spec], ["train", spec]):
        code, out, err = kdcli(*command, "dataset.test.dataset.kwargs.root=.")
        assert code == 1 and (out + err).count("KD541: ") == 1 and "have no class in common: " in out + err, (
            out + err
        )
        assert "is the `root` of one a folder too high or too low?" in out + err


def test_many_classes_that_are_not_trained_on_are_one_error(kdcli: Kdcli, spec: str) -> None:
    lay(Path("test"), {"a": 20, **{f"new{i}": 100 + i for i in range(7)}}, 2)
    code, out, err = kdcli("validate", "--files", spec)
    assert code == 1 and (out + err).count("KD541: ") == 1, out + err
    assert "7 classes of the test data are no classes of the training data: `new0`, `new1`," in out + err


@pytest.mark.parametrize("classes", [2, 4])
def test_labels_fit_the_logits_in_both_commands(kdcli: Kdcli, spec: str, classes: int) -> None:
    lay(Path("test"), GREY, 2)
    change = f"net.model.kwargs.num_classes={classes}"
    for command in (
        ["validate", "--files", spec, change],
        ["train", spec, change, "trainer.max_epoch=1", "--no-report"],
    ):
        code, out, err = kdcli(*command)
        assert code == (1 if classes == 2 else 0), out + err
        assert f"the student gives {classes} logits, and the training data has 3 classes" in " ".join(
            (out + err).split()
        )


LISTED = """{type: cls, kwargs: {meta_file: %s, transformer: [{type: to_tensor}],
  image_reader: {type: fs_pillow, kwargs: {image_dir: train, color_mode: GRAY}}}}"""


@pytest.mark.parametrize("side", ["training", "test"])
def test_lists_whose_labels_start_at_1(kdcli: Kdcli, spec: str, side: str) -> None:
    Path("from_0.txt").write_text("a/0.png 0\nb/0.png 1\nc/0.png 2\n" * 4)
    Path("from_1.txt").write_text("a/0.png 1\nb/0.png 2\nc/0.png 3\n" * 4)
    train, test = ("from_1.txt", "from_0.txt") if side == "training" else ("from_0.txt", "from_1.txt")
    changes = [f"dataset.train.dataset={LISTED % train}", f"dataset.test.dataset={LISTED % test}"]
    for command in (["validate", "--files", spec], ["train", spec]):
        code, out, err = kdcli(*command, *changes)
        assert code == 1, out + err
        assert f"KD419: the student gives 3 logits, and the {side} data has 4 classes" in out + err


@pytest.mark.parametrize(
    "kind",
    [
        "{type: fake, kwargs: {num_classes: 5, num_samples: 16, shape: [1, 8, 8]}}",
        "{type: digits, kwargs: {}}",
        "{type: torchvision.FakeData, kwargs: {size: 16, num_classes: 5, image_size: [3, 8, 8]}}",
    ],
)
def test_every_kind_of_data_is_held_against_the_head(kdcli: Kdcli, spec: str, kind: str) -> None:
    kind = kind.replace("kwargs: {", "kwargs: {transformer: [{type: to_tensor}], ").replace(", }", "}")
    changes = [f"dataset.train.dataset={kind}", f"dataset.test.dataset={kind}"]
    if "FakeData" in kind:
        changes.append("net.model.kwargs.in_channels=3")
    for command in (["validate", "--files", spec], ["train", spec]):
        code, out, err = kdcli(*command, *changes)
        assert code == 1 and "KD419: the student gives 3 logits" in out + err, out + err


def side(root: Path, *, train: bool) -> OpenedData:
    part = DataPart.model_validate(
        {
            "dataset": {"type": "image_folder", "kwargs": {"root": str(root), "color_mode": "GRAY"}},
            "batch_sampler": {"kwargs": {"batch_size": 4}},
        }
    )
    return open_side(part, train=train, path=("dataset", "train" if train else "test"))


def test_names_are_equal_after_unicode_nfc(folder: Path) -> None:
    lay(folder / "train", {"caf\u00e9": 20, "zebra": 90}, 1)
    lay(folder / "test", {"cafe\u0301": 20, "zebra": 90}, 1)
    train, test = side(folder / "train", train=True), side(folder / "test", train=False)
    numbered = numbered_like(test, train.facts.class_names)
    assert numbered.facts.class_names == ("caf\u00e9", "zebra") and numbered.notices == ()


def test_numbers_follow_the_names(folder: Path) -> None:
    lay(folder / "test", {"b": 20, "d": 90}, 2)
    numbered = numbered_like(side(folder / "test", train=False), ("d", "c", "b"))
    assert torch.equal(torch.as_tensor(numbered.source.labels), torch.tensor([2, 2, 0, 0]))  # type: ignore[union-attr]
    assert numbered.notices == ("the test data has no images of the class `c`",)
    with pytest.raises(SpecError, match="two classes of the training data are called `b`"):
        numbered_like(side(folder / "test", train=False), ("b", "b", "d"))


def test_an_empty_class_folder_of_the_test_data_is_a_class_without_images(folder: Path) -> None:
    lay(folder / "train", GREY, 1)
    lay(folder / "test", GREY, 1)
    (folder / "test/b/0.png").unlink()
    train, test = side(folder / "train", train=True), side(folder / "test", train=False)
    assert "the class `b`" in numbered_like(test, train.facts.class_names).notices[0]
    (folder / "train/b/0.png").unlink()
    with pytest.raises(SpecError, match="KD506"):
        side(folder / "train", train=True)


NANS = '''
import torch
from torch import nn


class Sometimes(nn.Module):
    """Sure of the right class, and without an answer where an image is very dark."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 3)

    def forward(self, image):
        grey = image.mean((1, 2, 3), keepdim=False)[:, None] * 255
        logits = self.fc(grey) * 1e-6 - (grey - torch.tensor([20.0, 120.0, 240.0])).abs() / 50
        return torch.where((grey < 5) & torch.tensor(not self.training), torch.nan, logits)
'''


def test_logits_that_are_nan_are_wrong_and_told(
    kdcli: Kdcli, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ended in `kdcli's own fault`."""
    lay(Path("test"), GREY, 3)
    Image.new("L", (8, 8), 0).save("test/a/9.png")
    Path("sometimes.py").write_text(NANS)
    monkeypatch.syspath_prepend(".")
    given = [spec, "net={name: model, type: 'sometimes:Sometimes'}", "--plugin", "sometimes"]
    code, out, err = kdcli(
        "train",
        *given,
        "trainer.max_epoch=1",
        "trainer.test_freq=1",
        "trainer.optimizer={type: SGD, kwargs: {lr: 0.0}}",
    )
    said = " ".join((out + err).split())
    assert (
        "the student gives logits that are not finite (NaN or infinite) for 1 sample (`test/a/9.png`)" in said
    ), said
    assert scores(out + err) == 90.0, out + err
    code, out, err = kdcli("eval", *given)
    assert code == 0 and "for 1 sample (`test/a/9.png`)" in " ".join((out + err).split())
    assert scores(out, "top1") == 90.0


def test_a_head_that_is_too_wide_is_not_exported(kdcli: Kdcli, spec: str) -> None:
    """The file had more logits than names."""
    lay(Path("test"), GREY, 2)
    wide = [spec, "net.model.kwargs.num_classes=5", "trainer.max_epoch=1"]
    code, _, err = kdcli("train", *wide, "--no-report")
    assert code == 0 and "gives 5 logits, and the training data has 3 classes" in err
    code, out, err = kdcli("export", "runs/cfg", "--format", "safetensors")
    assert code == 1 and "KD764: the student gives 5 logits, and its data has 3 classes" in out + err
    assert not list(Path("runs/cfg").glob("cfg*"))


@pytest.mark.slow
def test_weights_of_another_run_have_the_numbers_that_they_state(kdcli: Kdcli, spec: str) -> None:
    lay(Path("test"), GREY, 4)
    assert kdcli("train", spec, "--no-report")[0] == 0
    Path("runs/cfg/student.safetensors").rename("mine.safetensors")
    shutil.rmtree("runs")
    # A folder more, which comes first.
    for side in ("train", "test"):
        lay(Path(side), {"0": 1}, 1)
    Path("test/0/0.png").unlink()
    code, out, err = kdcli("eval", spec, "--weights", "mine.safetensors")
    assert code == 1 and "KD541: class `0` of the test data" in out + err, out + err
    for side in ("train", "test"):
        shutil.rmtree(f"{side}/0")
    lay(Path("train"), {"0": 1}, 1)  # now only the training data has it, which would shift every number
    code, out, err = kdcli("eval", spec, "--weights", "mine.safetensors")
    assert code == 0 and scores(out, "top1") == 100.0, out + err


@pytest.mark.slow
def test_a_student_is_measured_by_the_classes_that_its_own_file_states(kdcli: Kdcli, spec: str) -> None:
    """A run resumed on renamed classes had its best student from before measured in the new order: 0.00."""
    lay(Path("test"), GREY, 4)
    assert kdcli("train", spec, "--no-report")[0] == 0
    for side in ("train", "test"):
        Path(side, "a").rename(Path(side, "za"))
    longer = [
        "trainer.max_epoch=13",
        "--resume",
        "--allow-changed",
        "data",
        "--allow-changed",
        "trainer.max_epoch",
    ]
    code, out, err = kdcli("train", spec, "--no-report", *longer)
    assert code == 0 and "the next evaluation counts as the best so far" in " ".join((out + err).split())
    code, out, err = kdcli("eval", "runs/cfg")
    assert code == 0 and "student_best" in out + err
    # One epoch of the permuted labels is what this student has seen last: its own figures are told.
    recorded = json.loads(Path("runs/cfg/finished.json").read_text())["best"]["top1"]
    assert scores(out, "top1") == pytest.approx(recorded, abs=0.01)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            "a/0.png a\nb/0.png b\nc/0.png c\n",
            "c/0.png 0\n",
            "KD541: the training data gives its classes by name",
        ),
        (
            "a/0.png 0\nb/0.png 1\nc/0.png 2\n",
            "c/0.png a\n",
            "KD541: the test data gives its classes by name",
        ),
    ],
)
def test_names_whose_numbers_nothing_states_are_not_held_against_numbers(
    kdcli: Kdcli, spec: str, train: str, test: str, said: str
) -> None:
    """The alphabetical order of the names was taken for the other side's numbers: 33.33 in silence."""
    Path("train.txt").write_text(train * 4)
    Path("test.txt").write_text(test)
    changes = [f"dataset.{side}.dataset={LISTED % f'{side}.txt'}" for side in ("train", "test")]
    for command in (["validate", "--files", spec], ["train", spec]):
        code, out, err = kdcli(*command, *changes)
        assert code == 1 and said in out + err and "classes: [...]" in out + err, out + err
    # With the numbers stated they are what they say.
    named = "train" if "training" in said else "test"
    listed = f"dataset.{named}.dataset.kwargs.classes=[a, b, c]"
    code, out, err = kdcli("validate", "--files", spec, *changes, listed)
    assert code == 0, out + err


@pytest.mark.slow
def test_folders_against_numbers_are_told(kdcli: Kdcli, spec: str) -> None:
    Path("test").mkdir()
    Path("test.txt").write_text("a/0.png 0\nb/0.png 1\nc/0.png 2\n")
    change = f"dataset.test.dataset={LISTED % 'test.txt'}"
    for command in (["validate", "--files", spec], ["train", spec, "--no-report"], ["eval", spec]):
        code, out, err = kdcli(*command, change)
        said = " ".join((out + err).split())
        assert (
            code == 0 and "numbers and no class names" in said and "0 is `a`, 1 is `b`, 2 is `c`" in said
        ), said
