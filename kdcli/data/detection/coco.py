"""The `coco` dataset: images with boxes, augmented together and padded into batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdcli.data.classes import match
from kdcli.data.detection.coco_json import CocoFile, CocoImage, CocoImages, read_coco
from kdcli.data.draws import Draws, Ids
from kdcli.data.facts import DataFacts, statistics
from kdcli.data.image_readers import LYING, PillowReader, opened, orientation
from kdcli.data.sources import BadSample
from kdcli.data.transforms.boxes import BoxTransform
from kdcli.data.transforms.pipeline import build_pipeline
from kdcli.data.transforms.pixels import (
    ColorJitter,
    CustomToTensor,
    Cutout,
    DetectionColorJitter,
    Grayscale,
    Normalize,
    ToRgb,
    ToTensor,
    as_float,
)
from kdcli.disk import is_file
from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.models.detection.boxes import beyond_last_pixel
from kdcli.spec.places import Places
from kdcli.spec.schema import Component

PIXEL_TRANSFORMS = (
    ColorJitter,
    CustomToTensor,
    Cutout,
    DetectionColorJitter,
    Grayscale,
    Normalize,
    ToRgb,
    ToTensor,
)
"""Transforms that leave every box where it is."""

MOVES_BOXES = (
    "flip",
    "keep_ar_resize",
    "keep_ar_resize_max",
    "fix_output_resize",
    "crop",
    "stitch_expand",
    "to_tensor",
    "normalize",
    "torch_color_jitter",
    "grayscale",
)
"""What a help line offers."""

USABLE = "an image is trained on where it has a box inside it that is no crowd"


class CocoDataset:
    """Samples of a COCO file; in_files: whether its images are files.

    Batches: `image` float32 [B, C, H, W], padded with 0 right and below to a multiple of alignment;
    `boxes`, a list of float32 [n, 5] (x1, y1, x2, y2, class from 1, in padded pixels); `ignores`, a list
    of [m, 4]; `image_info`, a list of (h, w, scale_h, scale_w, original h, original w); `indices`
    int64 [B]; `image_ids`; `annotations`: the file, how many samples it gives, the category id and the name
    of each class (of test data those of training), and box_offset, by how many pixels of the original image
    x2 and y2 are less than edges (1 unless aligned). facts.annotations has written_ids too: what stands in
    the file for those of image_ids that are texts there.
    """

    in_files = True

    def __init__(
        self,
        images: CocoImages,
        reader: PillowReader | None,
        transforms: Sequence[Any],
        facts: DataFacts,
        annotations: Mapping[str, Any],
        *,
        alignment: int,
        use_ignore: bool,
        notices: tuple[str, ...],
    ) -> None:
        self.images, self.reader, self.transforms = images, reader, tuple(transforms)
        self.facts, self.annotations = facts, dict(annotations)
        self.alignment, self.use_ignore = alignment, use_ignore
        self.notices = (*(() if reader is None else reader.notices), *notices)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Ids) -> CocoDataset:
        """The samples at some places."""
        fewer = copy.copy(self)
        count = len(indices)
        fewer.images = self.images.subset(indices)
        fewer.annotations = {**self.annotations, "samples": count}
        of_file = {**(self.facts.annotations or {}), "samples": count}
        fewer.facts = replace(self.facts, num_samples=count, annotations=of_file)
        return fewer

    def name(self, index: int) -> str:
        """The image's file."""
        return self.images[index].file_name

    def aspect_ratios(self) -> NDArray[np.float64]:
        """Height/width of every sample, as the file says."""
        return self.images.aspect_ratios()

    def load(self, index: int, draws: Draws) -> Mapping[str, Any]:
        """One sample, augmented."""
        return self.augmented(self.images[index], self.pixels(index), draws)

    def augmented(self, image: CocoImage, pixels: Tensor, draws: Draws) -> Mapping[str, Any]:
        """The sample of an image with its boxes; pixels: [C, H, W]."""
        pixels = pixels[None]
        boxes = [torch.from_numpy(image.boxes), torch.from_numpy(image.crowds)]
        scale = (1.0, 1.0)
        for number, transform in enumerate(self.transforms):
            if isinstance(transform, BoxTransform):
                pixels, boxes, own = transform.with_boxes(pixels, boxes, draws.of(number))
                scale = (scale[0] * own[0], scale[1] * own[1])
            else:
                pixels = transform(pixels, draws.of(number))
        height, width = pixels.shape[2:]
        info = (float(height), float(width), *scale, float(image.height), float(image.width))
        shift = beyond_last_pixel(info, self.annotations["box_offset"])
        truth, crowds = (torch.cat([own[:, :4] - shift, own[:, 4:]], dim=1) for own in boxes)
        return {
            "image": as_float(pixels)[0].contiguous(),
            "boxes": truth,
            "ignores": crowds if self.use_ignore else crowds[:0],
            "image_info": info,
            "image_id": image.id,
        }

    def collate(self, samples: Sequence[Mapping[str, Any]], indices: Ids) -> dict[str, Any]:
        """Samples padded to one size."""
        images: list[Tensor] = [sample["image"] for sample in samples]
        channels = {image.shape[0] for image in images}
        if len(channels) > 1:
            raise ValueError(f"images of one batch have {' and '.join(map(str, sorted(channels)))} channels")
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        size = [-(-side // self.alignment) * self.alignment for side in (height, width)]
        padded = torch.zeros(len(images), channels.pop(), *size)
        for row, image in zip(padded, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return {
            "image": padded,
            "boxes": [sample["boxes"] for sample in samples],
            "ignores": [sample["ignores"] for sample in samples],
            "image_info": [sample["image_info"] for sample in samples],
            "indices": torch.from_numpy(indices),
            "image_ids": [sample["image_id"] for sample in samples],
            "annotations": self.annotations,
        }

    def file(self, index: int) -> str:
        """The path of an image's file; raises BadSample where the name leads out of its folder."""
        assert self.reader is not None
        name = self.images[index].file_name
        file = self.reader.locate(name)
        if file is None:
            raise BadSample(name, "the name leads out of `image_dir`")
        return file

    def look_at(self, index: int, header: Image.Image) -> None:
        """Compare an opened image with the annotations; raises BadSample where they say another size."""
        assert self.reader is not None
        self._require_size(index, self.file(index), self.reader.size_of(header), orientation(header))

    def pixels(self, index: int) -> Tensor:
        """The image before any transform, uint8 [C, H, W]; raises BadSample."""
        assert self.reader is not None
        file = self.file(index)
        pixels = self.reader.read(file)
        size = (pixels.shape[1], pixels.shape[2])
        if size != (self.images[index].height, self.images[index].width):
            with opened(file) as image:
                self._require_size(index, file, size, orientation(image))
        return pixels

    def _require_size(self, index: int, file: str, size: tuple[int, int], turn: int | None) -> None:
        image = self.images[index]
        stated = (image.height, image.width)
        if size == stated:
            return
        reason = f"it is {size[0]}x{size[1]}, and the annotations say {stated[0]}x{stated[1]}"
        if turn in LYING and size[::-1] == stated:
            assert self.reader is not None
            turned, other = ("unturned", "fs_pillow") if self.reader.rotates else ("turned", "fs_opencv")
            reason += (
                f"; the file has EXIF orientation {turn}, and the annotations' size is that of the {turned} image,"
                f" which `{other}` reads"
            )
        raise BadSample(file, reason)


def coco(
    path: SpecPath,
    places: Places,
    train: bool,
    image_reader: PillowReader,
    transformer: Sequence[Component],
    alignment: int,
    aligned: bool = True,
    classes: Mapping[int, str] | None = None,
    *,
    meta_file: str,
    source: str | None = None,
    use_ignore: bool = False,
    clip_box: bool = True,
) -> CocoDataset:
    """The samples of a COCO json.

    Images without a usable box are left out of training only. Boxes are cut to their image; what lies
    outside, or has no width or height, is dropped with a notice. Crowds are not trained on; use_ignore makes
    them regions that count for nothing. aligned: boxes as edges; else x2 and y2 are last pixels. classes: the
    names that were trained on, by ascending id, which number the categories; without them, or where the file
    has others (which the build reports), these are numbered by their own ids. source and clip_box are accepted
    for United-Perception's sake. Raises RunError KD560 to KD562, SpecError KD518, KD564, and KD509 where no
    image can be trained on.
    """
    if not clip_box:
        raise ValueError("`clip_box` is true: boxes are always cut to their image")
    if image_reader.scaled_decode:
        raise ValueError("`scaled_decode` is for images with classes: boxes are in pixels of the whole image")
    transforms = box_transforms(transformer, (*path, "kwargs", "transformer"), train=train)
    at_file = (*path, "kwargs", "meta_file")
    file = places.find(meta_file, at_file)
    missing = list(image_reader.missing)
    if not is_file(file):
        help = f"`meta_file` names a COCO annotation file (json); {places.missing(meta_file, at_file)}"
        message = f"there is no file `{meta_file}`"
        missing.insert(0, Diagnostic(code="KD560", message=message, help=help, path=at_file))
    if missing:
        raise SpecError(missing)
    found = read_coco(file)
    learnt, all_images = numbered(found, classes)
    images = all_images.with_boxes() if train else all_images
    if all_images and not images:
        raise SpecError.at(path, "KD509", f"`coco` has no samples: {_without_boxes(found)}", USABLE)
    notices = []
    if len(images) < len(all_images):
        notices.append(
            f"`{found.path}`: {len(all_images) - len(images)} images have no box, left out of training"
        )
    mean, std = statistics(transformer, 1 if image_reader.color_mode == "GRAY" else 3)
    annotations, facts = said_of(found, learnt, len(images), aligned=aligned, mean=mean, std=std)
    return CocoDataset(
        images,
        image_reader,
        transforms,
        facts,
        annotations,
        alignment=alignment,
        use_ignore=use_ignore,
        notices=tuple(notices),
    )


def box_transforms(transformer: Sequence[Component], where: SpecPath, *, train: bool) -> Sequence[Any]:
    """The transforms of a spec, built; raises SpecError KD564 and KD596 for those that leave boxes behind."""
    transforms = build_pipeline(transformer, where).transforms
    for number, transform in enumerate(transforms):
        if not isinstance(transform, (BoxTransform, *PIXEL_TRANSFORMS)):
            raise SpecError.at(
                (*where, number, "type"),
                "KD564",
                f"`{transformer[number].type}` does not move boxes with the pixels",
                f"for detection: {', '.join(MOVES_BOXES)}",
            )
        if not train and getattr(transform, "training_only", False):
            name = transformer[number].type
            raise SpecError.at(
                (*where, number, "type"),
                "KD596",
                f"`{name}` is for training data: a box found on a mirrored or cut test image is elsewhere in the file",
                "leave it out of the test data's transformer"
                + (", or write `flip_p: 0`" if name == "flip" else ""),
            )
    return transforms


def numbered(found: CocoFile, classes: Mapping[int, str] | None) -> tuple[Mapping[int, str], CocoImages]:
    """The names of the classes by id, in the order of their numbers, and the images with boxes so numbered.

    classes: the names that were trained on; without them, or where the file has others, the file's own.
    """
    learnt = found.names if classes is None else classes
    fitting = match(learnt, found.names)
    if not fitting.fits:
        learnt = found.names
        fitting = match(learnt, learnt)
    numbers = {category: number for number, category in enumerate(learnt, start=1)}
    return learnt, CocoImages(found, [numbers[fitting.ids[category]] for category in found.names])


def said_of(
    found: CocoFile,
    learnt: Mapping[int, str],
    samples: int,
    *,
    aligned: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[dict[str, Any], DataFacts]:
    """What every batch says of its annotations, and the facts of the side; learnt: names of the classes by id."""
    annotations = {
        "file": str(found.path),
        "samples": samples,
        "categories": tuple(learnt),
        "class_names": tuple(learnt.values()),
        "box_offset": 0 if aligned else 1,
    }
    facts = DataFacts(
        num_classes=len(learnt),
        num_samples=samples,
        class_names=tuple(learnt.values()),
        labels="boxes",
        mean=mean,
        std=std,
        # Not in every batch: it may be as long as the file.
        annotations={**annotations, "written_ids": found.written_images},
    )
    return annotations, facts


def _without_boxes(found: CocoFile) -> str:
    """How many images there are, and what the annotations are instead of usable boxes."""
    others = [
        (found.crowds, "crowds"),
        (found.dropped, "empty or outside their image"),
        (found.unlisted, "of images that are not listed"),
    ]
    counts = ", ".join(f"{count} {what}" for count, what in others if count)
    images = "1 image" if len(found.ids) == 1 else f"{len(found.ids)} images"
    return f"`{found.path}` lists {images}, none with a usable box" + (f" ({counts})" if counts else "")
