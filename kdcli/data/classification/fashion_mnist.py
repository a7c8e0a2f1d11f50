"""Fashion-MNIST from its four idx files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdcli.data.classification.idx import read_idx
from kdcli.data.describe import FASHION
from kdcli.data.sources import ArrayImages
from kdcli.errors import RunError, SpecError, SpecPath
from kdcli.spec.places import Places

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
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
    limit: int | None = None,
) -> ArrayImages:
    """60,000 training or 10,000 test images of ten classes, uint8 [N, 1, 28, 28].

    root: the folder of the idx files, plain or gzipped (the Debian package's by default). split: that of
    the side (train, test) by default. limit: only the first so many samples. Raises SpecError KD506 where
    the files are missing, RunError KD510 where they are damaged.
    """
    at_root = (*path, "kwargs", "root")
    folder = places.find(root, at_root) if root is not None else DEBIAN
    if root is not None and not folder.is_dir():
        help = f"{places.missing(root, at_root)}; {HOW_TO_GET}"
        raise SpecError.at(at_root, "KD506", f"there is no folder `{root}`", help)
    prefix = "train" if (train if split is None else split == "train") else "t10k"
    images = read_idx(_file(folder, f"{prefix}-images-idx3-ubyte", path), 3)[:limit]
    labels = read_idx(_file(folder, f"{prefix}-labels-idx1-ubyte", path), 1)[:limit]
    if len(images) != len(labels):
        raise RunError.of("KD510", f"`{folder}` has {len(images)} images and {len(labels)} labels")
    if labels.max(initial=0) > 9:
        raise RunError.of("KD510", f"`{folder}` has a label {labels.max()}, and Fashion-MNIST ten classes")
    return ArrayImages(
        images=torch.from_numpy(images.copy()).unsqueeze(1),
        labels=labels.astype(np.int64),
        num_classes=10,
        class_names=FASHION,
    )


def _file(folder: Path, name: str, path: SpecPath) -> Path:
    for place in (folder, folder / "FashionMNIST" / "raw"):
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise SpecError.at(
        (*path, "kwargs", "root"), "KD506", f"Fashion-MNIST is not in `{folder}`: no `{name}.gz`", HOW_TO_GET
    )
