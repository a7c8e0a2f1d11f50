"""Images without labels: folders of any depth, lists of paths, kdcli's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdcli.data.build import build_loader, build_source, open_source
from kdcli.data.facts import DataFacts, describe, with_classes_of
from kdcli.data.loaders import Loader
from kdcli.data.sources import OpenedData
from kdcli.errors import KdError
from kdcli.spec.schema import DataPart

PATH = ("dataset", "train")


def opened(kind: str, batch_size: int = 4, loader: dict[str, Any] | None = None, **kwargs: Any) -> OpenedData:
    part = DataPart.model_validate(
        {
            "dataset": {"type": kind, "kwargs": {"transformer": [{"type": "to_tensor"}], **kwargs}},
            "batch_sampler": {"kwargs": {"batch_size": batch_size}},
            "dataloader": {"kwargs": loader or {}},
        }
    )
    source = build_source(part, train=True, path=PATH)
    return open_source(source, part, train=True, path=PATH)


def loader_of(kind: str, **kwargs: Any) -> Loader:
    return build_loader(opened(kind, **kwargs), seed=0)


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Five images: in the folder itself, and one to three folders down; a video, a hidden folder."""
    for number, name in enumerate(
        ("z.png", "clip1/000001.png", "clip1/000002.png", "a/b/c.png", "a/b/c/d.jpg")
    ):
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), 40 * number, dtype=np.uint8)).save(file)
    (tmp_path / "root/clip2.mp4").write_bytes(b"a film")
    (tmp_path / "root/.cache").mkdir()
    return tmp_path / "root"


def test_images_at_any_depth(nested: Path) -> None:
    data = opened("image_folder", root=str(nested), labels="none")
    names = [str(Path(data.source.name(i)).relative_to(nested)) for i in range(len(data.source))]
    assert names == ["a/b/c.png", "a/b/c/d.jpg", "clip1/000001.png", "clip1/000002.png", "z.png"]
    assert data.facts.labels == "none" and data.facts.num_classes is None and data.facts.class_names is None
    assert data.facts.num_samples == 5 and data.facts.shape == (3, 6, 6) and data.labels is None
    (told,) = data.notices
    assert "1 file `.mp4` (a video: frames are read, not videos: extract them" in told and "ffmpeg" in told


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_batch_without_labels_has_none(nested: Path, in_memory: bool) -> None:
    data = opened("image_folder", 2, {"in_memory": in_memory}, root=str(nested / "clip1"), labels="none")
    (batch,) = build_loader(data, seed=0).batches(0)
    assert set(batch) == {"image", "indices"} and batch["image"].shape == (2, 3, 6, 6)


def test_a_folder_of_one_image(nested: Path) -> None:
    (batch,) = loader_of("image_folder", root=str(nested / "a/b/c"), labels="none").batches(0)
    assert len(batch["image"]) == 1


def test_a_folder_of_videos_alone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "clip.MOV").write_bytes(b"a film")
    with pytest.raises(KdError) as caught:
        opened("image_folder", root=str(tmp_path), labels="none")
    (found,) = caught.value.diagnostics
    assert found.code == "KD506" and "frames are read, not videos" in found.message


def test_images_beside_no_class_folders_name_the_option(nested: Path) -> None:
    with pytest.raises(KdError) as caught:
        opened("image_folder", root=str(nested / "clip1"))
    (found,) = caught.value.diagnostics
    assert found.code == "KD506" and found.help is not None and "`labels: none`" in found.help


def test_classes_and_no_labels_contradict_each_other(nested: Path) -> None:
    with pytest.raises(KdError) as caught:
        opened("image_folder", root=str(nested), labels="none", num_classes=3)
    assert "`labels: none`" in caught.value.diagnostics[0].message


LISTS = {
    "imagenet": "clip1/000001.png\nz.png 7\na/b/c.png\tcat\nclip one.png\n",
    "custom_cls": '{"filename": "clip1/000001.png"}\n{"filename": "z.png", "label": 7}\n{"filename": "a/b/c.png"}\n'
    '{"filename": "clip one.png"}\n',
}


@pytest.mark.parametrize("meta_type", sorted(LISTS))
def test_a_list_without_labels(nested: Path, meta_type: str) -> None:
    """Labels that stand there are not read, and a name may hold a space."""
    (nested / "list.txt").write_text(LISTS[meta_type])
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(nested)}}
    (nested / "clip one.png").write_bytes((nested / "z.png").read_bytes())
    given = {"meta_file": str(nested / "list.txt"), "meta_type": meta_type, "image_reader": reader}
    data = opened("cls", labels="none", **given)
    names = [str(Path(data.source.name(i)).relative_to(nested)) for i in range(4)]
    assert names == ["clip1/000001.png", "z.png", "a/b/c.png", "clip one.png"]
    assert data.facts.labels == "none" and data.labels is None
    half = opened("cls", labels="none", fraction=0.5, **given)
    assert len(half.source) == 2
    with pytest.raises(KdError) as caught:
        opened("cls", **given)
    (found,) = caught.value.diagnostics
    assert found.code == "KD510" and found.help is not None and "`labels: none`" in found.help


@pytest.mark.parametrize("name", ["classes", "num_classes", "label_mapping"])
def test_a_list_without_labels_takes_nothing_about_them(nested: Path, name: str) -> None:
    (nested / "list.txt").write_text("z.png\n")
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(nested)}}
    value = {"classes": ["a"], "num_classes": 2, "label_mapping": [1]}[name]
    with pytest.raises(KdError) as caught:
        opened("cls", meta_file=str(nested / "list.txt"), image_reader=reader, labels="none", **{name: value})
    assert f"`{name}`" in caught.value.diagnostics[0].message


def test_own_data_without_labels_is_the_same_images() -> None:
    with_labels, without = (next(loader_of("fake", labels=kind).batches(0)) for kind in ("classes", "none"))
    assert "labels" not in without and "labels" in with_labels
    assert (with_labels["image"] == without["image"]).all()


def test_what_the_spec_alone_tells() -> None:
    part = DataPart.model_validate(
        {
            "dataset": {"type": "fake", "kwargs": {"labels": "none", "num_classes": 3}},
            "batch_sampler": {"kwargs": {"batch_size": 4}},
        }
    )
    facts = describe(part)
    assert (facts.labels, facts.num_classes, facts.num_samples) == ("none", None, 256)
    test = DataFacts(labels="classes", num_classes=4, class_names=("a", "b", "c", "d"))
    assert with_classes_of(facts, test).num_classes == 4
    assert with_classes_of(test, facts) is test
