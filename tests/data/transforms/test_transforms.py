"""Each transform by its definition, and the same for a batch as for its images one by one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from kdcli.data import TRANSFORMS
from kdcli.data.draws import Draws
from kdcli.data.facts import transformed
from kdcli.data.transforms.geometry import RandomCrop, RandomHorizontalFlip, RandomResizedCrop, resized_crops
from kdcli.data.transforms.pipeline import REFUSED, Pipeline, build_pipeline, build_transform, generators_kept
from kdcli.data.transforms.pixels import Cutout, Normalize
from kdcli.errors import SpecError
from kdcli.spec.schema import Component

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "color_jitter": [{"brightness": 32, "hue": 18}, {"brightness": 0.4, "hue": 0.1, "prob": 0.5}],
    "custom_to_tensor": [{}, {"norm_image": True}],
    "cutout": [{"size": 7}, {"size": 8, "p": 0.5, "fill": 128}],
    "grayscale": [{}, {"num_output_channels": 3}],
    "normalize": [{"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}],
    "to_rgb": [{}],
    "to_tensor": [{}],
    "torch_auto_augmentation": [{"size": 224, "scale": [0.08, 1.0]}],
    "torch_center_crop": [{"size": 20}, {"size": [40, 10]}],
    "torch_color_jitter": [
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        {"hue": [0.1, 0.2]},
    ],
    "torch_pad": [{"padding": 3}, {"padding": [1, 2, 3, 4], "padding_mode": "reflect"}, {"padding": [1, 2]}],
    "torch_randerase": [{"probability": 0.5}, {"mode": "rand", "max_count": 3}, {"mode": "const"}],
    "torch_random_augmentation": [{"n": 2, "m": 9, "magnitude_std": 0.5}],
    "torch_random_augmentationIncre": [{"n": 3, "m": 7}],
    "torch_random_crop": [
        {"size": 24, "padding": 4},
        {"size": 50, "pad_if_needed": True, "padding_mode": "edge"},
    ],
    "torch_random_horizontal_flip": [{}, {"p": 1.0}],
    "torch_random_resized_crop": [
        {"size": 24},
        {"size": [40, 20], "scale": [0.01, 0.1], "interpolation": "bicubic"},
        {"size": 16, "antialias": False},
        {"size": 16, "interpolation": "nearest"},
        {"size": 160},
    ],
    "torch_resize": [
        {"size": 20},
        {"size": [40, 20], "interpolation": "bicubic"},
        {"size": 60, "max_size": 62},
    ],
}
CASES = [(name, kwargs) for name in sorted(EXAMPLES) for kwargs in EXAMPLES[name]]


def test_every_transform_has_an_example() -> None:
    with_boxes = {name for name, target in TRANSFORMS.items() if "transforms.boxes" in target.path}
    assert set(EXAMPLES) == set(TRANSFORMS) - with_boxes


def built(name: str, kwargs: dict[str, Any]) -> Any:
    return build_transform(Component(type=name, kwargs=kwargs), ("t",))


def images(n: int = 6, height: int = 32, width: int = 28, channels: int = 3) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (n, channels, height, width), dtype=np.uint8)
    )


def draws(ids: list[int], epoch: int = 0) -> Draws:
    return Draws(131, epoch, np.array(ids, dtype=np.int64))


@pytest.mark.parametrize("name,kwargs", CASES)
def test_a_batch_is_its_images_one_by_one(name: str, kwargs: dict[str, Any]) -> None:
    transform = built(name, kwargs)
    given = images()
    before = given.clone()
    together = transform(given, draws([4, 9, 2, 7, 0, 1]))
    assert torch.equal(given, before)
    for row, id in enumerate([4, 9, 2, 7, 0, 1]):
        alone = transform(given[row : row + 1], draws([id]))
        assert torch.equal(alone[0], together[row])
    assert tuple(together.shape[1:]) == transformed(name, kwargs, (3, 32, 28))


@pytest.mark.parametrize("name,kwargs", CASES)
def test_random_transforms_say_so(name: str, kwargs: dict[str, Any]) -> None:
    transform = built(name, kwargs)
    results = [transform(images(), draws(list(range(6)), epoch)) for epoch in (0, 1)]
    if not transform.random:
        assert torch.equal(*results)
    elif kwargs.get("p") != 1.0:
        assert not torch.equal(*results)


def test_normalize_by_hand() -> None:
    image = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    out = Normalize(mean=[0.5, 0.1], std=[0.25, 0.5])(image, draws([0]))
    assert torch.allclose(out, torch.tensor([[[[-2.0, 2.0]], [[0.2, 0.6]]]]), atol=1e-6)
    reference = tvf.normalize(tvf.to_dtype(images(), torch.float32, scale=True), [0.5] * 3, [0.2] * 3)
    assert torch.allclose(
        Normalize(mean=[0.5] * 3, std=[0.2] * 3)(images(), draws([0] * 6)), reference, atol=1e-6
    )


def test_random_crop_is_a_window_and_reaches_every_place() -> None:
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6)
    out = RandomCrop(size=4)(image.expand(500, 1, 6, 6), draws(list(range(500))))
    corners = out[:, 0, 0, 0].numpy()
    assert set(corners) == {6 * i + j for i in range(3) for j in range(3)}
    assert torch.equal(
        out[0, 0], image[0, 0].unfold(0, 4, 1).unfold(1, 4, 1)[corners[0] // 6, corners[0] % 6]
    )
    counts = np.bincount(corners, minlength=16)
    assert counts[counts > 0].min() > 30


def test_flip_mirrors_half() -> None:
    given = images(400)
    out = RandomHorizontalFlip()(given, draws(list(range(400))))
    flipped = (out == given.flip(-1)).flatten(1).all(1)
    kept = (out == given).flatten(1).all(1)
    assert bool((flipped ^ kept).all()) and 160 < int(flipped.sum()) < 240


def test_cutout_hangs_over_the_border() -> None:
    out = Cutout(size=8, fill=0)(
        torch.full((500, 1, 32, 32), 255, dtype=torch.uint8), draws(list(range(500)))
    )
    areas = (out == 0).sum((1, 2, 3))
    assert int(areas.max()) == 64 and 16 <= int(areas.min()) < 64


def test_resized_crop_boxes_are_as_published() -> None:
    transform = RandomResizedCrop(size=8, scale=[0.2, 0.5], ratio=[0.5, 2.0])
    boxes = transform.boxes(100, 80, draws(list(range(3000))))
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 100).all() and (left + w <= 80).all()
    area, ratio = h * w / 8000, w / h
    assert area.min() > 0.19 and area.max() < 0.51 and 0.48 < ratio.min() and ratio.max() < 2.05
    assert abs(area.mean() - 0.35) < 0.01
    impossible = RandomResizedCrop(size=8, scale=[1.0, 1.0], ratio=[3.0, 4.0])
    assert impossible.boxes(10, 20, draws([0])).tolist() == [[1, 0, 7, 20]]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 7), (40, 50), (32, 11)])
def test_resampling_is_torchs_up_to_rounding(mode: Any, size: tuple[int, int]) -> None:
    given = images()
    boxes = np.array(
        [[0, 0, 32, 28], [3, 4, 20, 9], [0, 0, 5, 5], [10, 10, 1, 3], [1, 2, 30, 26], [31, 27, 1, 1]]
    )
    ours = resized_crops(given, boxes, *size, mode, True)
    for row, (top, left, h, w) in enumerate(boxes.tolist()):
        theirs = tvf.resized_crop(
            given[row], top, left, h, w, list(size), InterpolationMode(mode), antialias=True
        )
        assert int((ours[row].int() - theirs.int()).abs().max()) <= 1, row


def test_resampling_keeps_a_flat_image_flat() -> None:
    flat = torch.full((1, 3, 30, 20), 77, dtype=torch.uint8)
    for mode in ("bilinear", "bicubic"):
        out = resized_crops(flat, np.array([[2, 3, 17, 11]]), 24, 24, mode, True)  # type: ignore[arg-type]
        assert bool((out == 77).all())


def test_resampling_does_not_depend_on_the_batch_or_threads() -> None:
    given = images(64)
    transform = RandomResizedCrop(size=32)
    ids = list(range(64))
    whole = transform(given, draws(ids))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = torch.cat([transform(given[i : i + 7], draws(ids[i : i + 7])) for i in range(0, 64, 7)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, again)


def test_augmentation_is_torchvisions_in_distribution() -> None:
    """The mean and spread of every pixel over many draws, ours and torchvision's."""
    image = images(1, 12, 12)
    pipeline = build_pipeline(
        [
            Component(type="torch_random_resized_crop", kwargs={"size": 8, "scale": [0.3, 1.0]}),
            Component(type="torch_random_horizontal_flip"),
            Component(type="torch_random_crop", kwargs={"size": 8, "padding": 1}),
        ],
        (),
    )
    ours = pipeline(image.expand(3000, -1, -1, -1).contiguous(), draws(list(range(3000)))) * 255
    reference = v2.Compose(
        [v2.RandomResizedCrop(8, scale=(0.3, 1.0)), v2.RandomHorizontalFlip(), v2.RandomCrop(8, padding=1)]
    )
    with generators_kept():
        torch.manual_seed(0)
        theirs = torch.stack([reference(image[0]) for _ in range(3000)]).float()
    spread = theirs.std(0)
    error = (ours.mean(0) - theirs.mean(0)).abs() / (spread * (2 / 3000) ** 0.5)
    assert float(error.max()) < 4.5 and float(((ours.std(0) - spread) / spread).abs().max()) < 0.12


