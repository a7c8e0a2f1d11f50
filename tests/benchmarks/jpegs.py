"""Images a second of one core: photographs read, cut to 224 pixels and normalised, to Pillow's decoding alone.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.jpegs FOLDER [ROUNDS]

FOLDER: photographs of 1280x960 pixels and more, at any depth; JPEGs of 500x375 and 1280x960 are made of at most 48 of
them. `as before` decodes with Pillow and transforms image by image. The sides take turns; their processor time is
compared, and the median of the ratios told. The last columns: how far the pixels of `scaled_decode` are from those of
whole images, on average and in the worst image, of 255. A minute.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from kdcli.data import jpeg
from kdcli.data.batches import ImageSamples
from kdcli.data.build import build_loader, build_source, open_source
from kdcli.data.loaders import Loader
from kdcli.spec.schema import DataPart
from tests.benchmarks.measure import Row, machine, median_ratio, table

SIZES = ((500, 375), (1280, 960))
MOST = 48
STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SIDES: dict[str, list[dict[str, Any]]] = {
    "training": [
        {"type": "torch_random_resized_crop", "kwargs": {"size": 224}},
        {"type": "torch_random_horizontal_flip"},
    ],
    "test": [
        {"type": "torch_resize", "kwargs": {"size": 256}},
        {"type": "torch_center_crop", "kwargs": {"size": 224}},
    ],
}


def laid(photographs: Path, place: Path) -> None:
    """JPEGs of each size in one folder a size, in one class."""
    made = 0
    for file in sorted(photographs.rglob("*")):
        if file.suffix.lower() not in (".jpg", ".jpeg") or made == MOST:
            continue
        with Image.open(file) as image:
            if image.mode != "RGB" or image.width < 1280 or image.height < 960:
                continue
            for size in SIZES:
                folder = place / str(size[0]) / "class"
                folder.mkdir(parents=True, exist_ok=True)
                ImageOps.fit(image, size, Image.Resampling.LANCZOS).save(
                    folder / f"{made:03}.jpg", quality=90
                )
        made += 1
    if not made:
        raise SystemExit(f"no JPEG of 1280x960 pixels in {photographs}")


def loader_of(root: Path, transformer: list[dict[str, Any]], **kwargs: Any) -> Loader:
    """Batches of 32, read in this process."""
    whole = [*transformer, {"type": "normalize", "kwargs": STATISTICS}]
    part = DataPart.model_validate(
        {
            "dataset": {
                "type": "image_folder",
                "kwargs": {"root": str(root), "transformer": whole, **kwargs},
            },
            "batch_sampler": {"kwargs": {"batch_size": 32}},
            "dataloader": {"kwargs": {"num_workers": 0}},
        }
    )
    path = ("dataset", "train")
    opened = open_source(build_source(part, train=True, path=path), part, train=True, path=path)
    return build_loader(opened, seed=0)


def rate(loader: Loader) -> float:
    """Images a second of processor time."""
    began = time.process_time()
    images = sum(len(batch["image"]) for batch in loader.batches(0))
    return images / (time.process_time() - began)


def as_before(loader: Loader) -> Callable[[], float]:
    """The rate of a loader that decodes with Pillow and transforms image by image."""
    samples: ImageSamples = loader._reader.source  # type: ignore[attr-defined]
    samples.alone = len(samples.pipeline.transforms)

    def measured() -> float:
        kept = jpeg.same_bits
        jpeg.same_bits = lambda: False  # type: ignore[assignment]
        try:
            return rate(loader)
        finally:
            jpeg.same_bits = kept

    return measured


def plain(root: Path) -> float:
    """Pillow's own decoding, and nothing else."""
    files = sorted(root.rglob("*.jpg"))
    began = time.process_time()
    for file in files:
        with Image.open(file) as image:
            image.load()
    return len(files) / (time.process_time() - began)


def apart(whole: Loader, scaled: Loader) -> tuple[float, float]:
    """The mean distance of pixels, of 255: of all images, and of that with most."""
    std = torch.tensor(STATISTICS["std"]).view(3, 1, 1) * 255
    each = torch.cat(
        [
            ((one["image"] - other["image"]).abs() * std).mean((1, 2, 3))
            for one, other in zip(whole.batches(0), scaled.batches(0), strict=True)
        ]
    )
    return float(each.mean()), float(each.max())


def main(photographs: Path, rounds: int) -> None:
    """Prints one table a size of the images."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        laid(photographs, Path(place))
        for width, height in SIZES:
            root, rows = Path(place) / str(width), []
            for side, transformer in SIDES.items():
                whole = loader_of(root, transformer)
                scaled = loader_of(root, transformer, scaled_decode=True)
                rates = {
                    "before": as_before(loader_of(root, transformer)),
                    "now": lambda whole=whole: rate(whole),
                    "scaled": lambda scaled=scaled: rate(scaled),
                    "Pillow": lambda root=root: plain(root),
                }
                for one, other in (
                    ("now", "before"),
                    ("scaled", "now"),
                    ("before", "Pillow"),
                    ("now", "Pillow"),
                    ("scaled", "Pillow"),
                ):
                    ratio, value = median_ratio(rates, rounds, one, other)
                    rows.append(Row(f"{side}: {one} to {other}", f"{ratio * value:.0f}", ratio))
                mean, most = apart(whole, scaled)
                rows.append(
                    Row(f"{side}: pixels of scaled_decode, of 255", f"{mean:.2f}, at most {most:.2f}")
                )
            print(table(f"JPEGs of {width}x{height}, images/s of one core", rows), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
