"""Numbers of more than 8 bits and alpha: read by the rule of the spec, or refused with the line to write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from kdcli.data.image_readers import OpencvReader, PillowReader
from kdcli.data.sources import BadSample
from kdcli.errors import RunError, SpecError
from kdcli.spec.places import HERE
from tests.data.conftest import look_at, make_loader, make_part

READER = ("dataset", "train", "dataset", "kwargs", "image_reader")
KINDS = [PillowReader, OpencvReader]


def read(file: Path, kind: Any = PillowReader, **kwargs: Any) -> Any:
    """[H, W, C] as lists."""
    made = kind(READER, HERE, image_dir=str(file.parent), **kwargs)
    return made.read(str(file)).permute(1, 2, 0).tolist()


def refusal(file: Path, kind: Any = PillowReader, **kwargs: Any) -> str:
    with pytest.raises(BadSample) as error:
        read(file, kind, **kwargs)
    assert error.value.name == str(file) and "damaged" not in error.value.reason
    return error.value.reason


def gray(rows: list[list[int]]) -> list[list[list[int]]]:
    return [[[level] * 3 for level in row] for row in rows]


def png_16(numbers: Any, colour_type: int, more: bytes = b"") -> bytes:
    """A PNG file of 16 bits a channel, which Pillow does not write; more: chunks before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = np.shape(numbers)[:2]
    rows = b"".join(b"\0" + np.array(row, dtype=">u2").tobytes() for row in numbers)
    header = struct.pack(">2I5B", width, height, 16, colour_type, 0, 0, 0)
    clear = chunk(b"tRNS", more) if more else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + clear
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# deep numbers


@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_mapped_rounded_and_clipped(tmp_path: Path, kind: Any) -> None:
    # 0.1 x 255 = 25.5 in decimals; as a float32 a little more: 26. 0.498 x 255 = 126.99.
    numbers = np.array([[0, 0.1, 0.498], [1, -3, np.inf]], dtype=np.float32)
    Image.fromarray(numbers).save(tmp_path / "x.tif")
    wanted = gray([[0, 26, 127], [255, 0, 255]])
    assert read(tmp_path / "x.tif", kind, value_range=[0, 1]) == wanted
    # (0 - -1) / 2 x 255 = 127.5: a half goes up.
    assert read(tmp_path / "x.tif", kind, value_range=[-1, 1])[0][0] == [128] * 3
    said = refusal(tmp_path / "x.tif", kind)
    assert "mode is F" in said and "from -3 to 1" in said and "`value_range: [-3, 1]`" in said


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_bits_in_sixteen(tmp_path: Path, kind: Any) -> None:
    numbers = np.array([[0, 4095], [2048, 1000]], dtype=np.uint16)
    # 2048 x 255 / 4095 = 127.53; 1000 x 255 / 4095 = 62.27; 2048 x 255 / 65535 = 7.97
    for name, mode in (("x.png", "I;16"), ("x.tif", "I;16")):
        Image.fromarray(numbers).save(tmp_path / name)
        assert read(tmp_path / name, kind, value_range=[0, 4095]) == gray([[0, 255], [128, 62]])
        assert read(tmp_path / name, kind, value_range=[0, 65535])[1][0] == [8] * 3
        said = refusal(tmp_path / name, kind)
        assert f"mode is {mode}" in said and "from 0 to 4095" in said
        assert "`value_range: [0, 4095]`" in said and "[0, 65535]" in said and "image reader's kwargs" in said
    Image.fromarray(numbers.astype(np.int32)).save(tmp_path / "i.tif")
    assert read(tmp_path / "i.tif", kind, value_range=[0, 4095]) == gray([[0, 255], [128, 62]])
    assert "mode is I," in refusal(tmp_path / "i.tif", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_range_is_not_guessed_either(tmp_path: Path, kind: Any) -> None:
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert "`value_range: [0, 65535]` in" in refusal(tmp_path / "x.png", kind)
    assert read(tmp_path / "x.png", kind, value_range=[0, 65535]) == gray([[0, 255]])


@pytest.mark.parametrize("kind", KINDS)
def test_colours_of_sixteen_bits_keep_their_low_bytes(tmp_path: Path, kind: Any) -> None:
    numbers = np.array([[[4095, 0, 2048], [1000, 17, 255]]])
    (tmp_path / "x.png").write_bytes(png_16(numbers, 2))
    (tmp_path / "x.ppm").write_bytes(b"P6\n2 1\n65535\n" + numbers.astype(">u2").tobytes())
    for name in ("x.png", "x.ppm"):
        # 17 x 255 / 4095 = 1.06; 255 x 255 / 4095 = 15.88
        assert read(tmp_path / name, kind, value_range=[0, 4095]) == [[[255, 0, 128], [62, 1, 16]]]
        said = refusal(tmp_path / name, kind)
        assert "mode is RGB;16" in said and "from 0 to 4095" in said and "`value_range: [0, 4095]`" in said


def test_alpha_of_deep_images(tmp_path: Path) -> None:
    with_alpha = [[[4095, 0, 0, 65535], [4095, 0, 0, 0]]]
    (tmp_path / "x.png").write_bytes(png_16(with_alpha, 6))
    assert "background" in refusal(tmp_path / "x.png", value_range=[0, 4095])
    made = read(tmp_path / "x.png", value_range=[0, 4095], background=[1, 2, 3])
    assert made == [[[255, 0, 0], [1, 2, 3]]]
    (tmp_path / "key.png").write_bytes(png_16([[7, 4095]], 0, struct.pack(">H", 7)))
    assert read(tmp_path / "key.png", value_range=[0, 4095], background=9) == gray([[9, 255]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_same_however_deep_it_is_written(tmp_path: Path, kind: Any) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = np.dstack([levels, levels[::-1], levels.T])
    Image.fromarray(levels).save(tmp_path / "8.png")
    Image.fromarray(colours).save(tmp_path / "colour8.png")
    wanted, in_colour = (read(tmp_path / name, kind) for name in ("8.png", "colour8.png"))
    Image.fromarray((levels / 255).astype(np.float32)).save(tmp_path / "f.tif")
    assert read(tmp_path / "f.tif", kind, value_range=[0, 1]) == wanted
    for highest in (4095, 65535):
        deep = np.rint(levels / 255 * highest).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / "16.png")
        Image.fromarray(deep.astype(np.int32)).save(tmp_path / "32.tif")
        (tmp_path / "colour16.png").write_bytes(png_16(np.rint(colours / 255 * highest), 2))
        for name in ("16.png", "32.tif"):
            assert read(tmp_path / name, kind, value_range=[0, highest]) == wanted
        assert read(tmp_path / "colour16.png", kind, value_range=[0, highest]) == in_colour


def test_nan_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "x.tif")
    assert "1 of its numbers are NaN" in refusal(tmp_path / "x.tif", value_range=[0, 1])


def test_eight_bits_are_no_concern_of_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100]], dtype=np.uint8)).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png", value_range=[0, 4095], background=7) == gray([[0, 100]])