def test_torchvisions_own_are_seeded_by_sample_and_leave_the_generators_alone() -> None:
    transform = built("torchvision.RandomAffine", {"degrees": 30, "translate": [0.1, 0.1]})
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    wanted = torch.rand(3), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    together = transform(images(), draws(list(range(6))))
    assert torch.equal(torch.rand(3), wanted[0]) and (np.random.rand(), random.random()) == wanted[1:]
    assert torch.equal(together[3], transform(images()[3:4], draws([3]))[0])
    assert not torch.equal(together, transform(images(), draws(list(range(6)), epoch=1)))


@pytest.mark.parametrize(
    "name,kwargs",
    [
        ("RandAugment", {}),
        ("TrivialAugmentWide", {}),
        ("AutoAugment", {"policy": "cifar10"}),
        ("RandomErasing", {"p": 1.0}),
        ("Resize", {"size": [8, 8], "interpolation": "bicubic"}),
        ("ToDtype", {"dtype": "float32", "scale": True}),
        ("GaussianBlur", {"kernel_size": 3}),
    ],
)
def test_torchvision_transforms_run(name: str, kwargs: dict[str, Any]) -> None:
    out = built(f"torchvision.{name}", kwargs)(images(), draws(list(range(6))))
    assert len(out) == 6


def test_what_torchvision_lacks_is_told_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="KD503") as error:
        built("torchvision.RandAugmnt", {})
    assert "torchvision.RandAugment" in (error.value.diagnostics[0].help or "")
    with pytest.raises(SpecError, match="KD504") as error:
        built("torchvision.RandAugment", {"num_op": 2})
    assert "num_ops" in (error.value.diagnostics[0].help or "")
    assert error.value.diagnostics[0].path == ("t", "kwargs", "num_op")
    for name in REFUSED:
        with pytest.raises(SpecError, match="can't be used"):
            built(f"torchvision.{name}", {})


