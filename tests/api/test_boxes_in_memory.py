"""Images with boxes that Python has given: read as the `coco` dataset reads the same, and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import kdcli
from kdcli.data.build import build_source
from kdcli.data.detection.in_memory import GivenBoxes
from kdcli.data.draws import Draws
from kdcli.data.preprocess import preprocess_record
from kdcli.spec.in_memory import InMemory, giving
from kdcli.spec.schema import DataPart
from tests.api.objects import images, made, spec

TRANSFORMER = [
    {"type": "flip", "kwargs": {"flip_p": 1.0}},
    {"type": "to_tensor"},
    {"type": "normalize", "kwargs": {"mean": [0.5] * 3, "std": [0.5] * 3}},
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Squares(Dataset[Any]):
    """A dark and a light square each on grey [3, 48, 64], uint8; or floats around 0."""

    classes = ("__background__", "dark", "light")

    def __init__(self, count: int = 4, *, floats: bool = False) -> None:
        self.count, self.floats = count, floats

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image = torch.full((3, 48, 64), 128, dtype=torch.uint8)
        boxes = [[4 + index, 6, 20 + index, 22], [36, 20 + index, 52, 36 + index]]
        for (left, top, right, bottom), value in zip(boxes, (10, 250), strict=True):
            image[:, top:bottom, left:right] = value
        target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([1, 2])}
        return (image.float() / 255 - 0.5 if self.floats else image), target


def tiny(classes: int = 3) -> FasterRCNN:
    """A detector of torchvision's on one map of stride 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
        body.out_channels = 4  # type: ignore[assignment]
        return FasterRCNN(
            body,
            num_classes=classes,
            rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 2, 1),
            rpn_post_nms_top_n_train=20,
            rpn_post_nms_top_n_test=20,
        )


def alone(transformer: Any = None) -> dict[str, Any]:
    """A spec that leaves a detector and its data to Python."""
    part = {} if transformer is None else {"dataset": {"kwargs": {"transformer": transformer}}}
    return {
        "runtime": {"random_seed": 1, "device": "cpu"},
        "dataset": {"train": part, "test": part, "batch_sampler": {"kwargs": {"batch_size": 2}}},
        "trainer": {"max_iter": 2, "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01}}},
    }


def written(folder: Path, data: Squares) -> dict[str, Any]:
    """The same data as files and a COCO file; the dataset of a spec that reads them."""
    listed: dict[str, Any] = {"images": [], "annotations": []}
    listed["categories"] = [{"id": 1, "name": "dark"}, {"id": 2, "name": "light"}]
    for index in range(len(data)):
        image, target = data[index]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
        listed["images"].append({"id": index, "file_name": f"{index}.png", "height": 48, "width": 64})
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            row = {"id": len(listed["annotations"]), "image_id": index, "category_id": label, "iscrowd": 0}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            listed["annotations"].append(row)
    (folder / "boxes.json").write_text(json.dumps(listed))
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(folder), "color_mode": "RGB"}}
    kwargs = {"meta_file": str(folder / "boxes.json"), "image_reader": reader, "transformer": TRANSFORMER}
    return {"type": "coco", "kwargs": kwargs}


def part_of(dataset: dict[str, Any]) -> DataPart:
    """A side of the data, two samples a batch."""
    return DataPart.model_validate(
        {"dataset": dataset, "batch_sampler": {"kwargs": {"batch_size": 2}}, "dataloader": {}}
    )


def batch(dataset: dict[str, Any], given: InMemory | None = None) -> dict[str, Any]:
    """The first two samples of a side as a batch."""
    part = part_of(dataset)
    with giving(given or InMemory()):
        source: Any = build_source(part, train=True, path=("dataset", "train"))
    samples = [source.load(index, Draws(0, 0, np.array([index]))) for index in (0, 1)]
    found: dict[str, Any] = source.collate(samples, np.array([0, 1]))
    return {**found, "facts": source.facts}


