"""Networks, data and a spec in memory, for tests of Python's functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset


class Net(nn.Module):
    """A small classifier; dropout draws from the main generator."""

    def __init__(self, width: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes]."""
        logits: Tensor = self.fc(self.drop(torch.relu(self.bn(self.conv(image))).mean((2, 3))))
        return logits


def made(width: int = 4, classes: int = 4, *, seed: int = 0) -> Net:
    """A network with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(width, classes)


def images(count: int = 32) -> TensorDataset:
    """Float images [1, 8, 8] whose brightness tells the class of 4."""
    labels = torch.arange(count) % 4
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    return TensorDataset(noise + labels[:, None, None, None] * 0.5, labels)


class Noisy(Dataset[Any]):
    """The same images with noise from torch's generator, another one each time."""

    def __init__(self, count: int = 32) -> None:
        self.images = images(count)
        self.targets = self.images.tensors[1].tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image + torch.randn(image.shape) * 0.1, int(label)


def spec(**trainer: Any) -> dict[str, Any]:
    """A spec that leaves networks and data to Python."""
    return {
        "runtime": {"runner": {"type": "kd"}, "random_seed": 1, "device": "cpu"},
        "mimic": {
            "cfgs": {"loss": {"type": "kd_loss", "kwargs": {"T": 2}}},
            "student": {"mimic_name": ["logits"]},
            "teacher0": {"mimic_name": ["logits"], "allow_weak_teacher": True},
        },
        "dataset": {"batch_sampler": {"kwargs": {"batch_size": 8}}},
        "trainer": {
            "max_epoch": 2,
            "optimizer": {"type": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9}},
            **trainer,
        },
    }
