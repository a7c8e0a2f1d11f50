"""A dataset with its reader, transforms, a batch function and a sampler."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdcli.data.draws import Draws, Ids, permutation


class Painter:
    """An image reader: one grey image for each number."""

    def __init__(self, *, value: int = 200) -> None:
        self.value = value

    def paint(self, index: int) -> Tensor:
        """uint8 [1, 8, 8] with a bright row that tells the class."""
        image = torch.full((1, 8, 8), index % 7 * 10, dtype=torch.uint8)
        image[0, index % 4 * 2] = self.value
        return image


class Dots(Dataset[Any]):
    """Pairs (image, label) of four classes."""

    classes = ("a", "b", "c", "d")

    def __init__(
        self, train: bool, image_reader: Painter, samples: int = 24, *, order: Literal["up", "down"] = "up"
    ) -> None:
        self.reader, self.samples, self.shift = image_reader, samples, 0 if train else 2
        self.targets = [(index + self.shift) % 4 for index in range(samples)]
        if order == "down":
            self.targets.reverse()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.reader.paint(index + self.shift), self.targets[index]


class Noise:
    """A transform of many images that draws for each."""

    random = True

    def __init__(self, *, strength: float = 0.1) -> None:
        self.strength = strength

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        seeds = [np.random.default_rng(seed) for seed in draws.seeds()]
        noise = torch.stack([torch.from_numpy(g.normal(size=tuple(images.shape[1:]))) for g in seeds])
        return images + self.strength * noise.to(images.dtype)


class Flip:
    """A transform of one image."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand(()) < 0.5 else image


class Dim:
    """A batch function."""

    def __init__(self, *, least: float = 0.5) -> None:
        self.least = least

    def __call__(self, batch: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        return {**batch, "image": batch["image"] * float(generator.uniform(self.least, 1.0))}


class Backwards:
    """A sampler: the last sample first."""

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        *,
        shuffled: bool = False,
    ) -> None:
        self.count, self.size, self.rank, self.world = num_samples, batch_size, rank, world_size
        self.seed, self.shuffled = seed, shuffled

    def batches(self, epoch: int) -> list[Ids]:
        ids = (
            permutation(self.seed, epoch, self.count) if self.shuffled else np.arange(self.count)[::-1].copy()
        )
        whole = self.size * self.world
        parts = [ids[start : start + whole] for start in range(0, self.count, whole)]
        shares = (np.array_split(part, self.world)[self.rank] for part in parts)
        return [share for share in shares if len(share)]


def darker(image: Tensor) -> Tensor:
    """What a transform does, and no transform: nothing makes it with kwargs."""
    return image // 2