def test_boxes_in_memory_are_those_of_the_same_coco_file(tmp_path: Path) -> None:
    data = Squares()
    of_files = batch(written(tmp_path, data))
    given = GivenBoxes(data, "train")
    own = batch({"type": "from_python", "kwargs": {"transformer": TRANSFORMER}}, InMemory(data={True: given}))
    assert torch.equal(own["image"], of_files["image"]) and own["image_info"] == of_files["image_info"]
    assert all(map(torch.equal, own["boxes"], of_files["boxes"]))
    assert own["boxes"][0][0].tolist() == [44, 6, 60, 22, 1]  # 64 - 20, 64 - 4
    assert own["image_ids"] == of_files["image_ids"]
    for key in ("categories", "class_names", "samples", "box_offset"):
        assert own["annotations"][key] == of_files["annotations"][key]
    assert own["facts"].class_names == ("dark", "light") and own["facts"].mean == of_files["facts"].mean


def record(data: Any, transformer: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The preprocessing that a student's file states after a training on these test data."""
    part = part_of({"type": "from_python", "kwargs": {"transformer": transformer}})
    with giving(InMemory(data={} if data is None else {False: data})):
        return preprocess_record(part, aligned=False)


def test_a_file_states_the_preprocessing_that_the_spec_does_and_no_other() -> None:
    boxes = record(GivenBoxes(Squares(), "test"), TRANSFORMER)
    assert boxes is not None and (boxes["alignment"], boxes["box_offset"]) == (1, 1)
    assert [step["type"] for step in boxes["steps"]] == ["flip", "to_tensor", "normalize"]
    assert record(GivenBoxes(Squares(floats=True), "test"), []) is None
    assert record(None, []) is None, "the data are not here, and nothing says how they were made"
    written = record(None, TRANSFORMER[1:])
    assert written is not None and written["std"] == [0.5] * 3


def test_the_boxes_file_goes_with_its_object() -> None:
    given = GivenBoxes(Squares(), "train")
    folder = given.file.parent
    assert given.file.is_file()
    del given
    assert not folder.exists()


def test_a_drawn_view_is_a_function_of_seed_epoch_and_item() -> None:
    class Shifted(Squares):
        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
            image, target = super().__getitem__(index)
            by = int(torch.randint(1, 9, ()))
            return image.roll(by, 2), {**target, "boxes": target["boxes"] + torch.tensor([by, 0, by, 0])}

    given = GivenBoxes(Shifted(), "train")
    source = given.samples(("dataset", "train", "dataset"), True, (), 1, True, None)

    def left(epoch: int, seed: int = 0) -> float:
        sample = source.load(0, Draws(seed, epoch, np.array([0])))
        column = (sample["image"][0, 6] < 0.1).nonzero()[0]
        assert float(column) == float(sample["boxes"][0, 0])  # the boxes of the view that is shown
        return float(column)

    assert left(0) == left(0)
    assert len({left(epoch) for epoch in range(8)}) > 1


def codes(data: Any, student: nn.Module | None = None, transformer: Any = None) -> list[str]:
    return [one.code for one in kdcli.validate(alone(transformer), student=student or tiny(), data=data)]


def test_a_spec_of_boxes_in_memory_is_checked() -> None:
    floats = (Squares(floats=True), Squares(2, floats=True))
    assert codes(floats) == []
    assert codes(floats, tiny(classes=2)) == ["KD563"]
    assert codes(floats, transformer=TRANSFORMER[1:]) == ["KD873", "KD873"]
    other = Squares(2, floats=True)
    other.classes = ("light", "dark")  # type: ignore[assignment]
    assert codes((floats[0], other)) == ["KD541"]


def test_the_task_and_the_data_are_alike() -> None:
    grey = TensorDataset(torch.zeros(8, 3, 48, 64), torch.arange(8) % 2)
    found = kdcli.validate(spec(), student=made(), teachers=made(8), data=(images(), Squares()))
    assert [one.code for one in found] == ["KD874"]
    assert "the training data that was given has no boxes" in found[0].message
    found = kdcli.validate({**alone(), "runtime": {"task_names": "det"}}, student=tiny(), data=(grey, grey))
    assert {one.code for one in found} == {"KD874"}


class Changed(Squares):
    """The squares with other targets."""

    def __init__(self, **target: Any) -> None:
        super().__init__()
        self.target = target

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = super().__getitem__(index)
        changed = {**target, **self.target}
        return image, {key: value for key, value in changed.items() if value is not None}


class Pictured(Squares):
    """The squares with something else as their image."""

    def __init__(self, image: Any) -> None:
        super().__init__()
        self.image = image

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        return self.image, super().__getitem__(index)[1]


def test_classes_are_counted_without_the_background() -> None:
    data = Squares()
    given = GivenBoxes(data, "train", ["__background__", "dark", "light"])
    assert given.names == GivenBoxes(data, "train", ["dark", "light"]).names == ("dark", "light")
    with pytest.raises(
        kdcli.SpecError, match="its classes are dark, light, and other names or another order"
    ):
        GivenBoxes(data, "train", ["light", "dark"])
    with pytest.raises(kdcli.SpecError, match="two classes are called `dark`"):
        GivenBoxes(data, "train", ["dark", "dark"])


def test_an_area_of_the_targets_own_is_measured_by() -> None:
    rows = GivenBoxes(Changed(area=torch.tensor([7.0, 9.5])), "test")._rows
    assert [row["area"] for row in rows[:2]] == [7.0, 9.5]
    of_boxes = GivenBoxes(Squares(), "test")._rows[0]
    assert of_boxes["area"] == of_boxes["bbox"][2] * of_boxes["bbox"][3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Changed(labels=torch.tensor([0, 1])), "labels are whole numbers from 1 on, 0 is the background"),
        (Changed(labels=torch.tensor([1, 3])), "a box has the label 3, and there are 2 classes"),
        (Changed(labels=torch.tensor([1])), "it has 2 boxes and 1 labels"),
        (Changed(iscrowd=torch.tensor([1])), "it has 2 boxes and an `iscrowd` of 1"),
        (Changed(area=torch.tensor([1.0])), "it has 2 boxes, and its `area` is none for each"),
        (Changed(boxes=torch.full((2, 4), 900.0) + torch.arange(4)), "a box that lies in its image"),
        (Pictured("0.png"), "item 0: "),
        (Pictured(Image.new("F", (64, 48))), "its image has the mode F"),
        (Changed(labels=None), "its boxes have no `labels`"),
        (Changed(boxes=torch.zeros(2, 5)), r"its boxes are \[2, 5\], not \[n, 4\]"),
        (Changed(boxes=torch.full((2, 4), float("nan"))), "a box is not finite"),
        (Changed(boxes=torch.zeros(0, 4), labels=torch.zeros(0)), "no item has a box"),
        (DataLoader(Squares(), batch_size=2), "a DataLoader's batches with boxes can't be taken"),
        (
            DataLoader(Squares(), batch_size=2, collate_fn=lambda items: tuple(zip(*items, strict=True))),
            "give its Dataset",
        ),
    ],
)
def test_boxes_that_cannot_be_used(data: Any, said: str) -> None:
    with pytest.raises(kdcli.SpecError, match=rf"(?s)KD874: the training data that was given: .*{said}"):
        kdcli.validate(alone(), student=tiny(), data={"train": data})


@pytest.mark.slow
def test_a_detector_and_boxes_in_memory_train_resume_and_are_measured() -> None:
    data = {"train": Squares(floats=True), "test": Squares(2, floats=True)}
    options: dict[str, Any] = {"data": data, "quiet": True, "report": False}
    whole = kdcli.train(kdcli.Spec.from_dict(alone(), name="whole"), student=tiny(), **options)
    assert type(whole.student) is FasterRCNN and "AP" in whole.metrics and whole.step == 2
    assert not torch.equal(whole.student.backbone[0].weight, tiny().backbone[0].weight)  # type: ignore[index]
    measured = kdcli.evaluate(whole, student=tiny(), data=data, quiet=True)
    assert measured["student"].metrics["AP"] == whole.metrics["AP"]
    parts = kdcli.Spec.from_dict(alone(), name="parts")
    kdcli.train(parts.changed("trainer.max_iter=1"), student=tiny(), **options)
    kdcli.train(parts, student=tiny(), resume=True, allow_changed=["trainer.max_iter"], **options)
    folders = ("runs/whole", "runs/parts")
    first, second = (kdcli.load_student(one, student=tiny(), weights="last").state_dict() for one in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
