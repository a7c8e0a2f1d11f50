"""Erased rectangles and the operations of AutoAugment and RandAugment, by pixels that are known."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data.transforms.augment import AutoAugment, IncreasingRandAugment, RandAugment, RandomErasing
from tests.data.transforms.test_transforms import draws


def test_an_erased_square_has_the_area_that_is_asked_for() -> None:
    images = torch.ones(50, 2, 16, 16)
    erase = RandomErasing(probability=1.0, min_area=0.25, max_area=0.25, min_aspect=1.0, mode="const")
    erased = erase(images, draws(list(range(50)))) == 0
    assert (erased.sum((2, 3)) == 64).all() and (erased[:, 0] == erased[:, 1]).all()
    corners = {tuple(hole.nonzero()[0].tolist()) for hole in erased[:, 0]}
    assert all(hole.any(0).sum() == 8 and hole.any(1).sum() == 8 for hole in erased[:, 0])
    assert len(corners) > 20 and max(top for top, _ in corners) <= 8


def test_rectangles_share_the_area() -> None:
    images = torch.ones(40, 1, 32, 32)
    erase = RandomErasing(
        probability=1.0, min_area=0.25, max_area=0.25, min_aspect=1.0, mode="const", min_count=4
    )
    holes = (erase(images, draws(list(range(40)))) == 0).sum((1, 2, 3))
    # Four of 8 x 8, which may overlap.
    assert holes.max() == 256 and holes.min() < 256


@pytest.mark.parametrize(("mode", "values"), [("pixel", 64 * 3), ("rand", 3)])
def test_noise_of_each_pixel_or_of_each_channel(mode: Any, values: int) -> None:
    erase = RandomErasing(probability=1.0, min_area=0.25, max_area=0.25, min_aspect=1.0, mode=mode)
    found = erase(torch.full((1, 3, 16, 16), 7.0), draws([3]))
    assert len(found[found != 7.0].unique()) == values and (found != 7.0).sum() == 64 * 3


def test_the_probability_is_the_share_of_images() -> None:
    found = RandomErasing(probability=0.25)(torch.full((2000, 1, 8, 8), 7.0), draws(list(range(2000))))
    # Four standard errors of 2,000 draws.
    assert float((found != 7.0).flatten(1).any(1).float().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("name", ["area", "aspect", "count"])
def test_a_range_upside_down_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`min_{name}` is 1?3?, more than `max_{name}`"):
        RandomErasing(
            **{f"min_{name}": 1 if name == "area" else 3, f"max_{name}": 1 if name != "area" else 0.5}
        )


class Fixed(random.Random):
    """Draws this number always."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8))


@pytest.mark.parametrize(
    ("kind", "operation", "magnitude", "draw", "value"),
    [
        # Bits that are kept: 4 of 10/10 and 0 of 0, at least 1; increasing: 4 less them.
        (RandAugment, 4, 10, 0.0, 192),
        (RandAugment, 4, 0, 0.0, 128),
        (IncreasingRandAugment, 4, 10, 0.0, 0),
        (IncreasingRandAugment, 4, 0, 0.0, 192),
        # Inverted from a threshold of 256 on, and of 0.
        (RandAugment, 5, 10, 0.0, 200),
        (IncreasingRandAugment, 5, 10, 0.0, 55),
        # 200 + 5 * 11 = 255, inverted.
        (RandAugment, 6, 5, 0.0, 0),
        # A brightness of 0.1 + 1.8 / 4 = 0.55; increasing: 1 + 0.9 / 4 and 1 - 0.9 / 4.
        (RandAugment, 9, 2.5, 0.0, 110),
        (IncreasingRandAugment, 9, 2.5, 0.0, 245),
        (IncreasingRandAugment, 9, 2.5, 0.9, 155),
        # 100 pixels further there is nothing.
        (RandAugment, 13, 10, 0.0, 0),
        (RandAugment, 14, 10, 0.9, 0),
        (RandAugment, 2, 0, 0.0, 55),
    ],
)
def test_an_operation_at_a_magnitude(
    kind: type[RandAugment], operation: int, magnitude: float, draw: float, value: int
) -> None:
    apply, low, high = kind(n=1, m=1).operations[operation]
    image = apply(grey(200), magnitude / 10 * (high - low) + low, Fixed(draw))
    assert np.unique(np.asarray(image)).tolist() == [value]


def test_of_n_operations_half_are_applied() -> None:
    augment = RandAugment(n=4, m=5)
    counts = dict.fromkeys(range(15), 0)

    def counting(number: int) -> Any:
        def operation(image: Image.Image, value: float, _: random.Random) -> Image.Image:
            counts[number] += 1
            return image

        return operation

    augment.operations = tuple((counting(n), 0.0, 1.0) for n in range(15))
    for seed in range(1500):
        augment.augment(grey(0), random.Random(seed))
    # 1500 * 4 / 2, within four standard errors; each of the 15 about 200 times.
    assert sum(counts.values()) == pytest.approx(3000, abs=155)
    assert min(counts.values()) > 140 and max(counts.values()) < 260


@pytest.mark.parametrize(
    ("name", "magnitude", "value"),
    [
        ("posterize", 8, 192),
        ("solarize", 5, 55),
        ("solarize", 2, 55),
        ("solarize", 1, 200),
        ("invert", 4, 55),
    ],
)
def test_an_operation_of_autoaugment(name: str, magnitude: int, value: int) -> None:
    # Posterize at 8 of 9 keeps 8 - 4 * 8 / 9 = 4 bits; solarize inverts from 256 * (1 - magnitude / 9) on.
    image = AutoAugment()._apply(grey(200), name, magnitude / 9, Fixed(0.0))
    assert np.unique(np.asarray(image)).tolist() == [value]


def test_autoaugment_draws_one_of_24_policies() -> None:
    augment = AutoAugment(size=224, scale=[0.08, 1.0])
    assert len(augment.policies) == 24
    # The fourteenth, as the paper lists it.
    assert augment.policies[13] == [("invert", 0.6, 4), ("equalize", 1.0, 8)]


@pytest.mark.parametrize("kind", [RandAugment, IncreasingRandAugment])
def test_it_can_be_sent_to_a_data_worker(kind: type[RandAugment]) -> None:
    images = torch.arange(3 * 32 * 32, dtype=torch.int64).reshape(1, 3, 32, 32).remainder(256).to(torch.uint8)
    augment = kind(n=3, m=9, magnitude_std=0.5)
    sent = pickle.loads(pickle.dumps(augment))
    assert torch.equal(augment(images, draws([1])), sent(images, draws([1])))


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="stands before `to_tensor`"):
        AutoAugment()(torch.zeros(1, 3, 4, 4), draws([0]))


def test_grey_images_stay_grey() -> None:
    images = torch.randint(
        0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for augment in (AutoAugment(), RandAugment(n=2, m=9), IncreasingRandAugment(n=2, m=9)):
        assert augment(images, draws(list(range(40)))).shape == images.shape
