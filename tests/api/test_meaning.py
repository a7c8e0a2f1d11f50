"""What objects mean beside a spec: whose weights count, what of `net` stays, which labels and names are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import kdcli
from kdcli.data.classification.in_memory import source_of
from tests.api.objects import images, made, spec

QUIET: dict[str, Any] = {"quiet": True, "report": False, "check": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def given(**more: Any) -> dict[str, Any]:
    return {"student": made(), "teachers": made(8), "data": (images(), images(16)), **more}


def warned(wanted: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    return [(one.code, one.message) for one in kdcli.validate(wanted, **given(**more))]


@pytest.mark.slow
# weights


def test_a_network_that_is_given_keeps_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(made(seed=5).state_dict(), "student.safetensors")
    save_file(made(8, seed=5).state_dict(), "teacher.safetensors")
    wanted = spec(max_epoch=1, optimizer={"type": "SGD", "kwargs": {"lr": 1e-4}})
    wanted["saver"] = {"save_dir": "run", "pretrain_model": "student.safetensors"}
    wanted["mimic"]["teacher0"]["teacher_weight"] = "teacher.safetensors"
    told = warned(wanted)
    assert [code for code, _ in told] == ["KD873", "KD873"]
    assert "`saver.pretrain_model` changes nothing" in told[0][1]
    assert "teacher0 starts from the weights that it was given with" in told[1][1]
    found = kdcli.train(wanted, **given(), report=False)
    assert torch.allclose(found.student.conv.weight, made().conv.weight, atol=0.02)  # type: ignore[union-attr, arg-type]
    assert "`mimic.teacher0.teacher_weight` changes nothing" in capsys.readouterr().err
    alone = kdcli.train(spec(max_epoch=1), **given(), **QUIET)
    assert alone.teachers == found.teachers


# the rest of `net`


@pytest.mark.slow
def entries(*more: dict[str, Any]) -> dict[str, Any]:
    return {**spec(max_epoch=1), "net": [{"name": "model", "type": "mylab:Net"}, *more]}


@pytest.mark.slow
def test_frozen_layers_stay_frozen() -> None:
    frozen = entries({"name": "self", "type": "self", "kwargs": {"freeze_patterns": ["model.conv"]}})
    found = kdcli.train(frozen, **given(), **QUIET)
    before, after = made(), found.student
    assert torch.equal(before.conv.weight, after.conv.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(before.fc.weight, after.fc.weight)  # type: ignore[union-attr, arg-type]


def test_the_task_loss_stays_that_of_the_spec() -> None:
    smooth = {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.9, "num_classes": 4}}
    wanted = entries({"name": "post", "type": "base_cls_postprocess", "kwargs": {"cls_loss": smooth}})
    student = made()
    student.drop.p = 0.0
    data = DataLoader(images(8), batch_size=8)
    kdcli.train(wanted, **given(student=student, data=(data, images(16))), **QUIET)
    first = next(
        line for line in Path("runs/spec/metrics.jsonl").read_text().splitlines() if '"step"' in line
    )
    pixels, labels = images(8).tensors
    student.train()
    with torch.no_grad():
        expected = F.cross_entropy(student(pixels), labels, label_smoothing=0.9).item()
        plain = F.cross_entropy(made().eval()(pixels), labels).item()
    recorded = json.loads(first)["losses"]["task.loss"]
    assert recorded == pytest.approx(expected, abs=1e-4) and recorded != pytest.approx(plain, abs=1e-4)


def test_names_of_a_tuple_s_entries_stay() -> None:
    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made()

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return image.mean((2, 3)), self.net(image)

    wanted = {**spec(), "net": {"name": "model", "outputs": ["features", "logits"]}}
    assert warned(wanted, student=Pair()) == []
    assert warned(spec(), student=Pair())[0][0] == "KD411"


# labels


class Listed(Dataset[Any]):
    """Items whose label is another one than the list says."""

    def __init__(self, targets: Any, shift: int = 1) -> None:
        self.targets, self.shift, self.images = targets, shift, images()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return image, (int(label) + self.shift) % 4


RIGHT = [index % 4 for index in range(32)]


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (RIGHT, "`targets` has other labels than its items give"),
        (RIGHT[:5], "`targets` has 5 labels for 32 items"),
        ([(label + 1) % 4 for label in RIGHT], None),
        (torch.tensor([(label + 1) % 4 for label in RIGHT]), None),
    ],
)
def test_labels_are_what_the_items_say(targets: Any, told: str | None) -> None:
    source: Any = source_of(Listed(targets), "train")
    assert source.labels.tolist() == [(label + 1) % 4 for label in RIGHT]
    assert (told is None and not source.notices) or told in source.notices[0]


def test_a_target_transform_is_applied_to_the_list() -> None:
    class Coarse(Listed):
        target_transform = staticmethod(lambda label: label // 2)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.images[index][0], index % 4 // 2

    source: Any = source_of(Coarse(RIGHT), "train")
    assert source.labels.tolist() == [label // 2 for label in RIGHT] and not source.notices
    part: Any = source_of(Subset(Coarse(RIGHT), [3, 0, 2]), "train")
    assert part.labels.tolist() == [1, 0, 1] and not part.notices


# names of classes


class Named(Dataset[Any]):
    """The images with names of their classes; order: of the names among a, b, c, d."""

    def __init__(self, order: str) -> None:
        self.classes, self.images = list(order), images()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index][0], self.classes.index("abcd"[index % 4]) if "abcd"[
            index % 4
        ] in self.classes else 0


@pytest.mark.parametrize(("own", "labels"), [("abcd", RIGHT[:4]), ("dcba", RIGHT[:4]), ("wxyz", None)])
def test_a_dataset_s_own_names_are_matched_with_those_given(own: str, labels: list[int] | None) -> None:
    data: Any = source_of(Named(own), "train", list("abcd"))
    assert data.class_names == tuple("abcd") and data.num_classes == 4
    assert labels is None or data.labels[:4].tolist() == labels


@pytest.mark.parametrize(
    ("own", "names", "said"),
    [
        ("abce", "abcd", "its class `e` is none of the names"),
        ("wxyz", "abc", "it has 4 classes, and 3 names"),
    ],
)
def test_names_that_do_not_fit_a_dataset_are_refused(own: str, names: str, said: str) -> None:
    with pytest.raises(kdcli.SpecError, match=f"KD874: .*{said}"):
        source_of(Named(own), "train", list(names))


def test_ready_batches_of_other_names_are_refused() -> None:
    with pytest.raises(kdcli.SpecError, match=r"(?s)KD874: .*its Dataset has the classes d, c, b, a"):
        source_of(DataLoader(Named("dcba"), batch_size=8), "test", list("abcd"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_is_not_measured_on_batches_in_another_order() -> None:
    found = kdcli.train(spec(max_epoch=1), **given(data=(Named("abcd"), Named("abcd"))), **QUIET)
    objects = {"student": made(), "teachers": made(8)}
    items = kdcli.evaluate(found, **objects, data={"test": Named("dcba")}, quiet=True)
    assert items.metrics == found.metrics  # matched by name
    with pytest.raises(kdcli.SpecError, match=r"KD541: .* others than the student has learnt"):
        kdcli.evaluate(found, **objects, data={"test": DataLoader(Named("dcba"), batch_size=8)}, quiet=True)


# ready batches


def shuffled() -> DataLoader[Any]:
    return DataLoader(images(), batch_size=8, shuffle=True)


def crd(wanted: dict[str, Any]) -> None:
    wanted["mimic"]["cfgs"] = {"loss": {"type": "crd", "kwargs": {"negatives": "all"}}}
    for side in ("student", "teacher0"):
        wanted["mimic"][side]["mimic_name"] = ["model.bn"]


def cached(wanted: dict[str, Any]) -> None:
    wanted["mimic"]["teacher0"]["cache"] = {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (crd, "KD544", "this data comes in batches that don't say which ones"),
        (cached, "KD550", "`teacher0` can't be cached: the data comes in batches that are made already"),
    ],
)
def test_what_knows_the_samples_again_needs_a_dataset(
    change: Callable[[dict[str, Any]], None], code: str, said: str
) -> None:
    wanted = spec()
    change(wanted)
    told = warned(wanted, data=(shuffled(), shuffled()))
    assert (code, True) in [(one, said in message) for one, message in told]
    with pytest.raises(kdcli.KdError, match=code):
        kdcli.train(wanted, **given(data=(shuffled(), shuffled())), **QUIET)
    assert all(one != code for one, _ in warned(wanted))


def test_batches_in_one_order_say_which_samples_they_hold() -> None:
    wanted = spec()
    crd(wanted)
    batches = DataLoader(images(), batch_size=8)
    assert all(code != "KD544" for code, _ in warned(wanted, data=(batches, batches)))


def test_labels_under_another_name_are_not_left_out() -> None:
    class Dicts(Dataset[Any]):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> dict[str, Any]:
            image, label = images()[index]
            return {"image": image, "label": label}

    with pytest.raises(kdcli.KdError, match="KD542: a batch has `label`"):
        kdcli.validate(spec(), **given(data=(DataLoader(Dicts(), batch_size=8), images(16))))


def test_a_bright_image_behind_a_black_one_is_seen() -> None:
    pixels, labels = images().tensors
    pixels = pixels.abs() * 200
    pixels[0] = 0
    bright = TensorDataset(pixels, labels)
    assert [code for code, _ in warned(spec(), data=(bright, images(16)))] == ["KD877"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_of_other_whole_types_are_read(kind: torch.dtype) -> None:
    pixels, labels = images().tensors
    batches = DataLoader(TensorDataset(pixels, labels.to(kind)), batch_size=8)
    found = kdcli.train(spec(max_epoch=1), **given(data=(batches, images(16))), **QUIET)
    assert found.step == 4


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        ({"color_mode": "BGR"}, True),
        ({"color_mode": "GRAY"}, False),
        ({"value_range": [0, 4095]}, True),
        ({}, False),
    ],
)
def test_how_files_would_be_read_is_not_dropped_without_a_word(reader: dict[str, Any], told: bool) -> None:
    greys = [(torch.full((1, 8, 8), 40 * (i % 4) + i, dtype=torch.uint8), i % 4) for i in range(16)]
    part = {"type": "custom_cls", "kwargs": {"image_reader": {"type": "fs_pillow", "kwargs": reader}}}
    part["kwargs"]["transformer"] = [{"type": "to_tensor"}]  # type: ignore[index]
    wanted = spec()
    wanted["dataset"] = {**wanted["dataset"], "train": {"dataset": part}, "test": {"dataset": part}}
    arguments = given(data=(greys, greys))
    if not told:
        assert "KD873" not in [code for code, _ in warned(wanted, data=(greys, greys))]
        return
    with pytest.raises(
        kdcli.SpecError, match=r"KD873: `\w+` would change nothing of the training images in memory"
    ):
        kdcli.validate(wanted, **arguments)


@pytest.mark.slow
def test_a_student_that_kdcli_has_trained_knows_its_classes_as_a_teacher() -> None:
    large = kdcli.train(
        spec(max_epoch=1), **given(student=made(8), data=(Named("abcd"), Named("abcd"))), **QUIET
    )
    teacher = large.student
    wanted = kdcli.Spec.from_dict(spec(max_epoch=1), name="small")
    found = kdcli.train(wanted, **given(teachers=teacher, data=(Named("dcba"), Named("dcba"))), **QUIET)
    assert found.teachers["teacher0"] == pytest.approx(large.metrics, abs=1e-4)
    del teacher.kdcli_class_names
    by_number = kdcli.Spec.from_dict(spec(max_epoch=1), name="by_number")
    other = kdcli.train(by_number, **given(teachers=teacher, data=(Named("dcba"), Named("dcba"))), **QUIET)
    assert other.teachers["teacher0"] != pytest.approx(large.metrics, abs=1e-3)


def test_several_labels_of_an_item_are_those_of_several_heads() -> None:
    pairs = [(images()[i][0], torch.tensor([i % 4, i % 3])) for i in range(12)]
    source: Any = source_of(pairs, "train")
    assert source.labels.tolist() == [[i % 4, i % 3] for i in range(12)] and source.num_classes == 4


class Torn(Listed):
    """Has an item that can't be read, and a list that is no numbers."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 31:
            raise OSError("torn")
        return super().__getitem__(index)


