"""Images a second: kdcli's in-memory batches against a per-sample Pillow pipeline with two workers.

    OMP_WAIT_POLICY=passive python tests/benchmarks/data_path.py [ROUNDS]

Fashion-MNIST, batch 128, padded crop, flip, normalise. The sides alternate; the medians are compared. About
twenty seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdcli.data.build import build_loader, build_source, open_source
from kdcli.data.classification.arrays import fashion_mnist
from kdcli.spec.places import HERE
from kdcli.spec.schema import DataPart

BATCH, PILLOW_SAMPLES = 128, 10_240
MEAN, STD = [0.286], [0.353]


class PillowImages(Dataset[tuple[Tensor, int]]):
    """The usual way: one image at a time, through Pillow."""

    def __init__(self) -> None:
        source = fashion_mnist(("dataset", "train"), HERE, True, limit=PILLOW_SAMPLES)
        self.images, self.labels = source.images.squeeze(1).numpy(), source.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(28, padding=2),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def in_memory() -> DataPart:
    """The same work as a spec."""
    transformer: list[dict[str, Any]] = [
        {"type": "torch_random_crop", "kwargs": {"size": 28, "padding": 2}},
        {"type": "torch_random_horizontal_flip"},
        {"type": "to_tensor"},
        {"type": "normalize", "kwargs": {"mean": MEAN, "std": STD}},
    ]
    return DataPart.model_validate(
        {
            "dataset": {"type": "fashion_mnist", "kwargs": {"transformer": transformer}},
            "batch_sampler": {"kwargs": {"batch_size": BATCH}},
        }
    )


def rate(batches: Iterable[Any], size: Callable[[Any], int]) -> float:
    """Images a second over one epoch."""
    start, images = time.perf_counter(), 0
    for batch in batches:
        images += size(batch)
    return images / (time.perf_counter() - start)


def main(rounds: int) -> None:
    """Prints both rates and their ratio."""
    part, path = in_memory(), ("dataset", "train")
    source = build_source(part, train=True, path=path)
    ours = build_loader(open_source(source, part, train=True, path=path), seed=0)
    theirs = DataLoader(PillowImages(), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    rates: dict[str, list[float]] = {"in memory": [], "Pillow, 2 workers": []}
    for epoch in range(rounds + 1):
        pair = (
            rate(theirs, lambda batch: len(batch[1])),
            rate(ours.batches(epoch), lambda batch: len(batch["labels"])),
        )
        if epoch:  # the first warms up
            rates["Pillow, 2 workers"].append(pair[0])
            rates["in memory"].append(pair[1])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        print(f"{name:<18} {median:>10,.0f} images/s")
    print(
        f"ratio {medians['in memory'] / medians['Pillow, 2 workers']:.1f}, threads {torch.get_num_threads()}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
