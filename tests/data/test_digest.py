"""The digest of data: the same for the same data wherever it lies, another for any change."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data import digest as digests
from kdcli.data.digest import (
    Listing,
    Other,
    changes,
    digest_of,
    listing_from,
    listing_of,
    other_pixels,
    packed,
    probed_ids,
    relative,
    sizes,
    unpacked,
)
from kdcli.data.sources import OpenedData
from tests.data.conftest import make_part, open_side

PATH = ("dataset", "train")


def opened(kind: str, **kwargs: Any) -> OpenedData:
    part = make_part(kind, **kwargs)
    return open_side(part, train=True, path=PATH)


def images(labels: str = "0011", names: str = "abcd", sizes: str = "5678", **changed: Any) -> Listing:
    made = {"kind": "images", "classes": ("x", "y"), "names": tuple(names), "labels": tuple(labels)}
    return Listing(**{**made, "contents": tuple(sizes), **changed})


def test_a_list_comes_back_whatever_its_names_hold() -> None:
    names = ("a\nb", "a\\nb", "\\\\n", "\\\n", "tab\there", "\udc80", "é", "", "\\")
    listed = images("0" * len(names), names, "1" * len(names), classes=("\udcff", "b\n"))  # type: ignore[arg-type]
    text = listed.text()
    again = listing_from(unpacked(packed(text)) or b"")
    assert tuple(again.names) == names and again.classes == listed.classes and again.text() == text
    assert packed(text) == packed(text) and gzip.decompress(packed(text)) == text
    assert listing_from(images("", "", "").text()).text() == images("", "", "").text()
    assert unpacked(packed(text)[:-1]) is None and unpacked(b"no gzip") is None


def test_what_came_went_and_changed() -> None:
    found = changes(images("0011", "abcd", "5678"), images("0112", "abde", "5689"))
    assert (found.came, found.went) == (["e"], ["c"])
    assert found.labels == [Other("b", "0", "1")] and found.contents == []
    found = changes(images(), images(sizes="5978"))
    assert found.contents == [Other("b", "6", "9")] and not found.reordered and not found.classes
    found = changes(images(names="abcd"), images("0101", "acbd", "5768"))
    assert found.reordered and not found.labels and not found.contents
    assert changes(images(), images(classes=("x", "z"))).classes
    assert changes(images(names="aabb"), images(names="aabb")) == changes(images(), images())
    assert changes(images(truth="1"), images(truth="2")).truth
    # A name that is listed twice counts twice.
    found = changes(images("001", "aab", "556"), images("01", "ab", "56"))
    assert (found.came, found.went) == ([], ["a"])


def test_names_are_below_the_nearest_folder() -> None:
    assert relative(["/d/a/1.png", "/d/b/2.png"], ["/d"]) == ["a/1.png", "b/2.png"]
    assert relative(["/d/a/1.png", "/d/b/2.png", "/d2/3.png"], ["/d", "/d/a/", "/d2"]) == [
        "1.png",
        "b/2.png",
        "3.png",
    ]
    assert relative(["./a/1.png"], ["."]) == ["a/1.png"] and relative(["/a/1.png"], ["/"]) == ["a/1.png"]
    assert relative(["/e/1.png"], ["/d"]) == ["../e/1.png"]


def test_sizes_of_many_files_come_in_order(tmp_path: Path) -> None:
    files = []
    for i in range(2500):
        files.append(str(tmp_path / f"{i}"))
        if i % 7:
            Path(files[-1]).write_bytes(bytes(i % 11))
    assert sizes(files) == [str(i % 11) if i % 7 else "missing" for i in range(2500)]
    assert sizes(["a\0b", ""]) == ["missing", "missing"] and sizes([]) == []


def tree(place: Path) -> Path:
    for name in ("ant", "cat"):
        (place / name / "deep").mkdir(parents=True)
        Image.new("RGB", (6, 5)).save(place / name / "0.png")
        Image.new("RGB", (6, 5)).save(place / name / "deep" / "1.png")
    return place


def test_a_folder_is_listed_by_relative_names_labels_and_bytes(tmp_path: Path) -> None:
    place = tree(tmp_path / "one")
    size = (place / "ant/0.png").stat().st_size
    wanted = (
        f"0\t{size}\tant/0.png\n0\t{size}\tant/deep/1.png\n1\t{size}\tcat/0.png\n1\t{size}\tcat/deep/1.png"
    )
    for kind in ("image_folder", "torchvision.ImageFolder"):
        text = listing_of(opened(kind, root=str(place))).text().decode()
        assert (
            text == '{"format": 1, "kind": "images", "classes": ["ant", "cat"], "truth": null}\n' + wanted
        ), kind
    other = tree(tmp_path / "two")
    assert listing_of(opened("image_folder", root=str(other))) == listing_of(
        opened("image_folder", root=str(place))
    )


def test_images_in_memory_are_listed_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = opened("fake", num_samples=5, num_classes=2, shape=[1, 4, 4])
    listed = listing_of(fake)
    pixels = fake.source.images.numpy()  # type: ignore[union-attr]
    assert listed.labels == ["0", "1", "0", "1", "0"] and listed.names[3] == "sample 3"
    assert listed.contents == [f"{zlib.crc32(bytes(image.ravel().tolist())):08x}" for image in pixels]
    monkeypatch.setattr(digests, "HASHED", 5 * 16 // 2)
    assert [value == "-" for value in listing_of(fake).contents] == [False, True, False, True, False]


def test_the_digest_is_the_hash_of_the_list_and_some_pixels(part: Any, loader: Any) -> None:
    given = part("fake", num_samples=40, num_classes=4, shape=[1, 8, 8], batch_size=8)
    made = open_side(given, train=True, path=PATH)
    found = digest_of(made, loader(given))
    text = unpacked(found.packed) or b""
    assert found.listing == hashlib.sha256(text).hexdigest() and found.samples == 40
    assert text.count(b"\n") == 40 and set(found.state()) == {"listing", "samples", "probe"}
    assert found.probe is not None and found.probe.shape == (8, 64)
    wanted = made.source.images[torch.tensor([0, 5, 11, 16, 22, 27, 33, 39])]  # type: ignore[union-attr]
    assert torch.allclose(found.probe, wanted.flatten(1).float() / 255)


def test_which_samples_have_other_pixels() -> None:
    assert (
        probed_ids(3) == [0, 1, 2] and probed_ids(1) == [0] and probed_ids(15) == [0, 2, 4, 6, 8, 10, 12, 14]
    )
    probe = torch.tensor(np.arange(12.0).reshape(3, 4), dtype=torch.float32)
    assert other_pixels(probe, probe + 0.0005) == [] and other_pixels(probe.tolist(), probe) == []
    moved = probe.clone()
    moved[1, 3] += 0.01
    moved[2, 0] = float("nan")
    assert other_pixels(probe, moved) == [1, 2]
    assert other_pixels(probe, probe[:2]) is None and other_pixels(None, probe) is None
    assert other_pixels(None, None) == []