def test_a_turned_image_is_turned_whatever_its_numbers(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    numbers = np.array([[0, 4095]], dtype=np.uint16)
    Image.fromarray(numbers).save(tmp_path / "x.png", exif=exif)
    assert read(tmp_path / "x.png", OpencvReader, value_range=[0, 4095]) == gray([[0], [255]])
    assert read(tmp_path / "x.png", value_range=[0, 4095]) == gray([[0, 255]])


def test_a_mode_that_is_not_read_is_named(tmp_path: Path) -> None:
    Image.new("LAB", (2, 2)).save(tmp_path / "x.tif")
    assert "its mode is LAB, which is not read" in refusal(tmp_path / "x.tif")


# alpha


def half_transparent(mode: str) -> Image.Image:
    made = Image.new("RGBA", (3, 1), (200, 10, 30, 255))
    made.putpixel((1, 0), (200, 10, 30, 0))
    made.putpixel((2, 0), (200, 10, 30, 51))
    return made.convert(mode)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_lies_on_the_background(tmp_path: Path, kind: Any) -> None:
    half_transparent("RGBA").save(tmp_path / "x.png")
    # 51/255 = 1/5: 0.2 x 200 + 0.8 x 255 = 244, 0.2 x 10 + 204 = 206, 0.2 x 30 + 204 = 210
    wanted = [[[200, 10, 30], [255, 255, 255], [244, 206, 210]]]
    for white in ("white", 255, [255, 255, 255]):
        assert read(tmp_path / "x.png", kind, background=white) == wanted
    assert read(tmp_path / "x.png", kind, background="black")[0][1:] == [[0, 0, 0], [40, 2, 6]]
    swapped = read(tmp_path / "x.png", kind, background=[1, 2, 3], color_mode="BGR")
    assert swapped[0][:2] == [[30, 10, 200], [3, 2, 1]]
    assert read(tmp_path / "x.png", kind, background="white", color_mode="GRAY")[0][1] == [255]
    said = refusal(tmp_path / "x.png", kind)
    assert "66.7 % of its pixels are transparent" in said and "`background: white`" in said


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_alpha(tmp_path: Path, kind: Any, mode: str) -> None:
    if mode == "P":
        made = Image.new("P", (2, 1))
        made.putpalette([10, 20, 30, 40, 50, 60])
        made.putdata([0, 1])
        made.save(tmp_path / "x.png", transparency=1)
        opaque, clear = [10, 20, 30], [255, 255, 255]
    else:
        half_transparent(mode).save(tmp_path / "x.png")
        opaque = [200, 10, 30] if mode == "RGBA" else [69] * 3
        clear = [255, 255, 255]
    assert read(tmp_path / "x.png", kind, background="white")[0][:2] == [opaque, clear]
    assert "transparent" in refusal(tmp_path / "x.png", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_that_hides_nothing_changes_nothing(tmp_path: Path, kind: Any) -> None:
    for mode, wanted in (("RGBA", [200, 10, 30]), ("LA", [69] * 3)):
        Image.new("RGBA", (2, 1), (200, 10, 30, 255)).convert(mode).save(tmp_path / "x.png")
        assert read(tmp_path / "x.png", kind) == [[wanted, wanted]]
        assert read(tmp_path / "x.png", kind, background="black") == [[wanted, wanted]]


# as a spec has it


@pytest.mark.parametrize(
    "wrong",
    [
        {"value_range": [1, 0]},
        {"value_range": [0, 0]},
        {"value_range": [0, float("nan")]},
        {"value_range": [0]},
        {"value_range": 255},
        {"background": 256},
        {"background": [0, 0]},
        {"background": "grey"},
        {"background": True},
        {"background": 0.5},
    ],
)
def test_a_rule_that_is_none(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        PillowReader(READER, HERE, image_dir=str(tmp_path), **wrong)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").touch()
    with pytest.raises(SpecError, match=f"KD505.*`{name}` must be"):
        make_loader(make_part("image_folder", root=str(tmp_path), **wrong))


def folder_of(place: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
    return place


def test_an_image_folder_has_the_rule_too(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[0, 4095], [2048, 9]], dtype=np.uint16))
    root = str(folder_of(tmp_path, {"cat/a.png": deep, "dog/b.png": half_transparent("RGBA").resize((2, 2))}))
    with pytest.raises(
        RunError, match=r"KD511.*cat/a.png.*`value_range: \[0, 4095\]`.*the data set's kwargs"
    ):
        next(make_loader(make_part("image_folder", root=root)).batches(0))
    made = make_loader(
        make_part("image_folder", root=root, value_range=[0, 4095], background="white", batch_size=2)
    )
    (batch,) = made.batches(0)
    read = {int(label): image for label, image in zip(batch["labels"], batch["image"], strict=True)}
    assert read[0][0, 1, 0] * 255 == 128


def test_torchvisions_folders_refuse_as_well(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[0, 4095], [2048, 9]], dtype=np.uint16))
    root = str(folder_of(tmp_path, {"cat/a.png": deep}))
    with pytest.raises(RunError, match=r"KD511.*value_range.*`image_folder`"):
        next(make_loader(make_part("torchvision.ImageFolder", root=root)).batches(0))
    Image.new("L", (2, 2), 9).save(tmp_path / "cat/a.png")
    (tmp_path / "cat/b.png").write_bytes(b"junk")
    found = look_at(make_part("torchvision.ImageFolder", root=root), ("dataset", "train"))
    assert [d.code for d in found] == ["KD511", "KD520"] and "cat/b.png" in found[0].message
    (tmp_path / "cat/b.png").unlink()
    made = make_loader(make_part("torchvision.ImageFolder", root=root, batch_size=1))
    assert torch.equal(next(made.batches(0))["image"], torch.full((1, 3, 2, 2), 9 / 255))


