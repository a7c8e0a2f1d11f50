"""A classification dataset of image files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kdcli.data.draws import Ids
from kdcli.data.image_readers import PillowReader


class FileImages:
    """Files and their labels; each read when it is asked for.

    left_out: what lies beside the files and is none of the images, in a sentence. invented: whether the classes have
    names and nothing states their numbers.
    """

    def __init__(
        self,
        reader: PillowReader,
        files: list[str],
        labels: Ids,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        *,
        left_out: str | None = None,
        invented: bool = False,
    ) -> None:
        assert len(files) == len(labels)
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

    def name(self, index: int) -> str:
        """The file."""
        return self.files[index]

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> FileImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        labels = np.asarray(numbers, dtype=np.int64)[self.labels]
        return FileImages(self.reader, self.files, labels, len(names), names, left_out=self.left_out)
