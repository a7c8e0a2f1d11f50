"""A share of the training data is held out: of each class, the same in every run, never both trained and tested on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcli.data.held_out import SomeImages, held_out, split
from kdcli.data.sources import ArrayImages, BatchSource
from kdcli.errors import SpecError
from kdcli.spec.parse import ParsedSpec, parse
from kdcli.training.sides import Sides

SPEC = """
net: {name: model, type: cifar_resnet8, kwargs: {num_classes: 10, in_channels: 1}}
dataset:
  hold_out: 0.25
  train: {dataset: {type: fake, kwargs: {num_samples: 64, num_classes: 4, shape: [1, 8, 8],
    transformer: [{type: torch_random_horizontal_flip}, {type: to_tensor}]}}}
  test: {dataset: {type: image_folder, kwargs: {root: nowhere, transformer: [{type: to_tensor}]}}}
  batch_sampler: {kwargs: {batch_size: 8}}
trainer: {max_epoch: 1, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
"""


def spec(*more: str) -> ParsedSpec:
    text = SPEC
    for change in more:
        before, _, after = change.partition(" -> ")
        assert before in text
        text = text.replace(before, after)
    return parse(text, "cfg.yaml")


def images(labels: list[int]) -> ArrayImages:
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return ArrayImages(images=pixels, labels=np.array(labels), num_classes=3)


def test_the_share_is_of_each_class_and_a_class_keeps_a_sample() -> None:
    labels = np.array([0] * 10 + [1] * 4 + [2])
    chosen = held_out(labels, 15, 0.25)
    # 0.25 of 10 is 2.5, rounded up to 3; of 4 is 1; the only sample of a class is trained on.
    assert [int(chosen[labels == number].sum()) for number in range(3)] == [3, 1, 0]
    assert held_out(np.array([0, 0]), 2, 0.99).sum() == 1
    assert held_out(None, 8, 0.25).sum() == 2


def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost() -> None:
    whole = images([0, 1] * 12)
    sides = [split(whole, 0.25, held=held) for held in (True, False)]
    seen = [{int(side.read(i)[0, 0, 0]) for i in range(len(side))} for side in sides]  # type: ignore[union-attr]
    assert len(seen[0]) == 6
    assert seen[0] | seen[1] == set(range(24))
    assert not seen[0] & seen[1]


def test_images_read_one_by_one_are_divided_the_same_way() -> None:
    whole = images([0, 1] * 12)
    some = SomeImages(whole, np.array([3, 5]))
    assert [some.name(0), some.name(1)] == ["sample 3", "sample 5"]
    assert some.labels is not None
    assert some.labels.tolist() == [1, 1]
    assert int(some.read(1)[0, 0, 0]) == 5


def test_the_test_side_is_never_opened_and_keeps_its_transforms() -> None:
    parsed = spec()
    assert parsed.spec.dataset.test.dataset.type == "fake"
    assert [one.type for one in parsed.spec.dataset.test.dataset.kwargs.transformer] == ["to_tensor"]
    assert parse(parsed.resolved_yaml(), "again.yaml").spec == parsed.spec
    sides = Sides(parsed.spec, parsed.places)
    assert len(sides.source(True)) + len(sides.source(False)) == 64
    assert len(sides.source(False)) == 16


def test_the_choice_is_the_same_under_another_seed() -> None:
    runs = [spec(), spec("trainer: {max -> runtime: {random_seed: 9}\ntrainer: {max")]
    labels = [Sides(one.spec, one.places).source(False).images for one in runs]  # type: ignore[union-attr]
    assert torch.equal(labels[0], labels[1])


def test_no_share_can_be_held_out_of_too_few_or_of_batches() -> None:
    with pytest.raises(SpecError) as raised:
        split(images([0, 1, 2]), 0.1, held=True)
    assert raised.value.diagnostics[0].code == "KD271"
    assert raised.value.diagnostics[0].path == ("dataset", "hold_out")
    batches = BatchSource([(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(SpecError, match="made outside"):
        split(batches, 0.1, held=True)
