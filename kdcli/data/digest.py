"""The digest of one side of the data, by which a resumed run sees whether its data has changed.

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
from kdcli.data.loaders import Loader
from kdcli.data.sources import ArrayImages, BadSample, BatchSource, Located, OpenedData, Source
from kdcli.errors import RunError

if TYPE_CHECKING:
    from kdcli.data.detection.coco import CocoDataset
import gzip
from collections import Counter
from dataclasses import field
from itertools import pairwise
from typing import NamedTuple

import torch

HASHED = 2**29
"""Of images in memory that take more bytes, every n-th is hashed so that these are not more: half a second."""

THREADS = 16
"""How many files are asked for their size at once: a local disk is no slower for it, a network's faster."""

UNKNOWN = "-"
MISSING = "missing"
"""Stands in place of the size of a file that does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The digest of one side. listing: SHA-256 of the list of samples; packed: that list, compressed.

    probe: float32 [n, pixels], None where no sample can be read. images: SHA-256 of what the list says of the images,
    without labels and classes.
    """

    listing: str
    samples: int
    packed: bytes
    probe: Tensor | None
    images: str

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"listing": self.listing, "samples": self.samples, "probe": self.probe}


def digest_of(opened: OpenedData, loader: Loader, truth: Path | None = None) -> Digest:
    """The digest of one side. loader: its own. truth: the file that test boxes are measured by, if not its own."""
    listing = listing_of(opened, truth)
    text = listing.text()
    return Digest(
        listing=hashlib.sha256(text).hexdigest(),
        samples=len(opened.source),
        packed=packed(text),
        probe=probe_of(loader),
        images=listing.images(),
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
    """The size of each file in bytes, as text."""
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
        return UNKNOWN  # what is wrong with it is reported where it is used
    rows = np.column_stack([file.box_images, file.box_categories, file.boxes, file.areas, file.crowd])
    said = [list(file.image_keys), file.sizes.tolist(), list(file.category_keys), list(file.class_names)]
    found = hashlib.sha256(json.dumps(said).encode())
    found.update(rows[np.lexsort(rows.T)].tobytes())
    return found.hexdigest()


def _of_boxes(source: CocoDataset, truth: str | None) -> Listing:
    files = []
    for i in range(len(source) if source.in_files else 0):
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
        contents=sizes(files) if source.in_files else [UNKNOWN] * len(source),
    )


FORMAT = 1
LEVEL = 3
"""Of gzip: of ImageNet's training list 10.7 MB in half a second; level 9 gives 9.3 MB in four."""

"""What a list is of: image files with classes, images in memory with classes, image files with boxes."""


class Other(NamedTuple):
    """A sample that is in two lists, with its value before and now."""

    name: str
    before: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Samples in their order, one entry of each list a sample.

    names: relative to the data's folder. labels: the class's number; of boxes a checksum. contents: the bytes of
    the file or a checksum of the pixels, "-" where neither is known. classes: the names in the order of their
    numbers. truth: a checksum of the annotations that boxes are measured by, None where there are none.
    """

    kind: str
    classes: tuple[str, ...] | None
    truth: str | None = None
    names: Sequence[str]
    labels: Sequence[str]
    contents: Sequence[str]

    def text(self) -> bytes:
        """The list as tab-separated lines, after one of JSON; equal lists give equal bytes."""
        said = {"format": FORMAT, "kind": self.kind, "classes": self.classes, "truth": self.truth}
        head = json.dumps(said)
        rows = map("\t".join, zip(self.labels, self.contents, map(_escaped, self.names), strict=True))
        # Names of files may hold bytes that are no UTF-8: Python keeps each as a lone surrogate.
        return "\n".join([head, *rows]).encode("utf-8", "surrogatepass")

    def images(self) -> str:
        """SHA-256 of the samples' names and contents in their order: what a network without labels is shown."""
        rows = map("\t".join, zip(self.contents, map(_escaped, self.names), strict=True))
        return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()


def packed(text: bytes) -> bytes:
    """A list's text compressed; equal texts give equal bytes."""
    return gzip.compress(text, LEVEL, mtime=0)


def unpacked(data: bytes) -> bytes | None:
    """The text that was compressed by `packed`; None where the bytes are damaged."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def listing_from(text: bytes) -> Listing:
    """The Listing of a text made by `Listing.text`; raises ValueError for any other text."""
    head, *rows = text.decode("utf-8", "surrogatepass").split("\n")
    said = json.loads(head)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError("no list of samples")
    columns = list(zip(*(row.split("\t", 2) for row in rows), strict=True)) or [(), (), ()]
    labels, contents, names = columns
    return Listing(
        kind=str(said["kind"]),
        classes=None if said["classes"] is None else tuple(said["classes"]),
        truth=said["truth"],
        names=[_plain(name) for name in names],
        labels=labels,
        contents=contents,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How two lists differ. ordered: the same samples come in another order; classes: the names are others.

    truth: what is measured by is another.
    """

    came: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)
    labels: list[Other] = field(default_factory=list)
    contents: list[Other] = field(default_factory=list)
    reordered: bool = False
    classes: bool = False
    truth: bool = False


