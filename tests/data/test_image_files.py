"""Image files and lists of them, the hostile ones among them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data.classification.meta_lists import cls, entries
from kdcli.data.image_readers import OpencvReader, PillowReader
from kdcli.data.sources import BadSample
from kdcli.errors import RunError, SpecError
from kdcli.spec.places import HERE, Places

PATH = ("dataset", "train", "dataset")
RED = (200, 10, 30)


def reader(place: Path, **kwargs: Any) -> PillowReader:
    return PillowReader(PATH, HERE, image_dir=str(place), **kwargs)


def listed(place: Path, text: str, **kwargs: Any) -> Any:
    (place / "list").write_text(text)
    return cls(reader(place), PATH, HERE, meta_file=str(place / "list"), **kwargs)


@pytest.mark.parametrize("kind", [PillowReader, OpencvReader])
def test_color_modes(tmp_path: Path, kind: Any) -> None:
    Image.new("RGB", (3, 2), RED).save(tmp_path / "x.png")
    for mode, wanted in (("RGB", RED), ("BGR", RED[::-1]), ("GRAY", (69,))):
        image = kind(PATH, HERE, image_dir=str(tmp_path), color_mode=mode).read(str(tmp_path / "x.png"))
        assert image.shape == (len(wanted), 2, 3) and image.dtype == torch.uint8
        assert np.abs(np.subtract(image[:, 0, 0].tolist(), wanted)).max() <= 1


def test_other_pixel_formats_come_out_as_bytes(tmp_path: Path) -> None:
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    Image.new("P", (8, 8), 3).save(tmp_path / "palette.png")
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "ink.tif")
    read = {name: reader(tmp_path).read(str(tmp_path / name)) for name in os.listdir(tmp_path)}
    assert all(image.shape == (3, 8, 8) for image in read.values())
    assert int(read["bits.png"].min()) == 255
    assert read["ink.tif"][:, 0, 0].tolist() == [0, 255, 255]


def test_orientation_is_followed_by_opencv_only(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4), RED).save(tmp_path / "x.jpg", exif=exif)
    assert reader(tmp_path).read(str(tmp_path / "x.jpg")).shape == (3, 4, 6)
    turned = OpencvReader(PATH, HERE, image_dir=str(tmp_path)).read(str(tmp_path / "x.jpg"))
    assert turned.shape == (3, 6, 4)


def test_united_perceptions_arguments_are_taken(tmp_path: Path) -> None:
    made = OpencvReader(PATH, HERE, image_dir=str(tmp_path), memcached=True, source="x", to_float32=False)
    assert any("memcached" in notice for notice in made.notices)
    with pytest.raises(SpecError, match=r"KD519.*object store"):
        PillowReader(PATH, HERE, image_dir="cluster:s3://bucket/train")


def test_lists_as_text_and_json(tmp_path: Path) -> None:
    text = listed(tmp_path, "a b.png 1\n\nsub/c.png 0  \n")
    assert [Path(f).name for f in text.files] == ["a b.png", "c.png"] and text.labels.tolist() == [1, 0]
    assert text.num_classes == 2
    lines = '{"filename": "a.png", "label": 2}\n{"label": 0, "filename": "b.png", "more": 1}\n'
    json = listed(tmp_path, lines, meta_type="custom_cls", num_classes=5)
    assert json.labels.tolist() == [2, 0] and json.num_classes == 5


def test_several_lists_with_their_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").write_text("x.png 0\ny.png 1\n")
    two = PillowReader(PATH, Places(tmp_path), image_dir=["a", "b"])
    made = cls(two, PATH, Places(tmp_path), meta_file=["a.txt", "b.txt"], label_mapping=[0, 2])
    assert made.labels.tolist() == [0, 1, 2, 3]
    assert [str(Path(f).relative_to(tmp_path)) for f in made.files] == [
        "a/x.png",
        "a/y.png",
        "b/x.png",
        "b/y.png",
    ]
    half = cls(two, PATH, Places(tmp_path), meta_file=["a.txt", "b.txt"], fraction=0.5)
    assert len(half) == 2
    with pytest.raises(ValueError, match="folders"):
        cls(two, PATH, Places(tmp_path), meta_file="a.txt")


@pytest.mark.parametrize(
    "line,kind",
    [
        ("a.png", "imagenet"),
        ("a.png 1.5", "imagenet"),
        ("[" * 20_000, "custom_cls"),
        ('{"filename": "a"}', "custom_cls"),
        ('{"filename": "a", "label": true}', "custom_cls"),
        ('{"filename": 3, "label": 1}', "custom_cls"),
        ("null", "custom_cls"),
    ],
)
def test_a_malformed_line_is_told_with_its_number(tmp_path: Path, line: str, kind: str) -> None:
    good = "b.png 1" if kind == "imagenet" else '{"filename": "b", "label": 1}'
    (tmp_path / "list").write_text(f"{good}\n{line}\n")
    with pytest.raises(RunError, match=r"KD510.*line 2"):
        list(entries(tmp_path / "list", kind))


@pytest.mark.parametrize("label", ["-1", "3", "99999999999999999999"])
def test_labels_out_of_range(tmp_path: Path, label: str) -> None:
    with pytest.raises(RunError, match=r"KD515.*line 1"):
        listed(tmp_path, f"a.png {label}", num_classes=3)


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/passwd", "..", "a/\0/x.png"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "list").write_text(f"ok.png 0\n{name} 1\n")
    with pytest.raises(RunError, match=r"KD513.*line 2"):
        cls(reader(tmp_path / "in"), PATH, HERE, meta_file=str(tmp_path / "list"))


def test_odd_names_that_stay_inside_are_fine(tmp_path: Path) -> None:
    made = listed(tmp_path, f"a/../b.png 0\n..c.png 1\n{tmp_path}/d.png 2\n")
    assert [os.path.normpath(f) for f in made.files] == [
        str(tmp_path / n) for n in ("b.png", "..c.png", "d.png")
    ]


def png(width: int, height: int) -> bytes:
    """A tiny file that declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def hostile() -> dict[str, bytes]:
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), RED).save(whole, "JPEG")
    return {
        "empty.png": b"",
        "text.png": b"hello",
        "torn.jpg": whole.getvalue()[:300],
        "bomb.png": png(60_000, 60_000),
        "big.png": png(10_000, 10_000),
        "zero.png": png(0, 5),
        "short.png": png(400, 400),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n",
        "noise.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
        "deep.ppm": b"P6 400 400 65535 " + bytes(99),
    }


@pytest.mark.parametrize("name", sorted(hostile()))
@pytest.mark.parametrize("kind", [PillowReader, OpencvReader])
def test_hostile_images_are_bad_samples(tmp_path: Path, name: str, kind: Any) -> None:
    (tmp_path / name).write_bytes(hostile()[name])
    with pytest.raises(BadSample) as error:
        kind(PATH, HERE, image_dir=str(tmp_path)).read(str(tmp_path / name))
    assert error.value.name.endswith(name) and error.value.reason
    if name in ("bomb.png", "big.png"):
        assert "pixels" in error.value.reason


def test_what_is_no_file_is_a_bad_sample(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, said in (("pipe.png", "regular"), ("folder.png", "a folder"), ("gone.png", "not exist")):
        with pytest.raises(BadSample) as error:
            reader(tmp_path).read(str(tmp_path / name))
        assert said in error.value.reason
