"""Sizes and names of one side of the data (DataFacts), and what of them the spec alone tells; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdcli.spec.check.labels import is_unlabelled
from kdcli.spec.schema import Component, DataPart

Labelling = Literal["classes", "none"]
"""What `labels` of a dataset may say: a class of each image, or images alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Sizes and names of a dataset after its transforms; None is 'cannot be known from the spec'.

    shape is (channels, height, width) of one image as the networks see it; mean and std are those of
    the `normalize` transform, per channel, on the 0..1 scale. annotations: of detection data, what its
    batches say of it (kdcli.data.detection.coco). labels: what is known of each sample; of `none` the batches have no
    field `labels`. lowest_label: where the labels have been read. heads: how many labels a sample has, where it has
    several; num_classes is then that of the label with most. batched: the data comes in batches that are made already.
    identified: whether `indices` of a batch name the same samples in every epoch.
    """

    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    num_samples: int | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    annotations: Mapping[str, Any] | None = None
    labels: Literal["classes", "boxes", "mask", "none"] | None = None
    lowest_label: int | None = None
    heads: int | None = None
    batched: bool = False
    identified: bool = True


Shape = tuple[int | None, int | None, int | None]
"""(channels, height, width); None where only the files tell."""

DIGITS = tuple(str(n) for n in range(10))
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# name: shape, classes, training samples, test samples; as torchvision's pages state them.
TORCHVISION: Mapping[str, tuple[Shape, int, int, int]] = {
    "CIFAR10": ((3, 32, 32), 10, 50_000, 10_000),
    "CIFAR100": ((3, 32, 32), 100, 50_000, 10_000),
    "FashionMNIST": ((1, 28, 28), 10, 60_000, 10_000),
    "KMNIST": ((1, 28, 28), 10, 60_000, 10_000),
    "MNIST": ((1, 28, 28), 10, 60_000, 10_000),
    "QMNIST": ((1, 28, 28), 10, 60_000, 60_000),
    "SVHN": ((3, 32, 32), 10, 73_257, 26_032),
    "STL10": ((3, 96, 96), 10, 5_000, 8_000),
    "USPS": ((1, 16, 16), 10, 7_291, 2_007),
    "FakeData": ((3, 224, 224), 10, 1_000, 1_000),
}


def describe(part: DataPart, *, train: bool = True) -> DataFacts:
    """The facts that the spec alone tells: shape after the transforms, classes, samples; None where only files tell.

    Never raises: what is wrong with the spec is found elsewhere.
    """
    facts, shape = _dataset(part, train)
    for component in part.dataset.kwargs.transformer:
        try:
            shape = transformed(component.type, component.kwargs, shape)
        except (TypeError, ValueError, LookupError, ZeroDivisionError):
            shape = (None, None, None)
    channels, height, width = shape
    mean, std = statistics(part.dataset.kwargs.transformer, channels or 3)
    facts = replace(facts, mean=mean, std=std)
    known = None if channels is None or height is None or width is None else (channels, height, width)
    return replace(facts, shape=known)


def statistics(
    transformer: Sequence[Component], channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """mean and std of what a list of transforms normalises by, on the 0..1 scale; None where it does not."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale = 1.0
    for component in transformer:
        if component.type == "custom_to_tensor" and not component.kwargs.get("norm_image"):
            scale = 255.0
            mean, std = (0.0,) * channels, (1 / scale,) * channels
        if component.type in ("normalize", "torchvision.Normalize"):
            mean, std = _floats(component.kwargs.get("mean")), _floats(component.kwargs.get("std"))
            if scale != 1.0 and mean is not None and std is not None:
                mean, std = tuple(m / scale for m in mean), tuple(s / scale for s in std)
    return mean, std


