"""scikit-learn's 1,797 handwritten digits, 8x8 grey, in a fixed split."""

from __future__ import annotations

import gzip
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdcli.data.describe import DIGITS
from kdcli.data.draws import SPLIT, Ids, uniform
from kdcli.data.sources import ArrayImages
from kdcli.data.transforms.resample import resized
from kdcli.errors import RunError

TEST_SAMPLES = 450


def digits(
    train: bool, *, split: Literal["train", "test"] | None = None, size: int | None = None
) -> ArrayImages:
    """1,347 training or 450 test images of ten classes, uint8 [N, 1, 8, 8]; `size` resamples them.

    The split is stratified and always the same; the one of the side (train, test) by default. Raises
    RunError KD502 without scikit-learn.
    """
    table = _table()
    labels = table[:, 64].astype(np.int64)
    chosen = _split(labels) != (train if split is None else split == "train")
    grey = np.rint(table[chosen, :64] * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(grey.reshape(-1, 1, 8, 8))
    if size is not None:
        images = resized(images, size, size, "bilinear", True)
    return ArrayImages(images=images, labels=labels[chosen], num_classes=10, class_names=DIGITS)


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
    if file.is_file():
        return np.loadtxt(io.BytesIO(gzip.decompress(file.read_bytes())), delimiter=",", ndmin=2)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
