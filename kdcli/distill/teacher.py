"""A teacher: a frozen network that gives views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.labels import NO_LABELS, Labels, hold_logits
from kdcli.distill.taps import Taps, View


class ViewSource(Protocol):
    """What gives a teacher's views of a batch: the live network, or its cache."""

    def view(self, batch: Mapping[str, Any]) -> View:
        """Features and outputs on this batch, without gradient."""
        ...


class Teacher:
    """A frozen network, not an nn.Module, so that .train(), DDP, EMA and state_dict() can't reach it.

    taps: what the jobs need of it, already entered. batch_statistics: normalise by the batch and leave
    the running statistics untouched (`teacher_bn_mode: train`). pixels: turns the student's pixels
    into what this teacher expects. autocast: its own precision. labels: which of its logits are the
    classes of the data; nobody sees the others.
    """

    def __init__(
        self,
        name: str,
        taps: Taps,
        *,
        batch_statistics: bool = False,
        pixels: PixelChange | None = None,
        autocast: torch.autocast | None = None,
        labels: Labels = NO_LABELS,
    ) -> None:
        self.name = name
        self.taps = taps
        self.net: nn.Module = taps.net.eval().requires_grad_(False)
        self.pixels = pixels
        self.autocast = autocast
        self.labels = labels
        self._logits: frozenset[str] = frozenset()
        if batch_statistics:
            use_batch_statistics(self.net)

    def pixels_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with the pixels that this teacher expects."""
        return batch if self.pixels is None else {**batch, "image": self.pixels(batch["image"])}

    def outputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The named outputs of the whole network, on the student's batch."""
        return self.labels.outputs(self.net(self.pixels_of(batch)))

    def learn(self, batch: Mapping[str, Any]) -> View:
        """Run the whole network once, so that later views know where to stop."""
        with self.autocast or nullcontext():
            view = self.taps.learn(self.pixels_of(batch))
        self.labels.check(self.name, view.outputs)
        self._logits = frozenset(
            name
            for name, value in view.features.items()
            if hold_logits(value, view, read_as_logits=name in self.labels.taps)
        )
        return self.labels.view(view, self._logits)

    def view(self, batch: Mapping[str, Any]) -> View:
        """The teacher's view of a batch, run as far as it is needed."""
        return self.labels.view(self.whole_view(batch), self._logits)

    def whole_view(self, batch: Mapping[str, Any]) -> View:
        """The same view with all logits that the network has."""
        batch = self.pixels_of(batch)
        with torch.no_grad():
            if self.autocast is None:
                return self.taps.view(batch)
            with self.autocast:
                return self.taps.view(batch)


def use_batch_statistics(net: nn.Module) -> None:
    """Let every BatchNorm normalise by its batch, and never touch its running statistics."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.training = True


class PixelChange:
    """Convert the student's normalised pixels into a teacher's: other mean, std and size, same image.

    student_mean/std, mean/std: per channel, of pixels in [0, 1]; size: (height, width) or None.
    """

    def __init__(
        self,
        student_mean: Sequence[float],
        student_std: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None,
    ) -> None:
        scale = [s / t for s, t in zip(student_std, std, strict=True)]
        shift = [(m - n) / t for m, n, t in zip(student_mean, mean, std, strict=True)]
        self.scale, self.shift = torch.tensor(scale), torch.tensor(shift)
        self.same_pixels = scale == [1.0] * len(scale) and shift == [0.0] * len(shift)
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        """image [B, C, H, W] as the student sees it; a new tensor, the batch stays as it is."""
        if not self.same_pixels:
            scale = self.scale.to(image.device, image.dtype)[:, None, None]
            shift = self.shift.to(image.device, image.dtype)[:, None, None]
            image = image * scale + shift
        if self.size is not None and tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", align_corners=False, antialias=True)
        return image
