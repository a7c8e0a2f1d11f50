"""The scan of headers and ends, what an image folder leaves out, and images that hold no pictures."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data import check_images as scanning
from kdcli.data import image_readers
from kdcli.data.check_images import ENDS, constant_images, scan
from kdcli.errors import SpecError
from tests.data.conftest import look_at, make_loader, make_part

TRAIN = ("dataset", "train")
SAVED = {
    "JPEG": "x.jpg",
    "PNG": "x.png",
    "GIF": "x.gif",
    "BMP": "x.bmp",
    "WEBP": "x.webp",
    "TIFF": "x.tif",
    "PPM": "x.ppm",
}


def picture(seed: int = 0, size: tuple[int, int] = (60, 50), mode: str = "RGB") -> Image.Image:
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def saved(kind: str, **options: Any) -> bytes:
    to = io.BytesIO()
    picture(size=(120, 100)).save(to, kind, **options)
    return to.getvalue()


def reasons(*files: Path) -> list[str]:
    return [bad.reason for bad in scan([str(file) for file in files]).bad]


@pytest.mark.parametrize("kind", sorted(SAVED))
def test_whole_files_are_not_decoded_and_cut_ones_are_found(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = saved(kind), tmp_path / SAVED[kind]
    assert kind in ENDS and len(data) > 2 * scanning.TAIL
    decoded: list[str] = []
    load = image_readers.load
    monkeypatch.setattr(scanning, "load", lambda name: (decoded.append(name), load(name)))
    file.write_bytes(data)
    assert reasons(file) == [] and decoded == []
    for part in (len(data) // 3, len(data) // 2, 2 * len(data) // 3):
        file.write_bytes(data[:part])
        (reason,) = reasons(file)
        assert reason


def test_half_a_jpeg_has_a_perfect_header(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(saved("JPEG")[:3000])
    with Image.open(file) as header:
        assert header.size == (120, 100)
    assert "its end is missing" in reasons(file)[0] and "truncated" in reasons(file)[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_what_follows_the_end_is_no_damage(tmp_path: Path, kind: str) -> None:
    # As the film that phones put behind a photo.
    (tmp_path / SAVED[kind]).write_bytes(saved(kind) + bytes(range(1, 200)) * 50)
    assert reasons(tmp_path / SAVED[kind]) == []


def test_other_ways_to_write_a_format_are_whole(tmp_path: Path) -> None:
    for number, options in enumerate(
        ({"progressive": True}, {"quality": 100, "subsampling": 0}, {"icc_profile": b"x" * 70_000})
    ):
        (tmp_path / f"{number}.jpg").write_bytes(saved("JPEG", **options))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        (tmp_path / f"{compression}.tif").write_bytes(saved("TIFF", compression=compression))
    (tmp_path / "lossless.webp").write_bytes(saved("WEBP", lossless=True))
    (tmp_path / "plain.ppm").write_bytes(b"P3 2 1 255\n1 2 3 4 5 6\n")
    (tmp_path / "sizeless.bmp").write_bytes(saved("BMP")[:2] + bytes(4) + saved("BMP")[6:])
    assert reasons(*sorted(tmp_path.iterdir())) == []


def test_what_is_no_image_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "junk.png").write_bytes(b"junk" * 100)
    (tmp_path / "x.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ("empty.png", "junk.png", "x.jpg", "pipe.jpg", "gone.jpg")
    assert [reason.split(",")[0] for reason in reasons(*(tmp_path / name for name in names))] == [
        "it is empty",
        "it is none of JPEG",
        "it is a folder",
        "it is no regular file",
        "it does not exist",
    ]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x.png"))

    picture().save(tmp_path / "x.png")
    monkeypatch.setattr(image_readers.Image, "open", refused)
    assert reasons(tmp_path / "x.png") == ["you have no permission to read it"]


def test_depth_and_alpha_are_sorted_by_header(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(tmp_path / "i.png")
    picture().convert("RGBA").save(tmp_path / "a.png")
    picture().save(tmp_path / "plain.png")
    found = scan([str(tmp_path / name) for name in ("f.tif", "i.png", "a.png", "plain.png")])
    assert found.bad == () and found.alpha == (str(tmp_path / "a.png"),)
    assert found.deep == {"F": (str(tmp_path / "f.tif"),), "I;16": (str(tmp_path / "i.png"),)}


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    picture().save(tmp_path / "x.png")
    told: list[tuple[int, int]] = []
    scan([str(tmp_path / "x.png")] * 600, progress=lambda done, total: told.append((done, total)))
    assert told == [(256, 600), (512, 600), (600, 600)]


# an image folder


def tree(place: Path) -> Path:
    """Two classes of two pictures."""
    for number, name in enumerate(("cat/a.png", "cat/b.jpg", "dog/c.jfif", "dog/d.png")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / name, "PNG" if name.endswith("png") else "JPEG")
    return place


def folder(root: Path, **kwargs: Any) -> Any:
    return make_part("image_folder", root=str(root), batch_size=1, **kwargs)


def test_every_damaged_file_of_a_folder_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert look_at(folder(root), TRAIN) == []
    for number in range(300):
        picture(number, (2, 2)).save(root / f"cat/{number}.png")
    (root / "dog/junk.png").write_bytes(b"junk")
    (root / "dog/half.jpg").write_bytes(saved("JPEG")[:2500])
    found = look_at(folder(root), TRAIN)
    assert [d.code for d in found] == ["KD511", "KD511"]
    assert "half.jpg" in found[0].message and "junk.png" in found[1].message
    assert look_at(folder(root), TRAIN, look="quick") == []
    for number in range(7):
        (root / f"dog/junk{number}.png").write_bytes(b"junk")
    assert "9 of 313 images looked at can't be read" in look_at(folder(root), TRAIN)[-1].message


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for name in ("cat/._a.png", "cat/._b.jpg", "dog/.DS_Store", "dog/Thumbs.db", "dog/.hidden.png"):
        (root / name).write_bytes(b"not an image")
    for name in ("cat/notes.txt", "cat/more.TXT", "dog/photo.heic", "dog/README"):
        (root / name).write_bytes(b"not an image")
    (root / "cat/.ipynb_checkpoints").mkdir()
    picture().save(root / "cat/.ipynb_checkpoints/a-checkpoint.png")
    (root / "__MACOSX/cat").mkdir(parents=True)
    (root / "__MACOSX/cat/._a.png").touch()
    picture().save(root / "alone.png")
    made = make_loader(folder(root))
    assert made.facts.num_samples == 4 and made.facts.class_names == ("cat", "dog")
    (said,) = made.notices
    (finding,) = look_at(folder(root), TRAIN)
    assert (finding.code, finding.severity, finding.message) == ("KD623", "warning", said)
    assert said.startswith(f"left out of `{root}`: 2 files `._*` (macOS's), 2 files `.txt`, 1 ")
    for kind in ("1 file `.DS_Store`", "1 file `.*` (hidden)", "1 folder `.ipynb_checkpoints`"):
        assert kind in said
    for number in range(5):
        (root / f"cat/1.odd{number}").touch()
    assert make_loader(folder(root)).notices[0].endswith(", 5 of other kinds")


def test_the_words_for_the_rarer_kinds(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "dog/photo.heic").touch()
    (root / "dog/README").touch()
    picture().save(root / "alone.png")
    (said,) = make_loader(folder(root)).notices
    wanted = "1 file `.heic` (not read: save as PNG or JPEG), 1 file without a suffix, 1 image beside the class folders"
    assert said == f"left out of `{root}`: {wanted}"


def test_every_class_without_images_is_told_at_once(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for name in ("ant", "bee"):
        (root / name).mkdir()
    (root / "bee/1.heic").touch()
    found = look_at(folder(root), TRAIN)
    assert [d.code for d in found] == ["KD506", "KD506"]
    assert "ant` has no images" in found[0].message
    assert "bee` has no images, only 1 file `.heic` (not read: save as PNG or JPEG)" in found[1].message


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    scandir = os.scandir

    def closed(place: Any) -> Any:
        if str(place).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(SpecError, match=r"KD506: `.*cat` can't be listed: Permission denied"):
        make_loader(folder(root))


# lists


def listed(place: Path, files: list[str], folders: list[str]) -> Any:
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": [str(place / name) for name in folders]}}
    return make_part(
        "cls", meta_file=[str(place / name) for name in files], image_reader=reader, batch_size=1
    )


def test_all_lists_and_folders_are_told_at_once(tmp_path: Path) -> None:
    place = (*TRAIN, "dataset", "kwargs")
    part = listed(tmp_path, ["a.txt", "b.txt", "c.txt"], ["one", "two", "three"])
    (tmp_path / "a.txt").write_text("x.png 0\n")
    (tmp_path / "three").mkdir()
    assert {(d.code, d.path) for d in look_at(part, TRAIN)} == {
        ("KD506", (*place, "meta_file", 1)),
        ("KD506", (*place, "meta_file", 2)),
        ("KD518", (*place, "image_reader", "kwargs", "image_dir", 0)),
        ("KD518", (*place, "image_reader", "kwargs", "image_dir", 1)),
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name, text in (("a", "x.png 0\nx.png\n"), ("b", "x.png -1\n"), ("c", "../x.png 0\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    found = look_at(part, TRAIN)
    assert [d.code for d in found] == ["KD510", "KD515", "KD513"]
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("x.png 0\ny.png 1\n")
    for name in ("one", "two", "three"):
        picture().save(tmp_path / name / "x.png")
    (missing, _) = look_at(part, TRAIN)
    assert missing.code == "KD511" and "3 images are missing of 6" in missing.message


# constant images


def images(*levels: Any) -> list[torch.Tensor]:
    return [torch.tensor(level, dtype=torch.uint8).reshape(-1, 1, 1).expand(-1, 4, 4) for level in levels]


def test_constant_images() -> None:
    picture_ = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    assert constant_images([]) is None
    assert constant_images([picture_]) is None
    assert constant_images([*images([0, 0, 0]), picture_]) is None
    assert constant_images([picture_, picture_ + 1]) is None
    wanted = [
        (images([0, 0, 0], [0, 0, 0]), "both images looked at are black"),
        (images([255], [255], [255]), "all 3 images looked at are white"),
        (images([7], [7]), "gray of the one value 7"),
        (images([200, 10, 30]), "the image looked at is of the one colour [200, 10, 30]"),
        (images([0], [9]), "both images looked at are of one colour each"),
        ([picture_, picture_.clone()], "both images looked at have the same pixels"),
    ]
    for made, said in wanted:
        assert (constant_images(made) or "").startswith(said) or said in (constant_images(made) or "")


def test_a_constant_set_is_told(tmp_path: Path) -> None:
    for n, kind in enumerate(("cat", "dog")):
        (tmp_path / kind).mkdir()
        # Cut-outs whose picture lies in alpha, on their own background.
        made = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
        made.putalpha(Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * (n + 1)))
        made.save(tmp_path / kind / "x.png")
    (found,) = look_at(folder(tmp_path, background="black"), TRAIN)
    assert (found.code, found.severity, found.path) == ("KD520", "warning", (*TRAIN, "dataset"))
    assert "are black" in found.message
    assert look_at(folder(tmp_path, background="white"), TRAIN) == []
    assert [d.code for d in look_at(make_part("fake"), TRAIN)] == []


def test_a_bmp_whose_header_says_more_than_there_is(tmp_path: Path) -> None:
    data = saved("BMP")
    (tmp_path / "x.bmp").write_bytes(data[:2] + struct.pack("<I", 2 * len(data)) + data[6:])
    # The pixels are all there: what decodes is no damage.
    assert reasons(tmp_path / "x.bmp") == []
