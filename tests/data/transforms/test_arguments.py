"""Every argument of every transform and batch function does something: moved, it changes pixels, boxes or targets."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.data import BATCH_FNS, TRANSFORMS
from kdcli.data.draws import Draws, generator

MOVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "color_jitter": (
        {"prob": 1.0, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1},
        {
            "prob": 0.0,
            "brightness": 0.5,
            "contrast": [1.5, 2.0],
            "saturation": 0.9,
            "hue": 0.2,
            "brightness_delta": 30.0,
            "hue_delta": 60.0,
            "channel_shuffle": True,
        },
    ),
    "crop": ({"crop_prob": 1.0}, {"crop_prob": 0.0, "means": 9.0, "scale": 100}),
    "custom_to_tensor": ({}, {"norm_image": True}),
    "cutout": ({"size": 8}, {"size": 5, "p": 0.0, "fill": 99.0}),
    "fix_output_resize": ({"scales": [10, 20]}, {"scales": [10, 25], "max_size": 9, "separate_wh": True}),
    "flip": ({"flip_p": 1.0}, {"flip_p": 0.0}),
    "grayscale": ({}, {"num_output_channels": 3}),
    "keep_ar_resize": (
        {"scales": [17]},
        {"scales": [15], "max_size": 20, "separate_wh": True, "antialias": True},
    ),
    "keep_ar_resize_max": (
        {"max_size": 64, "padding_type": "left_top"},
        {
            "max_size": 50,
            "separate_wh": True,
            "min_size": 30.0,
            "padding_type": None,
            "padding_val": 9,
            "random_size": [1, 1],
            "scale_step": 64,
        },
    ),
    "normalize": (
        {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        {"mean": [0.1, 0.4, 0.3], "std": [0.2, 0.3, 0.5]},
    ),
    "stitch_expand": ({"expand_prob": 1.0}, {"expand_prob": 0.0, "expand_ratios": 3.0}),
    "to_rgb": ({}, {}),
    "to_tensor": ({}, {}),
    "torch_auto_augmentation": (
        {},
        {"size": 9, "scale": [0.5, 1.0], "ratio": [1.0, 2.0], "interpolation": "bicubic"},
    ),
    "torch_center_crop": ({"size": 20}, {"size": [20, 10]}),
    "torch_color_jitter": ({}, {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}),
    "torch_pad": ({"padding": 3}, {"padding": [1, 2], "fill": 9.0, "padding_mode": "reflect"}),
    "torch_randerase": (
        {"probability": 1.0, "max_count": 3},
        {
            "probability": 0.0,
            "min_area": 0.2,
            "max_area": 0.1,
            "min_aspect": 0.9,
            "max_aspect": 0.4,
            "mode": "const",
            "min_count": 3,
            "max_count": 1,
            "num_splits": 2,
            "device": "cuda",
        },
    ),
    "torch_random_augmentation": ({"n": 4, "m": 9}, {"n": 1, "m": 3, "magnitude_std": 2.0}),
    "torch_random_augmentationIncre": ({"n": 4, "m": 9}, {"n": 1, "m": 3, "magnitude_std": 2.0}),
    "torch_random_crop": (
        {"size": 50, "padding": 3, "pad_if_needed": True},
        {"size": 51, "padding": 4, "fill": 9.0, "padding_mode": "edge", "pad_if_needed": False},
    ),
    "torch_random_horizontal_flip": ({"p": 1.0}, {"p": 0.0}),
    "torch_random_resized_crop": (
        {"size": 12},
        {
            "size": 10,
            "scale": [0.9, 1.0],
            "ratio": [2.0, 3.0],
            "interpolation": "bicubic",
            "antialias": False,
        },
    ),
    "torch_resize": (
        {"size": 15},
        {"size": 14, "interpolation": "bicubic", "max_size": 17, "antialias": False},
    ),
}
"""The arguments of each transform to start from, and another value of each that it has."""


WITHOUT_EFFECT = {
    "crop": {"scale"},
    "fix_output_resize": {"max_size", "separate_wh"},
    "torch_auto_augmentation": {"size", "scale", "ratio", "interpolation"},
    "torch_randerase": {"num_splits", "device"},
}
"""Arguments that United-Perception takes and ignores; each docstring says so."""


REFUSED = {
    ("torch_random_crop", "pad_if_needed"),
    *(("color_jitter", argument) for argument in ("brightness_delta", "hue_delta", "channel_shuffle")),
}
"""A crop that the image is too small for; arguments that fail in United-Perception."""

BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("keep_ar_resize_max", "scale_step"): {"random_size": [1, 1]},
}
"""What an argument needs beside it."""

ELSEWHERE = {("crop", "means")}
"""tests/data/transforms/test_boxes.py: of an image in which no square holds a box."""


def outcome(name: str, kwargs: dict[str, Any]) -> list[Any]:
    """What an image of 30 by 47 and a box on it become; a ValueError where it is refused."""
    transform = TRANSFORMS[name].load()(**kwargs)
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 30, 47), generator=random, dtype=torch.uint8)
    image = image if name != "normalize" else image / 255
    draws = Draws(3, 0, torch.tensor([5]).numpy(), 0)
    if not hasattr(transform, "with_boxes"):
        return [transform(image, draws)]
    changed, boxes, scale = transform.with_boxes(image, [torch.tensor([[3.0, 4.0, 20.0, 25.0, 1.0]])], draws)
    return [changed, *boxes, scale]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


def test_every_transform_is_moved() -> None:
    assert MOVED.keys() == TRANSFORMS.keys(), "give a new transform another value of each of its arguments"


@pytest.mark.parametrize("name", sorted(MOVED))
def test_each_argument_of_a_transform_changes_what_it_gives(name: str) -> None:
    kwargs, others = MOVED[name]
    assert others.keys() == inspect.signature(TRANSFORMS[name].load()).parameters.keys()
    assert same(outcome(name, kwargs), outcome(name, kwargs))
    for argument, value in others.items():
        if (name, argument) in ELSEWHERE:
            continue
        beside = {**kwargs, **BESIDE.get((name, argument), {})}
        before = outcome(name, beside)
        if (name, argument) in REFUSED:
            with pytest.raises(ValueError):
                outcome(name, {**kwargs, argument: value})
            continue
        after = outcome(name, {**beside, argument: value})
        assert same(before, after) is (argument in WITHOUT_EFFECT.get(name, ())), argument


MIXED = {
    "batch_mixup": {"alpha": 5.0, "num_classes": 6},
    "batch_cutmix": {"alpha": 5.0, "num_classes": 6},
    "batch_cutmixup": {
        "alpha": 5.0,
        "mixup_alpha": 5.0,
        "cutmix_alpha": 5.0,
        "switch_prob": 1.0,
        "num_classes": 6,
    },
}


@pytest.mark.parametrize("name", sorted(BATCH_FNS))
def test_each_argument_of_a_batch_function_changes_what_it_gives(name: str) -> None:
    batch = {
        "image": torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone(),
        "labels": torch.arange(4),
        "indices": torch.arange(4),
    }

    def mixed(kwargs: dict[str, Any]) -> list[Tensor]:
        mix = BATCH_FNS[name].load()(**{"num_classes": 4, **kwargs})
        found = [mix(batch, generator(1, 0, number, stream=2)) for number in range(8)]
        return [part[key] for part in found for key in ("image", "mixed_labels")]

    assert MIXED[name].keys() == inspect.signature(BATCH_FNS[name].load()).parameters.keys()
    before = mixed({})
    for argument, value in MIXED[name].items():
        after = mixed({argument: value})
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before, after, strict=True)), (
            argument
        )
