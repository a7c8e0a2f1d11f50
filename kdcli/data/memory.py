"""Images decoded once and held as bytes, with the transforms that draw nothing already done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kdcli.data.batches import ArrayReader, BadRecord, Mixing, size_text
from kdcli.data.draws import Draws, Ids
from kdcli.data.sources import ArrayImages, BadSample, Images, ImageSource
from kdcli.data.transforms.pipeline import Pipeline
from kdcli.errors import RunError, SpecError, SpecPath


def in_memory(
    source: Images,
    pipeline: Pipeline,
    seed: int,
    mixing: Mixing,
    *,
    train: bool,
    skip: bool,
    path: SpecPath,
) -> tuple[ArrayReader, tuple[BadRecord, ...]]:
    """Everything decoded once, with the transforms that draw nothing already done."""
    nothing = Draws(seed, 0, np.zeros(1, dtype=np.int64))
    start = pipeline.head()
    if isinstance(source, ArrayImages):
        images = source.images
        if start:
            chunks = torch.split(images, 4096)
            images = torch.cat([pipeline.run_head(chunk, nothing) for chunk in chunks])
        return ArrayReader(replace(source, images=images), pipeline, seed, mixing, start=start), ()
    images, bad = _decoded(source, pipeline, skip=skip, path=path)
    replaced = _replaced(len(source), [record.sample for record in bad], train) if bad else None
    held = ArrayImages(
        images=images, labels=source.labels, num_classes=source.num_classes, class_names=source.class_names
    )
    return ArrayReader(held, pipeline, seed, mixing, start=start, replaced=replaced), bad


def _decoded(
    source: ImageSource, pipeline: Pipeline, *, skip: bool, path: SpecPath
) -> tuple[torch.Tensor, tuple[BadRecord, ...]]:
    """uint8 [N, C, H, W], bad samples left black; without `skip` the first bad one ends it."""
    nothing = Draws(0, 0, np.zeros(1, dtype=np.int64))
    held: torch.Tensor | None = None
    bad: list[BadRecord] = []
    for index in range(len(source)):
        try:
            image = pipeline.run_head(source.read(index)[None], nothing)[0]
        except BadSample as reason:
            bad.append(BadRecord(index, reason.name, reason.reason))
            if not skip:
                break
            continue
        if held is None:
            held = torch.zeros((len(source), *image.shape), dtype=torch.uint8)
        if image.shape != held.shape[1:]:
            raise SpecError.at(
                (*path, "dataloader", "kwargs", "in_memory"),
                "KD508",
                f"`in_memory` wants images of one size; `{source.name(index)}` is {size_text(image)} and "
                f"others {size_text(held[0])}",
                "begin the transformer list with `torch_resize` to [height, width]",
            )
        held[index] = image
    if held is None:
        raise RunError.of("KD511", f"`{bad[0].name}` can't be read, nor any sample: {bad[0].reason}")
    return held, tuple(bad)


def _replaced(total: int, bad: list[int], train: bool) -> Ids:
    """int64 [total]: each sample itself; a bad one the next good one in training, -1 in test."""
    stands = np.arange(total, dtype=np.int64)
    if not train:
        stands[bad] = -1
        return stands
    unusable = set(bad)
    for index in bad:
        stands[index] = next(i % total for i in range(index + 1, index + total) if i % total not in unusable)
    return stands
