"""Images of files augmented as a batch are the images augmented one by one, whatever the transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdcli.data.batches import ImageSamples
from kdcli.data.classification.images import FileImages
from kdcli.data.draws import Draws
from kdcli.data.facts import DataFacts
from kdcli.data.image_readers import PillowReader
from kdcli.data.transforms.pipeline import build_pipeline
from kdcli.spec.places import HERE
from kdcli.spec.schema import Component
from tests.data.test_jpeg import photographs
from tests.data.transforms.test_transforms import CASES

FIRST = {"type": "torch_random_resized_crop", "kwargs": {"size": 16}}
SIDES = [(40, 50), (33, 20), (150, 140)]


@pytest.fixture(scope="module", name="source")
def _source(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    root = photographs(tmp_path_factory.mktemp("photographs"), SIDES)
    reader = PillowReader(("dataset",), HERE, image_dir=str(root))
    return FileImages(reader, [str(file) for file in sorted(root.rglob("*.jpg"))], np.arange(3), 3)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_a_batch_is_its_images_one_by_one(source: FileImages, name: str, kwargs: dict[str, Any]) -> None:
    pipeline = build_pipeline([Component(**FIRST), Component(type=name, kwargs=kwargs)], ("transformer",))
    samples = ImageSamples(source, pipeline, DataFacts())
    each = [Draws(7, 2, np.array([index])) for index in range(3)]
    alone = [pipeline(source.read(index)[None], draws)[0] for index, draws in enumerate(each)]
    batch = samples.collate([samples.load(i, draws) for i, draws in enumerate(each)], np.arange(3))
    assert samples.alone == 1 and batch["image"].is_contiguous()
    assert torch.equal(batch["image"], torch.stack(alone))


def test_images_are_seen_alone_until_they_are_of_one_size() -> None:
    def alone(*names: str) -> int:
        sizes: dict[str, Any] = {"shorter": 20, "both": [20, 20]}
        parts = [
            Component(type="torch_resize", kwargs={"size": sizes[name]})
            if name in sizes
            else Component(type=name, kwargs={"size": 16} if "crop" in name else {})
            for name in names
        ]
        return build_pipeline(parts, ("transformer",)).alone()

    assert alone("shorter", "torch_center_crop", "to_tensor") == 2
    assert alone("both", "torch_random_crop") == 1
    assert alone("torch_random_horizontal_flip", "torch_random_resized_crop", "to_tensor") == 2
    assert alone("shorter", "to_tensor") == 2  # images of several sizes may come out, and are refused then
    assert alone() == 0