def listed(place: Path, count: int, **reader: Any) -> Any:
    """A part that lists so many images `0.png`, ..."""
    (place / "list.txt").write_text("".join(f"{n}.png {n % 2}\n" for n in range(count)))
    component = {"type": "fs_pillow", "kwargs": {"image_dir": str(place), **reader}}
    return make_part("cls", meta_file=str(place / "list.txt"), image_reader=component, batch_size=1)


def test_validate_tells_the_range_of_all_of_them_at_the_reader(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n, highest in enumerate((900, 70, 4000)):
        numbers = rng.integers(0, highest, (4, 4)).astype(np.uint16)
        numbers[0, 0] = highest
        Image.fromarray(numbers).save(tmp_path / f"{n}.png")
    (found,) = look_at(listed(tmp_path, 3), ("dataset", "train"))
    assert found.code == "KD511" and found.path == READER and found.severity == "error"
    assert "0.png`, and 2 more of 3 images, can't be read" in found.message
    assert "to 4000" in found.message and "`value_range: [0, 4095]`" in found.message
    assert look_at(listed(tmp_path, 3, value_range=[0, 4095]), ("dataset", "train")) == []


def test_validate_tells_of_the_one_transparent_image(tmp_path: Path) -> None:
    for n in range(4):
        made = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert("RGBA")
        if n == 3:
            made.putpixel((0, 0), (0, 0, 0, 0))
        made.save(tmp_path / f"{n}.png")
    (found, same) = look_at(listed(tmp_path, 4), ("dataset", "train"))
    assert found.code == "KD511" and found.path == READER and "3.png" in found.message
    assert same.code == "KD520"
    assert look_at(listed(tmp_path, 3), ("dataset", "train"))[0].code == "KD520"
    Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(tmp_path / "1.png")
    assert look_at(listed(tmp_path, 4, background="white"), ("dataset", "train")) == []


def test_what_pillow_reads_by_half_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_16([[[1, 65535]]], 4))
    said = refusal(tmp_path / "x.png", value_range=[0, 4095])
    assert "only half of the bits can be read" in said and "save it as" in said