def changes(before: Listing, now: Listing) -> Changes:
    """The samples added, removed or changed between two lists; a name that is there several times counts each time."""
    old_names, new_names = _made_unique(before.names), _made_unique(now.names)
    old, new = ({name: at for at, name in enumerate(names)} for names in (old_names, new_names))
    both = [(before.names[place], place, new[name]) for name, place in old.items() if name in new]
    labels, contents = (
        [Other(name, was[i], is_[j]) for name, i, j in both if was[i] != is_[j]]
        for was, is_ in ((before.labels, now.labels), (before.contents, now.contents))
    )
    places = [place for _, _, place in both]
    return Changes(
        came=[now.names[place] for name, place in new.items() if name not in old],
        went=[before.names[place] for name, place in old.items() if name not in new],
        labels=labels,
        contents=contents,
        reordered=any(one > other for one, other in pairwise(places)),
        classes=before.classes != now.classes,
        truth=before.truth != now.truth,
    )


def _made_unique(names: Sequence[str]) -> Sequence[str]:
    """The names, a repeated one followed by NUL and how often it came before; no file's name holds a NUL."""
    if len(set(names)) == len(names):
        return names
    seen: Counter[str] = Counter()
    apart = []
    for name in names:
        apart.append(f"{name}\0{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return apart


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n") if "\\" in name or "\n" in name else name


def _plain(name: str) -> str:
    if "\\" not in name:
        return name
    return "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\"))


PROBED = 8
"""How many samples are looked at, evenly spread."""

PIXELS = 256
"""How many numbers are kept of each."""

TOLERANCE = 1e-3


def probe_of(loader: Loader) -> Tensor | None:
    """float32 [n, pixels], the samples in their first view; None where they can't be read."""
    batch = loader.some(probed_ids(loader.facts.num_samples or 0))
    if not batch:
        return None
    pixels = batch["image"].flatten(1).float()
    places = torch.linspace(0, pixels.shape[1] - 1, min(PIXELS, pixels.shape[1])).long()
    return torch.as_tensor(pixels[:, places])


def probed_ids(samples: int) -> list[int]:
    """Indices of the samples that are looked at, of so many."""
    ids: list[int] = np.unique(np.linspace(0, samples - 1, PROBED).astype(np.int64)).tolist()
    return ids


def other_pixels(kept: Any, probe: Tensor | None) -> list[int] | None:
    """Places in a probe of samples whose pixels differ from the kept probe's; None where the two can't be compared."""
    if kept is None or probe is None:
        return [] if kept is None and probe is None else None
    before = torch.as_tensor(kept)
    if before.shape != probe.shape:
        return None
    differs = ~((before - probe).abs().amax(1) <= TOLERANCE)
    return [int(place) for place in differs.nonzero()[:, 0]]


EXAMPLES = 3
"""How many names are listed of each kind of change."""

LONGEST = 120
"""A longer name is cut to its last characters."""


def in_words(changes: Changes, before: Listing, now: Listing) -> list[str]:
    """The difference in words; the order of the samples only where nothing else differs."""
    thing = "sample" if now.kind == "arrays" else "image"
    phrases = []
    if changes.came:
        phrases.append(f"{_count(changes.came, thing)} came ({names_in_words(changes.came)})")
    if changes.went:
        phrases.append(f"{_count(changes.went, thing)} went ({names_in_words(changes.went)})")
    if changes.labels:
        several = len(changes.labels) > 1
        if now.kind == "boxes":
            what = f"{'have' if several else 'has'} other boxes ({names_in_words([o.name for o in changes.labels])})"
        else:
            examples = [f"{_shown(o.name)} from {o.before} to {o.now}" for o in changes.labels[:EXAMPLES]]
            what = f"changed {'their' if several else 'its'} label ({_list(examples, changes.labels)})"
        phrases.append(f"{_count(changes.labels, thing)} {what}")
    if changes.contents:
        verb = "have" if len(changes.contents) > 1 else "has"
        if now.kind == "arrays":
            what = f"other pixels ({names_in_words([o.name for o in changes.contents])})"
        else:
            what = (
                f"another size ({_list(list(map(_resized, changes.contents[:EXAMPLES])), changes.contents)})"
            )
        phrases.append(f"{_count(changes.contents, thing)} {verb} {what}")
    if changes.classes:
        phrases.append(_of_classes(before.classes or (), now.classes or ()))
    if changes.truth and not phrases:
        phrases.append("the annotations that it is measured by are others")
    if changes.reordered and not phrases:
        phrases.append("its samples come in another order")
    return phrases


def _of_classes(before: Sequence[str], now: Sequence[str]) -> str:
    came = [name for name in now if name not in set(before)]
    went = [name for name in before if name not in set(now)]
    phrases = [f"{names_in_words(names)} {verb}" for names, verb in ((came, "came"), (went, "went")) if names]
    return f"of its classes {' and '.join(phrases)}" if phrases else "its classes come in another order"


def _resized(other: Other) -> str:
    name = _shown(other.name)
    if other.now == MISSING:
        return f"{name} is missing"
    if other.before == MISSING:
        return f"{name} was missing"
    return f"{name} from {other.before} to {other.now} bytes"


def _count(items: Sequence[Any], thing: str) -> str:
    return f"{len(items):,} {thing}{'s' if len(items) != 1 else ''}"


def names_in_words(names: Sequence[str]) -> str:
    """The first few names, and that there are more."""
    return _list([_shown(name) for name in names[:EXAMPLES]], names)


def _list(examples: Sequence[str], all_: Sequence[Any]) -> str:
    return ", ".join(examples) + (", ..." if len(all_) > len(examples) else "")


def _shown(name: str) -> str:
    plain = name.encode("utf-8", "backslashreplace").decode()
    return f"`{plain if len(plain) <= LONGEST else '...' + plain[-LONGEST:]}`"
