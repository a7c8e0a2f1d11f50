"""The images that an export is proved on: of the test data, made up where that can't be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdcli.data.describe import describe
from kdcli.data.facts import DataFacts
from kdcli.engine.build import build_data, run_root, task_kind
from kdcli.engine.distributed import Processes
from kdcli.engine.exports.portable import Tensors
from kdcli.engine.folder import RunFolder
from kdcli.engine.run import RunOptions
from kdcli.engine.sample import classification_sample, detection_sample
from kdcli.engine.sides import Sides
from kdcli.engine.wiring import small
from kdcli.errors import KdError, UsageError
from kdcli.spec.parse import ParsedSpec

IMAGES = 64
SCENES = 16
"""So many images with boxes, which take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """batch: as the data gives it; inputs: of it what the exported student is given; real: no made-up images."""

    batch: Mapping[str, Any]
    inputs: Tensors
    facts: DataFacts
    real: bool


def sample_for(
    parsed: ParsedSpec, options: RunOptions, weights: Path | None, size: tuple[int, int] | None
) -> Sample:
    """At least two images of the test data. size: height and width of a detector's input.

    Raises UsageError where the size is smaller than the images.
    """
    if task_kind(parsed.spec) == "detection":
        return _scenes(parsed, options, weights, size)
    return _images(parsed, options, weights)


def check_size(parsed: ParsedSpec, size: tuple[int, int] | None) -> None:
    """UsageError where an input size is given for what is no detector."""
    if size is not None and task_kind(parsed.spec) != "detection":
        raise UsageError.of(
            "`--input-size` is for detectors", "a classifier's input has the size that its spec gives"
        )


def said(weights: Path) -> dict[str, str]:
    """What the training wrote beside the weights; empty for files of another origin."""
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _images(parsed: ParsedSpec, options: RunOptions, weights: Path | None) -> Sample:
    part = parsed.spec.dataset.test
    try:
        with _test_batches(parsed, options) as (batches, facts):
            batch = small(next(batches), IMAGES)
        real = True
    except (KdError, StopIteration):
        facts, real = _remembered(parsed, weights), False
        batch = classification_sample(part, facts)
        batch["image"] = torch.rand(batch["image"].shape, generator=torch.Generator().manual_seed(0))
    if len(batch["image"]) == 1:  # a batch of one would make the exporters fix the batch size
        batch = {k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return Sample(batch=batch, inputs=(batch["image"],), facts=facts, real=real)


def _scenes(
    parsed: ParsedSpec, options: RunOptions, weights: Path | None, size: tuple[int, int] | None
) -> Sample:
    """Images on one canvas, padded right and below."""
    pictures: list[Tensor] = []
    first: dict[str, Any] | None = None
    padding = (1, 1)
    try:
        with _test_batches(parsed, options) as (batches, facts):
            for batch in batches:
                first = first or batch
                padding = tuple(max(a, b) for a, b in zip(padding, batch["image"].shape[2:], strict=True))
                for image, info in zip(batch["image"], batch["image_info"], strict=True):
                    pictures.append(image[:, : int(info[0]), : int(info[1])])
                if len(pictures) >= SCENES:
                    break
        real = True
    except KdError:
        facts, real, first = _remembered(parsed, weights), False, None
    if first is None or not pictures:
        if size is None:
            raise UsageError.of(
                "the test data can't be read, so the detector's input size is not known",
                "give it: `--input-size 800x1344`",
            )
        first = detection_sample(aligned=parsed.spec.runtime.aligned)
        pictures = list(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    pictures = (pictures if len(pictures) > 1 else pictures * 2)[:SCENES]
    height, width = size or padding
    tallest, widest = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    if tallest > height or widest > width:
        raise UsageError.of(
            f"test images of up to {tallest}x{widest} don't fit into `--input-size {height}x{width}`",
            "give the size that holds all of them, or resize in the spec's transformer",
        )
    canvas = torch.zeros(len(pictures), pictures[0].shape[0], height, width)
    for row, picture in zip(canvas, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    sizes = torch.tensor([[float(side) for side in picture.shape[1:]] for picture in pictures])
    return Sample(batch=first, inputs=(canvas, sizes), facts=facts, real=real)


@contextmanager
def _test_batches(
    parsed: ParsedSpec, options: RunOptions
) -> Iterator[tuple[Iterator[dict[str, Any]], DataFacts]]:
    spec = parsed.spec
    opened = Sides(spec, options.places).test_of_run(run_root(parsed))
    loader = build_data(opened, spec, Processes(device=torch.device("cpu")))
    try:
        yield (dict(batch) for batch in loader.batches(0)), loader.facts
    finally:
        loader.close()


def _remembered(parsed: ParsedSpec, weights: Path | None) -> DataFacts:
    """The data as the spec, or else the training, tells of it."""
    facts = describe(parsed.spec.dataset.test, train=False)
    folder = RunFolder(run_root(parsed))
    for path in (weights, folder.best_student, folder.student):
        known = {} if path is None else said(path)
        try:
            facts = DataFacts(
                shape=facts.shape or json.loads(known["input_shape"]),
                class_names=facts.class_names or json.loads(known["class_names"]),
                num_classes=facts.num_classes,
                mean=facts.mean,
                std=facts.std,
            )
        except (KeyError, ValueError):
            continue
        break
    return facts
