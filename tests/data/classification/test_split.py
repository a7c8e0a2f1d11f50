"""One folder of images as two parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdcli.data.classification.image_folder import image_folder, part_of
from kdcli.errors import SpecError
from kdcli.spec.places import HERE

PATH = ("dataset", "train", "dataset")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("cat", 10), ("dog", 5), ("owl", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (4, 4)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def names(folder: Path, **kwargs: Any) -> list[str]:
    found = image_folder(PATH, HERE, root=str(folder), **kwargs)
    return [str(Path(file).relative_to(folder)) for file in found.files]


@pytest.mark.parametrize("labels", ["classes", "none"])
def test_the_parts_are_disjoint_and_whole(labels: str, folder: Path) -> None:
    train, test = (names(folder, split=split, labels=labels) for split in ("train", "test"))
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(names(folder, labels=labels))
    assert test == sorted(test)


def test_an_image_is_in_one_part_with_and_without_labels(folder: Path) -> None:
    """Else a probe would measure on images that were trained on. What lies beside the folders is a group of its own."""
    assert names(folder, split="test", labels="none") == names(folder, split="test")
    for number in range(4):
        Image.new("L", (4, 4)).save(folder / f"{number}.png")
    (folder / "alone").mkdir()
    Image.new("L", (4, 4)).save(folder / "alone/1.png")
    test, train = (names(folder, split=split, labels="none") for split in ("test", "train"))
    assert sum(not name.startswith(("cat", "dog", "owl")) for name in test) == 1  # of five
    assert sorted(train + test) == sorted(names(folder, labels="none"))


def test_each_class_is_divided(folder: Path) -> None:
    test = names(folder, split="test", train=False)
    assert [sum(name.startswith(one) for name in test) for one in ("cat", "dog", "owl")] == [2, 1, 1]
    assert len(names(folder, split="test", test_share=0.5)) == 5 + 2 + 1
    assert len(names(folder, split="test", test_share=0.999)) == 9 + 4 + 1


def test_the_names_decide_on_every_machine() -> None:
    """By the SHA-256 of the names: that of 0.png begins with 0f25, of 2.png with 3376, the least of six."""
    files = [f"/a/{number}.png" for number in range(6)]
    held = part_of(files, Path("/a"), "test", 1 / 3)
    elsewhere = part_of([file.replace("/a", "/b/c") for file in files], Path("/b/c"), "test", 1 / 3)
    assert [Path(file).name for file in held] == [Path(file).name for file in elsewhere] == ["0.png", "2.png"]
    assert part_of(files[::-1], Path("/a"), "test", 1 / 3) == held[::-1]


def test_a_class_of_one_image_is_refused(folder: Path) -> None:
    (folder / "owl/1.png").unlink()
    with pytest.raises(SpecError) as caught:
        names(folder, split="train")
    assert [found.code for found in caught.value.diagnostics] == ["KD860"]
    assert caught.value.diagnostics[0].path == (*PATH, "kwargs", "split")


def test_one_image_alone_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(SpecError, match="KD860"):
        names(tmp_path, split="test", labels="none")


def test_a_share_without_a_split_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="`test_share` divides the folder"):
        names(folder, test_share=0.3)
