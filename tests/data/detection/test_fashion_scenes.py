"""The garment scenes: reproducible, well-formed, tight, hardly overlapping, split by garment."""

from __future__ import annotations

import gzip
import json
import struct
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcli.data.detection.coco_json import CocoImages, read_coco
from kdcli.data.detection.fashion_scenes import CANVAS, LARGEST, MOST_OVERLAP, SMALLEST, make_scenes, overlap


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty blocks of different shape that pass for Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    for prefix, level in (("train", 250), ("t10k", 120)):
        images = np.zeros((40, 28, 28), dtype=np.uint8)
        for image in images:
            h, w = rng.integers(10, 27, 2)
            image[1 : 1 + h, 1 : 1 + w] = level
        labels = (np.arange(40) % 10).astype(np.uint8)
        for name, data in (
            (f"{prefix}-images-idx3-ubyte.gz", images),
            (f"{prefix}-labels-idx1-ubyte.gz", labels),
        ):
            head = struct.pack(">BBBB", 0, 0, 8, data.ndim) + struct.pack(f">{data.ndim}I", *data.shape)
            (folder / name).write_bytes(gzip.compress(head + data.tobytes()))
    return folder


def scenes(folder: Path, root: Path, seed: int = 0) -> dict[str, Path]:
    return make_scenes(folder, seed, root=str(root), num_train=12, num_test=6)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, root: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        scenes(tmp_path / folder, root, seed)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 12 + 6 + 2
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert any((tmp_path / "a" / f).read_bytes() != (tmp_path / "c" / f).read_bytes() for f in files)


def test_scenes_are_what_they_should_be(tmp_path: Path, root: Path) -> None:
    written = scenes(tmp_path, root)
    for side, count in (("train", 12), ("test", 6)):
        found = read_coco(written[side])
        assert len(CocoImages(found)) == count and found.dropped == 0
        assert tuple(found.names) == tuple(range(1, 11)) and found.class_names[0] == "T-shirt/top"
        for image in CocoImages(found):
            with Image.open(tmp_path / side / image.file_name) as pixels:
                assert pixels.size == (CANVAS, CANVAS) and pixels.mode == "RGB"
            assert 1 <= len(image.boxes) <= 4
            longer = (image.boxes[:, 2:4] - image.boxes[:, :2]).max(1)
            assert (longer >= SMALLEST - 3).all() and (longer <= LARGEST).all()
            for a, b in combinations(image.boxes[:, :4].tolist(), 2):
                assert overlap(tuple(a), tuple(b)) <= MOST_OVERLAP


def test_sides_take_their_garments_from_different_splits(tmp_path: Path, root: Path) -> None:
    """The test garments of this root are half as bright."""
    scenes(tmp_path, root)
    brightest = {
        side: max(np.asarray(Image.open(file)).max() for file in (tmp_path / side).glob("*.png"))
        for side in ("train", "test")
    }
    assert brightest["train"] > 200 > 150 > brightest["test"]


def test_overlap_is_of_the_smaller_box() -> None:
    assert overlap((0, 0, 10, 10), (5, 5, 7, 7)) == 1
    assert overlap((0, 0, 10, 10), (8, 0, 18, 10)) == pytest.approx(0.2)
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0


def test_annotations_are_integers_in_the_canvas(tmp_path: Path, root: Path) -> None:
    rows = json.loads(scenes(tmp_path, root)["train"].read_text())["annotations"]
    for row in rows:
        x, y, w, h = row["bbox"]
        assert all(isinstance(v, int) for v in row["bbox"]) and row["area"] == w * h
        assert x >= 0 and y >= 0 and x + w <= CANVAS and y + h <= CANVAS