@pytest.mark.parametrize(
    "name,kwargs,said",
    [
        ("torch_resise", {}, "no transform"),
        ("normalize", {"mean": [0.5], "std": [0.0]}, "positive"),
        ("normalize", {"mean": [0.5], "std": [0.1, 0.2]}, "channels"),
        ("torch_random_crop", {}, "size"),
        ("torch_random_crop", {"size": 0}, "positive"),
        ("torch_color_jitter", {"hue": 0.7}, "hue"),
        ("torch_random_resized_crop", {"size": 8, "scale": [1.0, 0.1]}, "ascending"),
        ("torchvision.RandomCrop", {"size": "big"}, ""),
    ],
)
def test_wrong_arguments_are_an_error_at_the_transform(name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as error:
        build_pipeline([Component(type="to_tensor"), Component(type=name, kwargs=kwargs)], ("here",))
    found = error.value.diagnostics[0]
    assert said in found.message and found.path is not None and found.path[:2] == ("here", 1)


def test_a_pipeline_ends_in_floats_and_knows_its_fixed_head() -> None:
    parts = [
        Component(type="torch_center_crop", kwargs={"size": 20}),
        Component(type="torch_random_horizontal_flip"),
    ]
    pipeline = build_pipeline(parts, ())
    whole = pipeline(images(), draws(list(range(6))))
    assert whole.dtype == torch.float32 and 0 <= float(whole.min()) and float(whole.max()) <= 1
    assert pipeline.head() == 1
    rest = pipeline(pipeline.run_head(images(), draws([0])), draws(list(range(6))), start=1)
    assert torch.equal(rest, whole)
    assert Pipeline([]).head() == 0


def test_united_perceptions_color_jitter_changes_with_its_probability() -> None:
    given = images(40)
    assert (
        built("color_jitter", {"brightness": 32, "contrast": [0.5, 1.5], "hue": 18})(
            given, draws(list(range(40)))
        )
        is given
    )
    half = built("color_jitter", {"brightness": [0.2, 0.4], "prob": 0.5})(given, draws(list(range(40))))
    darker = [float(new.float().mean() / old.float().mean()) for old, new in zip(given, half, strict=True)]
    assert all(ratio == 1.0 or 0.19 < ratio < 0.41 for ratio in darker)
    assert 10 < sum(ratio == 1.0 for ratio in darker) < 30
    with pytest.raises(SpecError, match="hue"):
        built("color_jitter", {"hue": 18, "prob": 0.5})
    with pytest.raises(SpecError, match="channel_shuffle"):
        built("color_jitter", {"channel_shuffle": True, "prob": 0.5})


def test_custom_to_tensor_keeps_the_scale_of_bytes() -> None:
    given = images(2)
    assert built("custom_to_tensor", {})(given, draws([0, 1])).equal(given.float())
    assert built("custom_to_tensor", {"norm_image": True})(given, draws([0, 1])).equal(given / 255)
