"""How an image file becomes a network's input: recorded beside its weights, and done again from the record."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.data import IMAGE_READERS, TRANSFORMS
from kdcli.data.draws import Draws
from kdcli.data.facts import source_channels
from kdcli.data.image_readers import PillowReader
from kdcli.data.transforms.boxes import BoxTransform
from kdcli.data.transforms.pipeline import PREFIX, build_pipeline
from kdcli.data.transforms.pixels import as_float, torchvision_transforms
from kdcli.spec.in_memory import FROM_PYTHON, in_memory, is_boxes
from kdcli.spec.places import HERE
from kdcli.spec.plugins import admit, is_own, load_own, lookup
from kdcli.spec.schema import Component, DataPart
from kdcli.spec.tables import Target

NORMALIZE = ("normalize", "torchvision.Normalize")
TO_FLOATS = ("to_tensor", "custom_to_tensor", "torchvision.ToDtype", *NORMALIZE)


def made_elsewhere(part: DataPart) -> bool:
    """Whether code of the user's, and not the spec, makes what a network sees: data in memory that are finished."""
    if part.dataset.type != FROM_PYTHON:
        return False
    given = in_memory().data.get(False)
    return not part.dataset.kwargs.transformer if given is None else getattr(given, "finished", True)


def preprocess_record(part: DataPart, *, aligned: bool = True) -> dict[str, Any] | None:
    """All that is done to an image file before a network sees it, as plain data; None where the spec does not say it.

    part: of the test data. aligned: as `runtime.aligned` says. color_mode, rotate_by_exif, rule: how the file is
    read (`rule`: which numbers become black and white in images of more than 8 bits, what lies behind transparent
    pixels). steps: the transforms in order, with every argument. range: of the pixels that mean and std are about.
    alignment, box_offset: of detectors, to which multiple images are padded, and by how many pixels of the original
    x2 and y2 are less than edges.
    """
    if made_elsewhere(part):
        return None
    reader = part.dataset.kwargs.image_reader
    own: Mapping[str, Any] = reader.kwargs if reader else part.dataset.kwargs.model_extra or {}
    channels = source_channels(part)
    transformer = part.dataset.kwargs.transformer
    steps: list[dict[str, Any]] = [{"type": one.type, "kwargs": _all_arguments(one)} for one in transformer]
    first = next((n for n, step in enumerate(steps) if step["type"] in TO_FLOATS), len(steps))
    if first == len(steps) or steps[first]["type"] in NORMALIZE:
        steps.insert(first, {"type": "to_tensor", "kwargs": {}})  # what is implied
    normalised: Mapping[str, Any] = next((s["kwargs"] for s in reversed(steps) if s["type"] in NORMALIZE), {})
    raw = any(step["type"] == "custom_to_tensor" and not step["kwargs"]["norm_image"] for step in steps)
    record = {
        "color_mode": own.get("color_mode") or ("GRAY" if channels == 1 else "RGB"),
        "rotate_by_exif": reader is not None and reader.type in ("fs_opencv", "ceph_opencv"),
        "reader": "fs_pillow" if reader is None else reader.type,
        "rule": {key: own[key] for key in ("value_range", "background") if own.get(key) is not None},
        "steps": steps,
        "range": [0.0, 255.0] if raw else [0.0, 1.0],
        "mean": normalised.get("mean"),
        "std": normalised.get("std"),
        "layout": "NCHW",
        "dtype": "float32",
    }
    if part.dataset.type == "coco" or is_boxes(in_memory().data.get(False)):
        record |= {"alignment": part.dataloader.kwargs.alignment, "box_offset": 0 if aligned else 1}
    return record


def _all_arguments(component: Component) -> dict[str, Any]:
    """A transform's arguments, the ones that the spec leaves out with their defaults."""
    made: Any = None
    if component.type in TRANSFORMS:
        made = TRANSFORMS[component.type].load()
    elif component.type.startswith(PREFIX) and not is_own(component.type):
        made = getattr(torchvision_transforms(), component.type.removeprefix(PREFIX), None)
    found = {} if made is None else inspect.signature(made.__init__).parameters
    defaults = {
        name: _plain(one.default)
        for name, one in found.items()
        if one.default is not one.empty and name != "inplace"
    }
    return {**defaults, **_plain(component.kwargs)}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class Preprocessing:
    """Image files to what a network takes of them, as `record` (of preprocess_record) says.

    plugins: packages of the user's that the record may name. Raises SpecError where a part can't be built.
    """

    def __init__(self, record: Mapping[str, Any], plugins: Sequence[str] = ()) -> None:
        steps = [Component(type=step["type"], kwargs=dict(step["kwargs"])) for step in record["steps"]]
        for name in (*(step.type for step in steps), str(record["reader"])):
            if is_own(name):
                load_own(name, plugins, ("preprocess",))
                admit(name)
        self.transforms = build_pipeline(steps, ("preprocess", "steps")).transforms
        path = ("preprocess", "reader")
        target: Target = lookup(
            IMAGE_READERS, str(record["reader"]), path=path, code="KD501", what="image reader"
        )
        self.reader: PillowReader = target.load()(
            path, HERE, image_dir=".", color_mode=record["color_mode"], **record["rule"]
        )
        self.alignment, self.box_offset = int(record.get("alignment", 1)), int(record.get("box_offset", 0))

    def pixels(self, file: Path) -> Tensor:
        """The image before any transform, uint8 [C, H, W]; raises BadSample."""
        return self.reader.read(str(file))

    def __call__(self, pixels: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """The input, float32 [C, H', W'], of an image as it was read, and its scale: of height, of width.

        Raises ValueError where the image does not fit a transform.
        """
        images, scale = pixels[None], (1.0, 1.0)
        draws = Draws(0, 0, np.zeros(1, dtype=np.int64))
        for number, transform in enumerate(self.transforms):
            if isinstance(transform, BoxTransform):
                images, _, own = transform.with_boxes(images, [torch.zeros(0, 5)], draws.of(number))
                scale = (scale[0] * own[0], scale[1] * own[1])
            else:
                images = transform(images, draws.of(number))
        return as_float(images)[0].contiguous(), scale