def test_an_item_that_can_not_be_read_disproves_no_list() -> None:
    source: Any = source_of(Torn([(label + 1) % 4 for label in RIGHT]), "train")
    assert len(source.labels) == 32 and not source.notices


def test_names_in_the_place_of_labels_are_not_read() -> None:
    source: Any = source_of(Listed(list("abcd") * 8), "train")
    assert source.labels[:2].tolist() == [1, 2] and "`targets` has no whole numbers" in source.notices[0]


@pytest.mark.parametrize("task_loss", [True, False])
def test_a_loss_of_the_network_s_own_is_one_number(task_loss: bool) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made()

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(image)
            return {"logits": logits, "own_loss": logits.square().mean(1)}

    wanted = spec()
    wanted["mimic"]["task_loss"] = task_loss
    told = [code for code, _ in warned(wanted, student=Own())]
    assert told == (["KD439"] if task_loss else [])
    if task_loss:
        with pytest.raises(kdcli.RunError, match="KD439: the student's own loss `own_loss` is no scalar"):
            kdcli.train(wanted, **given(student=Own()), **QUIET)


def test_test_images_of_other_channels_are_told_before_the_training() -> None:
    coloured = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 4)
    (told,) = warned(spec(), data=(images(), coloured))
    assert told[0] == "KD418" and "trained on images of 1 channels, and the test images have 3" in told[1]
