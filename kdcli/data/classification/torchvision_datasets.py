"""torchvision's classification datasets by name; nothing is ever downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from PIL import Image
from torch import Tensor

from kdcli.data.draws import Ids
from kdcli.data.image_readers import PillowReader, decoded, pixels_of
from kdcli.data.pixel_values import PixelRule, Refused
from kdcli.data.sources import ArrayImages, BadSample, ImageSource
from kdcli.disk import entries_like, is_folder
from kdcli.errors import SpecError, SpecPath, did_you_mean, first_line
from kdcli.spec.places import HERE, Places

GIVEN = ("transform", "target_transform", "transforms", "loader", "is_valid_file", "download")
"""Arguments that kdcli decides or that take code."""

RULE = PixelRule(where="the kwargs of `image_folder` (torchvision's data sets can't take it)")

FILE_LISTS = ("samples", "_samples", "_image_files", "_images")
"""Where torchvision's datasets list their files, each as a whole path or as (path, class)."""


class TorchvisionImages:
    """A torchvision dataset that is read image by image.

    files: of a dataset that lists them (ImageFolder), else empty; reader: what reads them.
    """

    notices: tuple[str, ...] = ()

    def __init__(self, dataset: Any, labels: Ids, class_names: tuple[str, ...] | None) -> None:
        self.dataset, self.class_names = dataset, class_names
        self.labels: Ids | None = labels
        folder = isinstance(dataset, torchvision.datasets.DatasetFolder)
        self.files = [str(file) for file, _ in dataset.samples] if folder else []
        self.reader = PillowReader((), HERE, image_dir=str(dataset.root) if folder else "")
        self.reader.rule = RULE
        self.num_classes = len(class_names) if class_names else int(labels.max(initial=-1)) + 1

    def located(self) -> tuple[Sequence[str], Sequence[str]] | None:
        """The image files and the folder that they lie in, where torchvision lists them."""
        for attribute in FILE_LISTS:
            listed = getattr(self.dataset, attribute, None)
            if isinstance(listed, (list, tuple)) and len(listed) == len(self):
                named = [entry[0] if isinstance(entry, tuple) and entry else entry for entry in listed]
                if all(isinstance(name, (str, Path)) for name in named):
                    return [str(name) for name in named], [str(self.dataset.root)]
        return None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Tensor:
        """uint8 [C, H, W]; raises BadSample."""
        try:
            image = self.dataset[index][0]
            pixels = pixels_of(image, "GRAY" if image.mode in ("L", "1") else "RGB", RULE)
        except BadSample:
            raise
        except Refused as reason:
            raise BadSample(self.name(index), str(reason)) from reason
        except Exception as reason:  # decoders raise anything on damaged files
            raise BadSample(self.name(index), str(reason) or type(reason).__name__) from reason
        return torch.from_numpy(pixels[:, :, None] if pixels.ndim == 2 else pixels).permute(2, 0, 1)

    def name(self, index: int) -> str:
        """The dataset and the number, as torchvision counts."""
        return f"{type(self.dataset).__name__}[{index}]"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> TorchvisionImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        assert self.labels is not None
        labels = np.asarray(numbers, dtype=np.int64)[self.labels]
        return TorchvisionImages(self.dataset, labels, names)


def checked(name: str, kwargs: Mapping[str, Any], path: SpecPath) -> tuple[Any, list[str]]:
    """The class of a dataset and the arguments it takes; no file is looked at.

    Raises SpecError KD501 (no such dataset), KD505 (an argument it lacks), KD506 (a download).
    """
    kinds = {
        key: kind
        for key, kind in vars(torchvision.datasets).items()
        if inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)
    }
    if name not in kinds:
        help = did_you_mean(name, sorted(kinds))
        raise SpecError.at((*path, "type"), "KD501", f"torchvision has no dataset `{name}`", help)
    kind: Any = kinds[name]
    known = [key for key in inspect.signature(kind.__init__).parameters if key not in ("self", *GIVEN)]
    if kwargs.get("download", False):
        where = (*path, "kwargs", "download")
        given = {key: value for key, value in kwargs.items() if key != "download"}
        raise SpecError.at(
            where, "KD506", "kdcli never downloads data", _how_to_get(name, given), on_key=True
        )
    for key in kwargs:
        if key not in known and key != "download":
            raise SpecError.at(
                (*path, "kwargs", key),
                "KD505",
                f"`torchvision.{name}` has no argument `{key}`",
                did_you_mean(key, known),
                on_key=True,
            )
    return kind, known