def _floats(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
        return tuple(float(v) for v in value)
    return None


def _dataset(part: DataPart, train: bool) -> tuple[DataFacts, Shape]:
    own: Mapping[str, Any] = part.dataset.kwargs.model_extra or {}
    facts, shape = _with_classes(part, own, train)
    if is_unlabelled(part):
        facts = replace(facts, num_classes=None, class_names=None, labels="none")
    return facts, shape


def source_channels(part: DataPart) -> int | None:
    """Channels of an image before its transforms; None where only the files tell."""
    return _dataset(part, False)[1][0]


def with_classes_of(train: DataFacts, test: DataFacts) -> DataFacts:
    """The training data's facts; the classes are the test data's where the training data has no labels."""
    if train.labels != "none":
        return train
    return replace(train, num_classes=test.num_classes, class_names=test.class_names)


def _with_classes(part: DataPart, own: Mapping[str, Any], train: bool) -> tuple[DataFacts, Shape]:
    name = part.dataset.type
    if name == "digits":
        size = own.get("size") or 8
        samples = _limited(1347 if _trains(own, train) else 450, own)
        return DataFacts(num_classes=10, num_samples=samples, class_names=DIGITS), (1, size, size)
    if name == "fashion_mnist":
        samples = _limited(60_000 if _trains(own, train) else 10_000, own)
        return DataFacts(num_classes=10, num_samples=samples, class_names=FASHION), (1, 28, 28)
    if name == "fake":
        shape = tuple(own.get("shape") or (3, 32, 32))
        classes, samples = own.get("num_classes", 10), own.get("num_samples", 256)
        facts = DataFacts(num_classes=classes, num_samples=samples)
        return facts, (shape[0], shape[1], shape[2]) if len(shape) == 3 else (None, None, None)
    if name.startswith("torchvision."):
        return _torchvision(name.removeprefix("torchvision."), own, train)
    listed = own.get("classes")
    names = tuple(listed) if isinstance(listed, list) and all(isinstance(n, str) for n in listed) else None
    count = own.get("num_classes") if names is None else len(names)
    return DataFacts(num_classes=count, class_names=names), (_channels(part), None, None)


def _limited(samples: int, own: Mapping[str, Any]) -> int:
    limit = own.get("limit")
    return min(samples, limit) if isinstance(limit, int) else samples


def _trains(own: Mapping[str, Any], train: bool) -> bool:
    split = own.get("split")
    return train if split is None else split == "train"


def _torchvision(name: str, own: Mapping[str, Any], train: bool) -> tuple[DataFacts, Shape]:
    found = TORCHVISION.get(name)
    if found is None:
        return DataFacts(num_classes=own.get("num_classes")), (None, None, None)
    shape, classes, for_training, for_test = found
    if name == "FakeData":
        channels, height, width = own.get("image_size", shape)
        size = own.get("size", for_training)
        return DataFacts(num_classes=own.get("num_classes", 10), num_samples=size), (channels, height, width)
    trains = own.get("train", own.get("split", "train" if train else "test") == "train")
    samples = for_training if trains else for_test
    known = "split" not in own or own["split"] in ("train", "test")
    return DataFacts(num_classes=classes, num_samples=samples if known else None), shape


def _channels(part: DataPart) -> int | None:
    """Channels of an image read from a file."""
    reader = part.dataset.kwargs.image_reader
    mode = (reader.kwargs if reader else part.dataset.kwargs.model_extra or {}).get("color_mode", "RGB")
    return 1 if mode == "GRAY" else 3


def transformed(name: str, kwargs: Mapping[str, Any], shape: Shape) -> Shape:
    """The shape after one transform; a transform that is not known here keeps it."""
    channels, height, width = shape
    match name:
        case (
            "torch_center_crop"
            | "torch_random_crop"
            | "torch_random_resized_crop"
            | "torchvision.CenterCrop"
            | "torchvision.RandomCrop"
            | "torchvision.RandomResizedCrop"
        ):
            size = _list(kwargs["size"])
            return channels, size[0], size[-1]
        case "torch_resize" | "torchvision.Resize":
            return channels, *_resized(kwargs, height, width)
        case "torch_pad" | "torchvision.Pad":
            if height is None or width is None:
                return shape
            border = _list(kwargs["padding"])
            left, top, right, bottom = border if len(border) == 4 else [border[0], border[-1]] * 2
            return channels, height + top + bottom, width + left + right
        case "grayscale" | "torchvision.Grayscale":
            return kwargs.get("num_output_channels", 1), height, width
        case "to_rgb" | "torchvision.RGB":
            return 3, height, width
        case "fix_output_resize":
            return channels, kwargs["scales"][0], kwargs["scales"][1]
        case "keep_ar_resize_max" | "crop" | "stitch_expand":
            return channels, None, None
        case "torchvision.RandomResize" | "torchvision.RandomShortestSize" | "torchvision.ScaleJitter":
            return channels, None, None
        case "torchvision.RandomRotation" if kwargs.get("expand"):
            return channels, None, None
        case _:
            return shape


def padded_size(part: DataPart) -> tuple[int, int] | None:
    """(height, width) of the largest batch that the transforms of detection data give; None where images decide.

    Of an image of any size: `keep_ar_resize` makes its shorter side the largest of `scales` and its longer one at
    most `max_size`, lying; a batch is padded to a multiple of `alignment`.
    """
    size: tuple[int, int] | None = None
    for component in part.dataset.kwargs.transformer:
        try:
            size = _largest(component.type, component.kwargs, size)
        except (TypeError, ValueError, LookupError, ZeroDivisionError):
            return None
    if size is None or min(size) < 1:
        return None
    alignment = part.dataloader.kwargs.alignment
    return -(-size[0] // alignment) * alignment, -(-size[1] // alignment) * alignment


def _largest(name: str, kwargs: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The largest (height, width) after one transform of detection data."""
    match name:
        case "keep_ar_resize":
            shorter, most = max(kwargs["scales"]), kwargs.get("max_size")
            if shorter <= 0 or (size is None and most is None):
                return size
            return (
                shorter_side(*size, shorter, most)
                if size
                else (min(shorter, most or shorter), most or shorter)
            )
        case "keep_ar_resize_max":
            steps = kwargs.get("random_size")
            longer: int = max(steps) * kwargs.get("scale_step", 32) if steps else kwargs["max_size"]
            if size is None or kwargs.get("padding_type"):
                return longer, longer
            return round(size[0] * longer / max(size)), round(size[1] * longer / max(size))
        case "stitch_expand":
            ratio = kwargs.get("expand_ratios", 2.0)
            return None if size is None else (int(size[0] * ratio), int(size[1] * ratio))
        case "crop":
            return None if size is None else (max(size), max(size))
    _, height, width = transformed(name, kwargs, (3, *(size or (None, None))))
    return None if height is None or width is None else (height, width)


def _resized(
    kwargs: Mapping[str, Any], height: int | None, width: int | None
) -> tuple[int | None, int | None]:
    size = _list(kwargs["size"])
    if len(size) == 2:
        return size[0], size[1]
    if height is None or width is None:
        return None, None
    return shorter_side(height, width, size[0], kwargs.get("max_size"))


def _list(value: Any) -> Sequence[int]:
    return [value] if isinstance(value, int) else list(value)


def shorter_side(height: int, width: int, size: int, max_size: int | None = None) -> tuple[int, int]:
    """(height, width) with the shorter side at `size`, the longer at most `max_size`."""
    short, long = sorted((height, width))
    new_short, new_long = size, int(size * long / short)
    if max_size is not None and new_long > max_size:
        new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_short, new_long) if height <= width else (new_long, new_short)
