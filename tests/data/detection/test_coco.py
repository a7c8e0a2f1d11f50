"""The coco dataset: what a file may hold, what a batch is, and what is wrong said once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from kdcli.data import IMAGE_READERS
from kdcli.data.build import build_source
from kdcli.data.detection.coco import CocoDataset
from kdcli.data.detection.coco_json import CocoImages, cut, read_coco
from kdcli.data.draws import Draws
from kdcli.data.transforms.boxes import Flip, KeepArResize
from kdcli.errors import KdError, RunError, SpecError
from kdcli.spec.places import HERE
from kdcli.tasks.detection.metrics import original_boxes
from tests.data.conftest import look_at, make_loader, make_part

SIZES = {3: (20, 30), 7: (40, 20), 9: (16, 16)}
BOXES = {
    3: [([2, 4, 10, 8], 5), ([-4, 2, 10, 100], 90), ([40, 2, 5, 5], 5)],
    7: [([0, 0, 8, 8], 90), ([3, 3, 0, 4], 5), ([9, 9, -3, 4], 5)],
    9: [],
}


def annotations(**changes: Any) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()]
    rows = [
        {"id": 10 * image + n, "image_id": image, "category_id": c, "bbox": box, "iscrowd": 0}
        for image, found in BOXES.items()
        for n, (box, c) in enumerate(found)
    ]
    rows.append({"id": 99, "image_id": 3, "category_id": 5, "bbox": [1, 1, 20, 5], "iscrowd": 1})
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 5, "name": "airplane"}]
    return {"images": images, "annotations": rows, "categories": categories, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for image, (height, width) in SIZES.items():
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2] = 255
        Image.fromarray(pixels).save(tmp_path / f"{image}.png")
    (tmp_path / "all.json").write_text(json.dumps(annotations()))
    return tmp_path


def part(
    folder: Path, file: str = "all.json", transformer: list[dict[str, Any]] | None = None, **kwargs: Any
) -> Any:
    return make_part(
        "coco",
        batch_size=kwargs.pop("batch_size", 2),
        transformer=transformer,
        batch_sampler=kwargs.pop("batch_sampler", None),
        dataloader={"alignment": kwargs.pop("alignment", 32)},
        meta_file=str(folder / file),
        image_reader={"type": "fs_pillow", "kwargs": {"image_dir": str(folder)}},
        **kwargs,
    )


def source(folder: Path, *, train: bool = True, aligned: bool = True, **kwargs: Any) -> CocoDataset:
    found = build_source(part(folder, **kwargs), train=train, path=("dataset", "train"), aligned=aligned)
    assert isinstance(found, CocoDataset)
    return found


def draws(index: int = 0, epoch: int = 0) -> Draws:
    return Draws(131, epoch, np.array([index]))


def test_boxes_are_cut_and_classes_run_without_gaps(folder: Path) -> None:
    data = source(folder)
    assert [image.id for image in data.images] == [3, 7]  # image 9 has no box
    assert data.facts.num_classes == 2 and data.facts.class_names == ("airplane", "toothbrush")
    assert data.load(0, draws())["boxes"].tolist() == [[2, 4, 12, 12, 1], [0, 2, 6, 20, 2]]
    assert data.load(1, draws())["boxes"].tolist() == [[0, 0, 8, 8, 2]]
    assert read_coco(folder / "all.json").misfits == (
        "3 boxes are empty or outside the image (left out), 1 box is partly outside (cut to the image)"
    )
    assert any("1 images have no box" in notice for notice in data.notices)


def test_test_data_keeps_every_image(folder: Path) -> None:
    data = source(folder, train=False)
    assert [image.id for image in data.images] == [3, 7, 9]
    assert data.load(2, draws())["boxes"].shape == (0, 5)


def test_crowds_are_ignored_regions_only_where_asked(folder: Path) -> None:
    assert source(folder).load(0, draws())["ignores"].shape == (0, 4)
    assert source(folder, use_ignore=True).load(0, draws())["ignores"].tolist() == [[1, 1, 21, 6]]


def test_boxes_of_last_pixels_are_one_less(folder: Path) -> None:
    data = source(folder, aligned=False)
    assert data.load(1, draws())["boxes"].tolist() == [[0, 0, 7, 7, 2]]
    assert data.annotations["box_offset"] == 1


@pytest.mark.parametrize(("aligned", "last"), [(True, [16, 16]), (False, [14, 14])])
def test_a_last_pixel_is_one_of_the_original_image(folder: Path, aligned: bool, last: list[int]) -> None:
    # The box of 8 x 8 pixels from (0, 0) at twice its size; United-Perception scales its last pixel, 7.
    resize = {"type": "keep_ar_resize", "kwargs": {"scales": [40], "max_size": 1000}}
    sample = source(folder, aligned=aligned, transformer=[resize]).load(1, draws())
    assert sample["boxes"].tolist() == [[0, 0, *last, 2]]
    batch = {
        "image_info": [sample["image_info"]],
        "annotations": {"box_offset": 0 if aligned else 1, "categories": (1, 2)},
    }
    found = torch.cat([torch.zeros(1, 1), sample["boxes"][:, :4], torch.tensor([[0.9, 2.0]])], dim=1)
    (own,) = original_boxes({"dt_bboxes": found}, batch)
    assert own[0, :4].tolist() == [0, 0, 8, 8]


def test_a_batch_is_padded_right_and_below(folder: Path) -> None:
    transformer = [
        {"type": "to_tensor"},
        {"type": "normalize", "kwargs": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    ]
    batches = list(make_loader(part(folder, transformer=transformer), train=False).batches(0))
    image = batches[0]["image"]
    assert image.shape == (2, 3, 64, 32) and image.dtype == torch.float32
    assert image[0, 0, 5, 3] == 1 and image[0, 0, 5, 29] == -1
    assert image[0, :, 20:].abs().sum() == 0 and image[0, :, :, 30:].abs().sum() == 0
    assert batches[0]["image_info"] == [(20, 30, 1, 1, 20, 30), (40, 20, 1, 1, 40, 20)]
    assert batches[0]["image_ids"] == [3, 7] and batches[0]["indices"].tolist() == [0, 1]
    assert batches[1]["image"].shape == (1, 3, 32, 32)


def test_aspect_ratio_groups_read_no_image(folder: Path) -> None:
    group = {"type": "aspect_ratio_group", "kwargs": {"batch_size": 2, "aspect_grouping": [1]}}
    for file in folder.glob("*.png"):
        file.unlink()
    assert source(folder, train=False).aspect_ratios().tolist() == pytest.approx([20 / 30, 2, 1])
    loader = make_loader(part(folder, batch_sampler=group))
    with pytest.raises(RunError, match="KD511"):
        list(loader.batches(0))


def test_flip_moves_boxes_with_pixels(folder: Path) -> None:
    data = source(folder, transformer=[{"type": "flip", "kwargs": {"flip_p": 1.0}}])
    sample = data.load(0, draws())
    assert sample["boxes"].tolist() == [[18, 4, 28, 12, 1], [24, 2, 30, 20, 2]]
    assert sample["image"][0, 0, 29] == 1 and sample["image"][0, 0, 0] == 0
    both = source(folder, transformer=[{"type": "flip"}])
    seen = {float(both.load(0, draws(0, epoch))["boxes"][0, 0]) for epoch in range(20)}
    assert seen == {2.0, 18.0}


def test_resize_keeps_the_ratio(folder: Path) -> None:
    kwargs = {"scales": [33], "max_size": 60, "separate_wh": True}
    data = source(folder, transformer=[{"type": "keep_ar_resize", "kwargs": kwargs}])
    sample = data.load(0, draws())
    # 20x30: 33/20 = 1.65 gives 33x49.5, rounded to even
    assert sample["image"].shape == (3, 33, 50)
    assert sample["image_info"] == pytest.approx((33, 50, 33 / 20, 50 / 30, 20, 30))
    assert sample["boxes"][0].tolist() == pytest.approx([2 * 50 / 30, 6.6, 12 * 50 / 30, 19.8, 1])
    # 40x20: the longer side is bounded by 60
    assert data.load(1, draws())["image"].shape == (3, 60, 30)
    several = KeepArResize(scales=[10, 20, -1])
    assert several.target(20, 30, 0.0)[:2] == (10, 15)
    assert several.target(20, 30, 0.5)[:2] == (20, 30)
    assert several.target(25, 30, 0.99) == (25, 30, 1.0)


def test_transforms_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="flip_p"):
        Flip(flip_p=2)
    with pytest.raises(ValueError, match="scales"):
        KeepArResize(scales=[])


def test_a_transform_that_would_lose_the_boxes_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="KD564") as caught:
        source(folder, transformer=[{"type": "flip"}, {"type": "torch_center_crop", "kwargs": {"size": 8}}])
    assert caught.value.diagnostics[0].path == (
        "dataset",
        "train",
        "dataset",
        "kwargs",
        "transformer",
        1,
        "type",
    )


@pytest.mark.parametrize(
    "transform",
    [{"type": "flip"}, {"type": "crop"}, {"type": "stitch_expand", "kwargs": {"expand_prob": 0.5}}],
)
def test_transforms_of_training_are_refused_in_test(folder: Path, transform: dict[str, Any]) -> None:
    assert source(folder, transformer=[transform])  # to train on
    with pytest.raises(SpecError, match="KD596"):
        source(folder, transformer=[transform], train=False)
    assert source(folder, transformer=[{"type": "flip", "kwargs": {"flip_p": 0}}], train=False)


def test_what_pixels_are_normalised_by_is_told_on_one_scale(folder: Path) -> None:
    normalize = {"type": "normalize", "kwargs": {"mean": [102, 51, 0], "std": [51, 51, 255]}}
    facts = source(folder, transformer=[{"type": "custom_to_tensor"}, normalize]).facts
    assert facts.mean == pytest.approx((0.4, 0.2, 0)) and facts.std == pytest.approx((0.2, 0.2, 1))
    bytes_only = source(folder, transformer=[{"type": "custom_to_tensor"}]).facts
    assert bytes_only.mean == (0, 0, 0) and bytes_only.std == (1 / 255,) * 3


def one_box(**changes: Any) -> dict[str, Any]:
    row = {"image_id": 3, "category_id": 5, "bbox": [1, 1, 4, 4]}
    return annotations(annotations=[{**row, **changes}])


BAD: dict[str, tuple[Any, str]] = {
    "no json": ("{", "KD560"),
    "no list": (annotations(images={}), "KD560"),
    "no categories": (annotations(categories=[]), "KD560"),
    "two categories of one id": (annotations(categories=[{"id": 5}, {"id": 5}]), "KD560"),
    "no size": (annotations(images=[{"id": 3, "file_name": "3.png"}]), "KD562"),
    "two images of one id": (annotations(images=annotations()["images"] * 2), "KD562"),
    "an image that is no id": (one_box(image_id=[3]), "KD561"),
    "no image": (one_box(image_id=None), "KD561"),
    "two annotations of one id": (annotations(annotations=annotations()["annotations"] * 2), "KD561"),
    "neither box nor polygon": (one_box(bbox=None, segmentation={"counts": "x", "size": [9, 9]}), "KD561"),
    "true as a number": (one_box(bbox=[1, 1, True, 1]), "KD561"),
    "true as an id": (one_box(category_id=True), "KD561"),
    "half of a character": (annotations(categories=[{"id": 5, "name": "\ud800"}]), "KD560"),
    "a list as a name": (annotations(categories=[{"id": 5, "name": [5]}]), "KD560"),
    "no file's name": (
        annotations(images=[{"id": 3, "file_name": "a\0.png", "height": 9, "width": 9}]),
        "KD562",
    ),
    "unknown category": (
        annotations(annotations=[{"image_id": 3, "category_id": 1, "bbox": [1, 1, 1, 1]}]),
        "KD561",
    ),
    "no box": (
        annotations(annotations=[{"image_id": 3, "category_id": 5, "bbox": [1, 1, None, 1]}]),
        "KD561",
    ),
    "no mapping": (annotations(annotations=[3]), "KD561"),
    "a number beyond every float": (one_box(bbox=[10**400, 1, 1, 1]), "KD561"),
    "an area in words": (one_box(area="16"), "KD561"),
    "an area below nothing": (one_box(area=-1), "KD561"),
    "an endless area": (one_box(area=float("inf")), "KD561"),
    "a crowd in words": (one_box(iscrowd="no"), "KD561"),
    "two crowds": (one_box(iscrowd=2), "KD561"),
    "an id of more than 64 bits": (
        annotations(images=[{"id": 2**63, "file_name": "3.png", "height": 20, "width": 30}]),
        "KD562",
    ),
    "a side of many miles": (
        annotations(images=[{"id": 3, "file_name": "3.png", "height": 10**400, "width": 30}]),
        "KD562",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_file_is_one_error(name: str, tmp_path: Path) -> None:
    content, code = BAD[name]
    file = tmp_path / "bad.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RunError) as caught:
        read_coco(file)
    assert caught.value.diagnostics[0].code == code
    assert len(caught.value.diagnostics[0].message) < 300


@pytest.mark.parametrize("crowd", [0, 1, False, True])
def test_area_and_crowd_as_they_may_be(crowd: int, tmp_path: Path) -> None:
    file = tmp_path / "good.json"
    file.write_text(json.dumps(one_box(area=0, iscrowd=crowd)))
    assert len(CocoImages(read_coco(file))[0].boxes) == 1 - crowd


def test_a_byte_order_mark_is_no_content(folder: Path) -> None:
    text = (folder / "all.json").read_text()
    (folder / "all.json").write_text(text, encoding="utf-8-sig")
    assert len(CocoImages(read_coco(folder / "all.json"))) == 3


def test_why_there_are_no_samples(folder: Path) -> None:
    rows = [{**row, "iscrowd": 1} for row in annotations()["annotations"]]
    (folder / "crowds.json").write_text(json.dumps(annotations(annotations=rows)))
    with pytest.raises(SpecError) as caught:
        make_loader(part(folder, "crowds.json"))
    (told,) = caught.value.diagnostics
    assert told.code == "KD509" and told.path == ("dataset", "train", "dataset")
    assert "3 images, none with a usable box (4 crowds, 3 empty or outside their image)" in told.message
    assert len(make_loader(part(folder, "crowds.json"), train=False)) == 2


def test_every_image_is_looked_for(folder: Path) -> None:
    (folder / "7.png").unlink()
    (folder / "9.png").unlink()
    (folder / "9.png").symlink_to("gone.png")
    Image.new("RGB", (5, 5)).save(folder / "3.png")
    found = look_at(part(folder), ("dataset", "test"))
    assert [one.code for one in found] == ["KD511", "KD511"]
    assert f"2 images are missing of 3 in `{folder}`: `7.png`, `9.png`" in found[0].message
    assert "it is 5x5, and the annotations say 20x30" in found[1].message


def test_many_images_are_looked_for_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "file_name": f"{n}.png", "height": 8, "width": 8} for n in range(5000)]
    (tmp_path / "all.json").write_text(json.dumps(annotations(images=rows, annotations=[])))
    for row in rows[:-7]:
        (tmp_path / row["file_name"]).touch()
    asked: list[str] = []
    state = os.stat

    def noted(file: str | Path, **options: Any) -> os.stat_result:
        if str(file).endswith(".png"):
            asked.append(str(file))
        return state(file, **options)

    monkeypatch.setattr(os, "stat", noted)
    (found,) = look_at(part(tmp_path), ("dataset", "test"), look="quick")
    assert "7 images are missing of 5000" in found.message and "`4997.png`, ..." in found.message
    assert len(asked) == 7


@pytest.mark.parametrize("reader", ["fs_pillow", "fs_opencv"])
def test_a_header_tells_the_size_that_is_read(folder: Path, reader: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    made = IMAGE_READERS[reader].load()((), HERE, image_dir=str(folder))
    for name in ("turned.jpg", "3.png"):
        file = str(folder / name)
        with Image.open(file) as header:
            assert made.size_of(header) == tuple(made.read(file).shape[1:])


@pytest.mark.parametrize(
    ("reader", "which", "other"),
    [("fs_pillow", "turned", "fs_opencv"), ("fs_opencv", "unturned", "fs_pillow")],
)
def test_an_orientation_that_explains_the_size_is_named(
    folder: Path, reader: str, which: str, other: str
) -> None:
    # fs_pillow reads 20x30 of it and fs_opencv 30x20; the annotations say what the other one reads.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    height, width = (30, 20) if reader == "fs_pillow" else (20, 30)
    row = {"id": 3, "file_name": "turned.jpg", "height": height, "width": width}
    (folder / "turned.json").write_text(json.dumps(annotations(images=[row], annotations=[])))
    kwargs = {"meta_file": str(folder / "turned.json")}
    component = {"type": reader, "kwargs": {"image_dir": str(folder)}}
    made = make_part("coco", batch_size=1, image_reader=component, **kwargs)
    found = [d.message for d in look_at(made, ("dataset", "test")) if d.code == "KD511"]
    said = (
        f"EXIF orientation 6, and the annotations' size is that of the {which} image, which `{other}` reads"
    )
    assert len(found) == 1 and said in found[0]
    with pytest.raises(RunError, match="EXIF orientation 6"):
        list(make_loader(made, train=False).batches(0))
    row["width"] += 1
    (folder / "turned.json").write_text(json.dumps(annotations(images=[row], annotations=[])))
    found = [d.message for d in look_at(made, ("dataset", "test")) if d.code == "KD511"]
    assert len(found) == 1 and "EXIF" not in found[0]


def test_a_missing_file_and_no_boxes_at_all(folder: Path) -> None:
    with pytest.raises(RunError, match="KD560"):
        read_coco(folder / "nothing.json")
    (folder / "none.json").write_text(json.dumps(annotations(annotations=[])))
    with pytest.raises(KdError, match="KD509"):
        make_loader(part(folder, "none.json"))


def test_an_image_of_another_size_than_said(folder: Path) -> None:
    Image.new("RGB", (5, 5)).save(folder / "3.png")
    with pytest.raises(RunError, match="annotations say 20x30"):
        list(make_loader(part(folder), train=False).batches(0))


def test_a_name_that_leads_out_of_the_folder(folder: Path) -> None:
    images = annotations()["images"]
    images[0]["file_name"] = "../3.png"
    (folder / "out.json").write_text(json.dumps(annotations(images=images)))
    with pytest.raises(RunError, match="leads out"):
        list(make_loader(part(folder, "out.json"), train=False).batches(0))


@pytest.mark.parametrize(
    ("box", "size", "edges"),
    [
        ([1, 1, 2, 2], (10, 10), [1, 1, 3, 3]),
        ([8, 8, 9, 9], (10, 12), [8, 8, 12, 10]),
        ([10, 0, 5, 5], (10, 10), None),
        ([5, 5, 3, -1], (10, 10), None),
        ([1e308, 0, 1e308, 5], (10, 10), None),
        ([-1e308, 0, 1.7e308, 5], (10, 10), [0, 0, 10, 5]),
        ([100, 0, 1e-9, 5], (200, 200), None),  # no width in the float32 that networks see
    ],
)
def test_cutting(box: list[float], size: tuple[int, int], edges: list[float] | None) -> None:
    found, inside = cut(np.array([box], dtype=np.float64), np.array([size]))
    assert inside.tolist() == [edges is not None]
    assert edges is None or found.tolist() == [edges]
