"""Datasets held in memory as arrays: Fashion-MNIST from its four idx files, scikit-learn's digits, made-up images."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdcli.data.draws import CONTENT, SPLIT, Ids, generator, uniform
from kdcli.data.facts import DIGITS, FASHION, Labelling
from kdcli.data.sources import ArrayImages
from kdcli.data.transforms.geometry import resized
from kdcli.disk import asking, bytes_in, is_file, is_folder
from kdcli.errors import RunError, SpecError, SpecPath
from kdcli.spec.places import Places
from kdcli.spec.ranges import Count, CountOrNone, Range, Side, Width

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
Samples = Annotated[int, Range(at_least=1, at_most=1000000000)]

HOW_TO_GET = (
    "on Debian and Ubuntu: apt install dataset-fashion-mnist; or fetch the four *-ubyte.gz files from "
    "https://github.com/zalandoresearch/fashion-mnist and set `root` to their folder"
)


def fashion_mnist(
    path: SpecPath,
    places: Places,
    train: bool = True,
    *,
    root: str | None = None,
    split: Literal["train", "test"] | None = None,
    limit: Count | None = None,
    labels: Labelling = "classes",
) -> ArrayImages:
    """60,000 training or 10,000 test images of ten classes, uint8 [N, 1, 28, 28].

    root: the folder of the idx files, plain or gzipped (the Debian package's by default). split: that of
    the side (train, test) by default. limit: only the first so many samples. labels: `none` for images alone.
    Raises SpecError KD506 where the files are missing, RunError KD510 where they are damaged.
    """
    at_root = (*path, "kwargs", "root")
    folder = places.find(root, at_root) if root is not None else DEBIAN
    if root is not None and not is_folder(folder):
        help = f"{places.missing(root, at_root)}; {HOW_TO_GET}"
        raise SpecError.at(at_root, "KD506", f"there is no folder `{root}`", help)
    prefix = "train" if (train if split is None else split == "train") else "t10k"
    images = read_idx(_file(folder, f"{prefix}-images-idx3-ubyte", path), 3)[:limit]
    numbers = read_idx(_file(folder, f"{prefix}-labels-idx1-ubyte", path), 1)[:limit]
    if len(images) != len(numbers):
        raise RunError.of("KD510", f"`{folder}` has {len(images)} images and {len(numbers)} labels")
    if numbers.max(initial=0) > 9:
        raise RunError.of("KD510", f"`{folder}` has a label {numbers.max()}, and Fashion-MNIST ten classes")
    found = ArrayImages(
        images=torch.from_numpy(images.copy()).unsqueeze(1),
        labels=numbers.astype(np.int64),
        num_classes=10,
        class_names=FASHION,
    )
    return found.without_labels() if labels == "none" else found


def _file(folder: Path, name: str, path: SpecPath) -> Path:
    for place in (folder, folder / "FashionMNIST" / "raw"):
        for candidate in (place / name, place / f"{name}.gz"):
            if is_file(candidate):
                return candidate
    raise SpecError.at(
        (*path, "kwargs", "root"), "KD506", f"Fashion-MNIST is not in `{folder}`: no `{name}.gz`", HOW_TO_GET
    )


LIMIT_BYTES = 2**31
"""The most that a header may declare."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes that the file holds; exactly as long as its header says.

    Raises RunError KD510 for another magic number, type, number of dimensions or length.
    """
    with asking(path):
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    try:
        with opened as file:
            magic = file.read(4)
            if magic[:3] != b"\0\0\x08" or len(magic) != 4:
                raise _wrong(path, "it does not start like an idx file of bytes")
            if magic[3] != dimensions:
                raise _wrong(path, f"it has {magic[3]} dimensions instead of {dimensions}")
            header = file.read(4 * dimensions)
            if len(header) != 4 * dimensions:
                raise _wrong(path, "its header is cut short")
            shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4"))
            length = math.prod(shape)
            if length > LIMIT_BYTES:
                raise _wrong(path, f"its header declares {length:,} bytes")
            data = file.read(length + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as reason:
        raise _wrong(path, f"it is damaged ({reason})") from reason
    if len(data) != length:
        held = "more" if len(data) > length else f"{len(data):,}"
        raise _wrong(path, f"its header declares {length:,} bytes and {held} follow")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _wrong(path: Path, what: str) -> RunError:
    return RunError.of("KD510", f"`{path}` can't be read: {what}", "fetch the file again")


TEST_SAMPLES = 450


def digits(
    train: bool,
    *,
    split: Literal["train", "test"] | None = None,
    size: Side | None = None,
    limit: Count | None = None,
    labels: Labelling = "classes",
) -> ArrayImages:
    """1,347 training or 450 test images of ten classes, uint8 [N, 1, 8, 8]; `size` resamples them.

    The split is stratified and always the same; the one of the side (train, test) by default. limit: only the
    first so many samples. labels: `none` for images alone. Raises RunError KD502 without scikit-learn.
    """
    table = _table()
    numbers = table[:, 64].astype(np.int64)
    chosen = np.flatnonzero(_split(numbers) != (train if split is None else split == "train"))[:limit]
    grey = np.rint(table[chosen, :64] * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(grey.reshape(-1, 1, 8, 8))
    if size is not None:
        images = resized(images, size, size, "bilinear", True)
    found = ArrayImages(images=images, labels=numbers[chosen], num_classes=10, class_names=DIGITS)
    return found.without_labels() if labels == "none" else found


def _split(labels: Ids) -> NDArray[np.bool_]:
    """bool [N]: which samples are test samples, an equal share of each class."""
    order = uniform(0, 0, np.arange(len(labels)), 1, stream=SPLIT)[:, 0]
    place = np.empty(len(labels))
    for label in range(10):
        members = np.flatnonzero(labels == label)
        ranked = members[np.argsort(order[members], kind="stable")]
        place[ranked] = (np.arange(len(members)) + 0.5) / len(members)
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(place, kind="stable")[:TEST_SAMPLES]] = True
    return test


def _table() -> NDArray[np.float64]:
    """float64 [1797, 65]: 64 pixels in 0..16 and the label."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise RunError.of(
            "KD502",
            "the `digits` dataset needs scikit-learn, which is not installed",
            "pip install 'kdcli[demo]'",
        )
    # Read straight from the package's data: importing scikit-learn takes longer than a training epoch.
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if is_file(file):
        return np.loadtxt(io.BytesIO(gzip.decompress(bytes_in(file))), delimiter=",", ndmin=2)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def fake(
    train: bool,
    *,
    num_samples: Samples = 256,
    num_classes: Width = 10,
    shape: list[Side] = [3, 32, 32],  # noqa: B006
    noise: Annotated[float, Range(at_least=0, at_most=100)] = 0.2,
    seed: CountOrNone | None = None,
    labels: Labelling = "classes",
) -> ArrayImages:
    """uint8 [num_samples, *shape]: a smooth pattern of the class, with Gaussian noise of its own.

    Patterns depend on num_classes and shape only, so that splits of different `seed` (0 for training, 1 for
    test by default) share them. Labels go round the classes. noise is the standard deviation, 1 being the
    whole range. labels: `none` for images alone.
    """
    if len(shape) != 3 or min(shape) < 1 or num_samples < 1 or num_classes < 1:
        raise ValueError("`shape` must be [channels, height, width], and every size positive")
    channels, height, width = shape
    numbers = np.arange(num_samples, dtype=np.int64) % num_classes
    rng = generator(0, 0, num_classes, stream=CONTENT)
    phase, turns = rng.random((2, num_classes, channels, 2, 1))
    y, x = np.arange(height) / height, np.arange(width) / width
    waves_y, waves_x = (
        np.cos(2 * np.pi * ((1 + 2 * turns[:, :, i]) * axis + phase[:, :, i])) for i, axis in ((0, y), (1, x))
    )
    patterns = 0.5 + 0.2 * (waves_y[:, :, :, None] + waves_x[:, :, None, :])
    grain = generator(
        int(not train) if seed is None else seed, 1, num_samples, stream=CONTENT
    ).standard_normal((num_samples, *shape), dtype=np.float32)
    pixels = np.clip(patterns[numbers] + noise * grain, 0, 1)
    found = ArrayImages(
        images=torch.from_numpy(np.rint(pixels * 255).astype(np.uint8)),
        labels=numbers,
        num_classes=num_classes,
    )
    return found.without_labels() if labels == "none" else found
