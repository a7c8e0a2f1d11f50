"""JPEGs by torchvision are Pillow's bit for bit; scaled decoding changes little and only where it is asked for."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.io  # noqa: F401  (only an imported torchvision decodes)
from numpy.typing import NDArray
from PIL import Image

from kdcli.data import jpeg
from kdcli.data.image_readers import PillowReader, decoded
from kdcli.data.sources import BadSample
from kdcli.errors import SpecError
from kdcli.spec.places import HERE

PATH = ("dataset", "train", "dataset")
KINDS: list[dict[str, Any]] = [
    *jpeg.KINDS,
    {"quality": 20, "optimize": True},
    {"quality": 100, "subsampling": "4:4:0"},
    {"mode": "L"},
    {"mode": "CMYK"},
]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Soft shapes and some grain, as photographs have them."""
    draws = np.random.default_rng(seed)
    rough = Image.fromarray(draws.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    soft = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    return Image.fromarray((soft + draws.integers(-6, 7, soft.shape)).clip(0, 255).astype(np.uint8))


def coded(image: Image.Image, mode: str = "RGB", **kind: Any) -> bytes:
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", **kind)
    return file.getvalue()


def by_pillow(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_torchvision_gives_pillows_bits(tmp_path: Path, kind: dict[str, Any]) -> None:
    file = tmp_path / "x.jpg"
    for height, width in ((33, 47), (8, 16), (1, 1), (5, 130)):
        file.write_bytes(coded(picture(height, width), **kind))
        assert (decoded(str(file), "RGB") == by_pillow(file)).all()
        assert (decoded(str(file), "BGR") == by_pillow(file)[:, :, ::-1]).all()
        assert jpeg.torchvision_pixels(str(file)) is not None or kind == {"mode": "CMYK"}


def damaged(data: bytes, draws: random.Random) -> bytes:
    """A file that is cut off, has a changed bit, or misses some bytes."""
    at = draws.randrange(2, len(data))
    changed = bytes([data[at] ^ 1 << draws.randrange(8)])
    return draws.choice([data[:at], data[:at] + changed + data[at + 1 :], data[:at] + data[at + 9 :]])


def test_what_pillow_refuses_is_refused_for_the_same_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, file, refused = random.Random(1), tmp_path / "x.jpg", 0
    whole = coded(picture(24, 40))

    def outcome() -> Any:
        try:
            return decoded(str(file), "RGB").tolist()
        except BadSample as reason:
            return reason.reason

    for _ in range(60):
        file.write_bytes(damaged(whole, draws))
        ours = outcome()
        with monkeypatch.context() as without:
            without.delitem(sys.modules, "torchvision.io")
            assert ours == outcome()
        refused += isinstance(ours, str)
    assert 15 < refused < 60


def test_a_decoder_of_other_bits_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, own = tmp_path / "x.jpg", jpeg._decoded
    file.write_bytes(coded(picture(9, 9)))

    def other(data: torch.Tensor) -> NDArray[np.uint8]:
        pixels = own(data).copy()
        pixels[-1, -1, 0] ^= 1
        return pixels

    assert jpeg.same_bits() and jpeg.torchvision_pixels(str(file)) is not None
    monkeypatch.setattr(jpeg, "_decoded", other)
    jpeg.same_bits.cache_clear()
    try:
        assert not jpeg.same_bits() and jpeg.torchvision_pixels(str(file)) is None
        assert (decoded(str(file), "RGB") == by_pillow(file)).all()
    finally:
        jpeg.same_bits.cache_clear()


def test_nothing_waits_for_torchvision_to_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.jpg").write_bytes(coded(picture(9, 9)))
    monkeypatch.delitem(sys.modules, "torchvision.io")
    assert jpeg.torchvision_pixels(str(tmp_path / "x.jpg")) is None


def test_an_image_is_reduced_as_far_as_what_is_seen_of_it_stays_large_enough() -> None:
    assert jpeg.reduction_for((960, 1280), (256, 341)) == 2
    assert jpeg.reduction_for((375, 500), (256, 341)) == 1
    assert jpeg.reduction_for((448, 900), (224, 224)) == 2
    assert jpeg.reduction_for((447, 900), (224, 224)) == 1
    assert jpeg.reduction_for((4000, 3000), (224, 224)) == 8


def photographs(place: Path, sides: list[tuple[int, int]]) -> Path:
    for number, (height, width) in enumerate(sides):
        folder = place / "abc"[number % 3]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(coded(picture(height, width, number), quality=90))
    return place


RESIZED = [
    {"type": "torch_resize", "kwargs": {"size": 24}},
    {"type": "torch_center_crop", "kwargs": {"size": 20}},
]
CUT = [
    {"type": "torch_random_resized_crop", "kwargs": {"size": 20}},
    {"type": "torch_random_horizontal_flip"},
]


@pytest.mark.parametrize(("transformer", "bound"), [(RESIZED, 0.04), (CUT, 0.04)])
def test_scaled_decoding_changes_little(
    tmp_path: Path, part: Any, loader: Any, transformer: list[dict[str, Any]], bound: float
) -> None:
    root = photographs(tmp_path, [(97, 131), (200, 150), (64, 64), (231, 333), (120, 75), (30, 40)])

    def images(**kwargs: Any) -> torch.Tensor:
        made = loader(part("image_folder", root=str(root), transformer=transformer, batch_size=6, **kwargs))
        [batch] = made.batches(1)
        return batch["image"][batch["indices"].argsort()]

    whole, scaled = images(), images(scaled_decode=True)
    apart = (whole - scaled).abs().mean((1, 2, 3))
    assert whole.shape == scaled.shape and 0 < apart.max() < bound
    # The last in the order of the folders has 30x40 pixels, which is never reduced.
    assert apart[5] == 0
    assert torch.equal(scaled, images(scaled_decode=True, dataloader={"num_workers": 2}))
    assert torch.equal(whole, images(scaled_decode=False))


def test_a_reduced_image_is_read_at_half_its_size(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(coded(picture(75, 101), quality=90))
    reader = PillowReader(PATH, HERE, image_dir=str(tmp_path), scaled_decode=True)
    pixels, whole, by = reader.read_reduced(str(file), lambda height, width: 2 if height == 75 else 1)
    assert (tuple(pixels.shape), whole, by) == ((3, 38, 51), (75, 101), 2)
    assert tuple(reader.read(str(file)).shape) == (3, 75, 101)


def test_a_crop_of_a_reduced_image_is_the_same_part_of_it() -> None:
    from kdcli.data.draws import Draws
    from kdcli.data.transforms.geometry import RandomResizedCrop

    # A picture whose red is the row and whose green is the column shows where a crop lies.
    rows, columns = torch.meshgrid(torch.arange(240), torch.arange(200), indexing="ij")
    whole = torch.stack([rows, columns, rows])[None].to(torch.float32)
    halved = torch.nn.functional.avg_pool2d(whole, 2)
    cut = RandomResizedCrop(size=16, scale=[0.3, 0.6])
    for sample in range(20):
        draws = Draws(3, 0, np.array([sample]))
        assert (cut(whole, draws) - cut.of_reduced(halved, (240, 200), 2, draws)).abs().max() < 2.01


def test_scaled_decoding_is_refused_where_it_can_do_nothing(tmp_path: Path, part: Any, loader: Any) -> None:
    root = photographs(tmp_path, [(64, 64)] * 3)
    side = part("image_folder", root=str(root), scaled_decode=True, dataloader={"in_memory": True})
    with pytest.raises(SpecError, match="KD292"):
        loader(side)
    readers = {"type": "fs_pillow", "kwargs": {"image_dir": str(root), "scaled_decode": True}}
    with pytest.raises(SpecError, match="scaled_decode` is for images with classes"):
        loader(part("coco", meta_file="none.json", image_reader=readers))
