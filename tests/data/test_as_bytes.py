"""Images that come as bytes and are normalised on their device: the same bits as normalised by the reader."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli.data.batches import NORMALIZING, normalized
from kdcli.parallel.devices import to_device
from tests.parallel.pretend_cuda import CUDA, pretend_cuda

FLIP = {"type": "torch_random_horizontal_flip"}
ERASE = {"type": "torchvision.RandomErasing", "kwargs": {"p": 0.5}}
TO_TENSOR = {"type": "to_tensor"}
NORMALIZE = {"type": "normalize", "kwargs": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
RAW = {"type": "custom_to_tensor"}
PIPELINES: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "normalised": ([FLIP, TO_TENSOR, NORMALIZE], True),
    "without to_tensor": ([FLIP, NORMALIZE], True),
    "no normalize": ([FLIP], True),
    "0..255": ([RAW, {"type": "normalize", "kwargs": {"mean": [127.0], "std": [60.0]}}], True),
    "something after it": ([TO_TENSOR, NORMALIZE, FLIP], False),
    "floats before it": ([{"type": "to_tensor"}, ERASE, NORMALIZE], False),
}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_same_bits(name: str, held: bool, part: Any, loader: Any) -> None:
    transformer, as_bytes = PIPELINES[name]
    made = part(
        "fake",
        num_samples=20,
        num_classes=4,
        shape=[3, 9, 9],
        transformer=transformer,
        dataloader={"in_memory": held},
    )
    on_host = list(loader(made).batches(1))
    left = list(loader(made, as_bytes=True).batches(1))
    assert len(left) == len(on_host) > 1
    with pretend_cuda() as watched:
        for batch, expected in zip(left, on_host, strict=True):
            assert (batch["image"].dtype == torch.uint8) is as_bytes is (NORMALIZING in batch)
            there = to_device(dict(batch), CUDA)["image"]
            assert there.device == CUDA and there.dtype == torch.float32 and not watched.of("mix")
            assert torch.equal(there.cpu(), expected["image"])
    for batch, expected in zip(list(loader(made, as_bytes=True).batches(1)), on_host, strict=True):
        done = normalized(dict(batch))
        assert NORMALIZING not in done and torch.equal(done["image"], expected["image"])


def test_mixed_images_are_normalised_by_the_reader(part: Any, loader: Any) -> None:
    mixup = {"type": "batch_mixup", "kwargs": {"alpha": 1.0, "num_classes": 4}}
    options = {"num_samples": 8, "num_classes": 4, "shape": [3, 9, 9], "transformer": [NORMALIZE]}
    made = loader(part("fake", **options, dataloader={"batch_fn": mixup}), as_bytes=True)
    assert not made.gives_bytes
    assert all(batch["image"].dtype == torch.float32 for batch in made.batches(0))


def test_single_samples_are_normalised(part: Any, loader: Any) -> None:
    made = part("fake", num_samples=8, num_classes=4, shape=[3, 9, 9], transformer=[NORMALIZE])
    assert torch.equal(loader(made, as_bytes=True).some([3, 5])["image"], loader(made).some([3, 5])["image"])
