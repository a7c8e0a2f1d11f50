"""The digest of one side of the data: what a run knows its data again by.

It is a hash of the list of samples (names relative to the data's folder, labels, sizes of the files in bytes,
class names), and a few pixels of a few samples. Image files are not read: 200,000 take a second. Images in
memory are hashed, at most `HASHED` bytes of them. The annotations that boxes are measured by count.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kdcli.data.detection.coco_json import read_coco
from kdcli.data.listing import Listing, packed
from kdcli.data.loaders import Loader
from kdcli.data.objects import BatchSource
from kdcli.data.opened import OpenedData
from kdcli.data.probe import probe_of
from kdcli.data.sources import ArrayImages, BadSample, Located, Source
from kdcli.errors import RunError

if TYPE_CHECKING:
    from kdcli.data.detection.coco import CocoDataset

HASHED = 2**29
"""Of images in memory that take more bytes, every n-th is hashed so that these are not more: half a second."""

THREADS = 16
"""As many files are asked for their size at once; a disk of this machine is no slower for it, another's faster."""

UNKNOWN = "-"
MISSING = "missing"
"""Instead of the size of a file that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What one side of the data is. listing: SHA-256 of the list of samples; packed: that list, compressed.

    probe: float32 [n, pixels], None where no sample can be read.
    """

    listing: str
    samples: int
    packed: bytes
    probe: Tensor | None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"listing": self.listing, "samples": self.samples, "probe": self.probe}


def digest_of(opened: OpenedData, loader: Loader, truth: Path | None = None) -> Digest:
    """The digest of one side. loader: its own. truth: the file that test boxes are measured by, if not its own."""
    text = listing_of(opened, truth).text()
    return Digest(
        listing=hashlib.sha256(text).hexdigest(),
        samples=len(opened.source),
        packed=packed(text),
        probe=probe_of(loader),
    )


def listing_of(opened: OpenedData, truth: Path | None = None) -> Listing:
    """The list of samples of one side, the sizes of its files looked up."""
    source = opened.source
    if opened.facts.annotations is not None:
        # It imports torchvision, which commands that read no data don't wait for.
        from kdcli.data.detection.coco import CocoDataset

        assert isinstance(source, CocoDataset)
        file = None if opened.train else truth or Path(source.annotations["file"])
        return _of_boxes(source, None if file is None else _truth(file))
    files = source.located() if isinstance(source, Located) else None
    if files is not None:
        names, contents = relative(*files), sizes(files[0])
    else:
        names, contents = [source.name(i) for i in range(len(source))], _checksums(source)
    labels = getattr(source, "labels", None)
    return Listing(
        kind="images" if files is not None else "arrays",
        classes=opened.facts.class_names,
        names=names,
        labels=[UNKNOWN] * len(names) if labels is None else list(map(str, labels.tolist())),
        contents=contents,
    )


def relative(files: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Each file's name below the nearest of the folders that it lies in."""
    heads = sorted({os.path.join(root, "") for root in roots}, key=len, reverse=True)
    names = []
    for file in files:
        head = next((head for head in heads if file.startswith(head)), None)
        names.append(os.path.relpath(file, roots[0]) if head is None else file[len(head) :])
    return names


def sizes(files: Sequence[str]) -> list[str]:
    """Each file's bytes."""
    parts = [files[start : start + 1000] for start in range(0, len(files), 1000)]
    if len(parts) == 1:
        return _sizes(parts[0])
    with ThreadPoolExecutor(THREADS, thread_name_prefix="kdcli-stat") as pool:
        return [size for part in pool.map(_sizes, parts) for size in part]


def _sizes(files: Sequence[str]) -> list[str]:
    found = []
    for file in files:
        try:
            found.append(str(os.stat(file).st_size))
        except (OSError, ValueError):
            found.append(MISSING)
    return found


def _checksums(source: Source | BatchSource) -> list[str]:
    """CRC-32 of each image in memory, or of each n-th."""
    if not isinstance(source, ArrayImages):
        return [UNKNOWN] * len(source)
    images = source.images.numpy()
    step = max(1, -(-images.nbytes // HASHED))
    return [UNKNOWN if i % step else f"{zlib.crc32(images[i].tobytes()):08x}" for i in range(len(images))]


def _truth(path: Path) -> str:
    """SHA-256 of what a COCO file says of images, categories and boxes, however it is laid out."""
    try:
        file = read_coco(path)
    except RunError:
        return UNKNOWN  # what is wrong with it is told where it is used
    rows = np.column_stack([file.box_images, file.box_categories, file.boxes, file.areas, file.crowd])
    said = [list(file.image_keys), file.sizes.tolist(), list(file.category_keys), list(file.class_names)]
    found = hashlib.sha256(json.dumps(said).encode())
    found.update(rows[np.lexsort(rows.T)].tobytes())
    return found.hexdigest()


def _of_boxes(source: CocoDataset, truth: str | None) -> Listing:
    files = []
    for i in range(len(source)):
        try:
            files.append(source.file(i))
        except BadSample:
            files.append("")
    labels = []
    for image in source.images:
        said = np.array([image.height, image.width, len(image.boxes), len(image.crowds)])
        boxes = np.concatenate([image.boxes.ravel(), image.crowds.ravel()]).astype(np.float64)
        labels.append(f"{zlib.crc32(said.tobytes() + boxes.tobytes()):08x}")
    names, numbers = source.facts.class_names or (), source.annotations["categories"]
    return Listing(
        kind="boxes",
        truth=truth,
        classes=tuple(f"{number} {name}" for number, name in zip(numbers, names, strict=True)),
        names=[image.file_name for image in source.images],
        labels=labels,
        contents=sizes(files),
    )