def torchvision_dataset(
    name: str, kwargs: Mapping[str, Any], path: SpecPath, places: Places, train: bool
) -> ArrayImages | ImageSource:
    """`torchvision.<name>`; `train` or `split` follow the side of the spec where they are not given.

    Raises SpecError KD501 (no such dataset), KD505 (arguments), KD506 (not on this disk).
    """
    kind, known = checked(name, kwargs, path)
    given = {key: value for key, value in kwargs.items() if key != "download"}
    if "train" in known:
        given.setdefault("train", train)
    if "split" in known and not train:
        given.setdefault("split", "val" if name in ("ImageNet", "Imagenette", "Places365") else "test")
    at_root = (*path, "kwargs", "root")
    missing = ""
    if isinstance(given.get("root"), str):
        root = places.find(given["root"], at_root)
        if not is_folder(root):
            missing = f"{places.missing(given['root'], at_root)}; "
        given["root"] = root
        _refuse_pickles(root, name, path)
    if "image_size" in given:
        given["image_size"] = tuple(given["image_size"])
    if _takes_loader(kind):
        given["loader"] = _loaded
    try:
        dataset = kind(**given)
    except (RuntimeError, FileNotFoundError, NotADirectoryError) as reason:
        raise SpecError.at(
            at_root,
            "KD506",
            f"`torchvision.{name}` is not in `{given.get('root')}`: {first_line(reason)}",
            missing + _how_to_get(name, given),
        ) from reason
    except (TypeError, ValueError) as reason:
        raise SpecError.at((*path, "kwargs"), "KD505", f"`torchvision.{name}`: {reason}") from reason
    return _as_source(dataset, name, path)


def _takes_loader(kind: Any) -> bool:
    own = inspect.signature(kind.__init__).parameters
    return "loader" in own or issubclass(kind, torchvision.datasets.DatasetFolder)


def _loaded(file: str) -> Image.Image:
    """An image file as RGB; torchvision's own loader would make floats and 16 bits black."""
    return Image.fromarray(decoded(str(file), "RGB", rule=RULE))


def _how_to_get(name: str, kwargs: Mapping[str, Any]) -> str:
    root = str(kwargs.get("root", "FOLDER"))
    return f'get it once: python -c "import torchvision as t; t.datasets.{name}({root!r}, download=True)"'


def _refuse_pickles(root: Path, name: str, path: SpecPath) -> None:
    """Old MNIST folders hold pickled tensors, which torchvision would load with whatever code is in them."""
    for file in entries_like(root / name / "processed", "*.pt"):
        where = (*path, "kwargs", "root")
        help = "keep only the idx files in `raw`"
        raise SpecError.at(where, "KD506", f"`{file}` is a pickle and may run code", help)


def _as_source(dataset: Any, name: str, path: SpecPath) -> ArrayImages | ImageSource:
    labels = _labels(dataset, name, path)
    named = getattr(dataset, "classes", None)
    class_names = tuple(str(n) for n in named) if isinstance(named, (list, tuple)) and named else None
    if labels.min(initial=0) < 0:
        raise SpecError.at(path, "KD515", f"`torchvision.{name}` has samples without a label")
    pixels = getattr(dataset, "data", None)
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(pixels)
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4):
        return TorchvisionImages(dataset, labels, class_names)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    num_classes = len(class_names) if class_names else int(labels.max(initial=-1)) + 1
    return ArrayImages(
        images=pixels.contiguous(), labels=labels, num_classes=num_classes, class_names=class_names
    )


def _labels(dataset: Any, name: str, path: SpecPath) -> Ids:
    for attribute in ("targets", "labels", "_labels", "y"):
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            break
    else:
        listed = getattr(dataset, "_samples", None) or getattr(dataset, "samples", None)
        found = [entry[1] for entry in listed] if listed else [dataset[i][1] for i in range(len(dataset))]
    try:
        numbers = np.asarray(found)
        if numbers.ndim == 1 and np.issubdtype(numbers.dtype, np.integer):
            return numbers.astype(np.int64)
    except ValueError:
        pass
    raise SpecError.at((*path, "type"), "KD501", f"`torchvision.{name}` does not have one class per image")
