"""Mixup and cutmix by their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli.data.classification.mixing import Cutmix, CutMixup, Mixup
from kdcli.data.draws import generator


def batch() -> dict[str, Any]:
    labels = torch.tensor([0, 1, 2, 3])
    image = labels.view(4, 1, 1, 1).float().expand(4, 3, 16, 16).contiguous()
    return {"image": image, "labels": labels, "indices": torch.arange(4)}


@pytest.mark.parametrize("mix", [Mixup(num_classes=4), Cutmix(num_classes=4), CutMixup(num_classes=4)])
def test_targets_are_the_mixture_that_the_pixels_show(mix: Any) -> None:
    for number in range(20):
        given = batch()
        out = mix(given, generator(1, 0, number, stream=2))
        assert torch.equal(given["image"], batch()["image"])
        targets = out["mixed_labels"]
        assert targets.dtype == torch.float32 and torch.allclose(targets.sum(1), torch.ones(4))
        seen = out["image"].mean((1, 2, 3))
        assert torch.allclose(seen, targets @ torch.arange(4.0), atol=1e-5)
        assert torch.equal(out["labels"], targets.argmax(1)) or bool((targets == 0.5).any())
        assert torch.equal(out["indices"], given["indices"])


def test_the_same_counters_mix_the_same_and_others_differ() -> None:
    mix = Mixup(num_classes=4)
    first, again, other = (mix(batch(), generator(1, 0, n, stream=2))["image"] for n in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_alpha_zero_mixes_nothing() -> None:
    for mix in (Mixup(alpha=0.0, num_classes=4), Cutmix(alpha=0.0, num_classes=4)):
        assert torch.equal(mix(batch(), generator(1, 0, 0, stream=2))["image"], batch()["image"])


def test_united_perceptions_names_of_cutmixup() -> None:
    mix = CutMixup(mixup_alpha=0.2, cutmix_alpha=0.4, switch_prob=0.0, num_classes=4)
    assert (mix.mixup.alpha, mix.cutmix.alpha) == (0.2, 0.4)
    image = mix(batch(), generator(1, 0, 1, stream=2))["image"]
    assert torch.equal(image, image[:, :1, :1, :1].expand_as(image))
    with pytest.raises(ValueError, match="alpha"):
        Mixup(alpha=-1.0)


@pytest.mark.parametrize("mix", [Mixup(num_classes=4), Cutmix(num_classes=4), CutMixup(num_classes=4)])
def test_images_without_labels_are_mixed_to_the_same_pixels(mix: Any) -> None:
    for number in range(5):
        unlabelled = {name: value for name, value in batch().items() if name != "labels"}
        out = mix(unlabelled, generator(1, 0, number, stream=2))
        assert set(out) == {"image", "indices"}
        assert torch.equal(out["image"], mix(batch(), generator(1, 0, number, stream=2))["image"])
