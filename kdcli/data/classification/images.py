"""Classification datasets whose images are read one by one: from files, or from a Dataset in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.data.classification.given_labels import labels_of, whole_numbers
from kdcli.data.draws import Ids
from kdcli.data.image_readers import PillowReader, pixels_of
from kdcli.data.sources import BadSample


class FileImages:
    """Image files and their labels, each file read when it is asked for.

    labels: int64 [N] or [N, heads], None for images alone; num_classes is 0 then.
    left_out: what lies beside the files and is none of the images, in a sentence. invented: whether the classes have
    names and nothing states their numbers.
    """

    def __init__(
        self,
        reader: PillowReader,
        files: list[str],
        labels: Ids | None,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        *,
        left_out: str | None = None,
        invented: bool = False,
    ) -> None:
        assert labels is None or len(files) == len(labels)
        self.reader, self.files = reader, files
        self.labels, self.num_classes, self.class_names = labels, num_classes, class_names
        self.left_out, self.invented = left_out, invented
        self.notices = (*reader.notices, *([left_out] if left_out else []))

    def located(self) -> tuple[Sequence[str], Sequence[str]]:
        """The files and the folders that they lie in."""
        return self.files, self.reader.roots

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Tensor:
        """uint8 [C, H, W]; raises BadSample."""
        return self.reader.read(self.files[index])

    def read_reduced(
        self, index: int, reduction: Callable[[int, int], int]
    ) -> tuple[Tensor, tuple[int, int], int]:
        """As the reader's: the pixels, the whole image's height and width, by how much they were reduced."""
        if not self.reader.scaled_decode:
            pixels = self.read(index)
            return pixels, (pixels.shape[1], pixels.shape[2]), 1
        return self.reader.read_reduced(self.files[index], reduction)

    def name(self, index: int) -> str:
        """The file."""
        return self.files[index]

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> FileImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        assert self.labels is not None
        labels = np.asarray(numbers, dtype=np.int64)[self.labels]
        return FileImages(self.reader, self.files, labels, len(names), names, left_out=self.left_out)


class DatasetImages:
    """A dataset of (image, label) that is read item by item; images are PIL's, uint8 [C, H, W] or [H, W, C] arrays.

    labels: int64 [N]; else the dataset's list where its items say the same, else every item is asked for its own.
    class_names: else the dataset's `classes`; without names the greatest label tells how many there are. Raises
    ValueError for labels that are no whole numbers, or beyond the classes.
    """

    def __init__(
        self, dataset: Any, labels: Sequence[int] | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        self.dataset = dataset
        numbers, notice = (whole_numbers(labels), None) if labels is not None else labels_of(dataset)
        self.notices: tuple[str, ...] = () if notice is None else (notice,)
        named = getattr(dataset, "classes", None) if class_names is None else class_names
        self.labels: Ids | None = numbers
        self.class_names = None if named is None else tuple(map(str, named))
        self.num_classes = int(numbers.max(initial=-1)) + 1 if named is None else len(named)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= self.num_classes))
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"the label {numbers[first]} of item {first} is none of {self.num_classes} classes from 0 on"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Any:
        """The image of an item, as the dataset gives it."""
        return self.dataset[index][0]

    def read(self, index: int) -> Tensor:
        """uint8 [C, H, W]; raises BadSample."""
        try:
            image = self.image(index)
            if isinstance(image, Tensor):
                pixels = image
            else:
                array = np.asarray(image) if not hasattr(image, "mode") else pixels_of(image, _mode(image))
                array = array[:, :, None] if array.ndim == 2 else array
                pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
        except Exception as reason:  # the dataset's own code raises anything
            raise BadSample(self.name(index), str(reason) or type(reason).__name__) from reason
        if pixels.dtype != torch.uint8 or pixels.dim() != 3:
            raise BadSample(
                self.name(index), f"it is {pixels.dtype} {list(pixels.shape)}, not uint8 [C, H, W]"
            )
        return pixels

    def name(self, index: int) -> str:
        """The dataset and the number."""
        return f"{type(self.dataset).__name__}[{index}]"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> DatasetImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        assert self.labels is not None
        return DatasetImages(self.dataset, np.asarray(numbers, dtype=np.int64)[self.labels].tolist(), names)


def _mode(image: Any) -> Any:
    return "GRAY" if image.mode in ("L", "1") else "RGB"
