"""A teacher: a frozen network that gives views, and which of its logits are the classes of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.taps import Feature, Taps, View
from kdcli.errors import SpecError, SpecPath
from kdcli.models.network import Network


class ViewSource(Protocol):
    """What gives a teacher's views of a batch: the live network, or its cache."""

    def view(self, batch: Mapping[str, Any]) -> View:
        """Features and outputs on this batch, without gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of the classes of a teacher.

    numbers: the teacher's class for each class of the data, in the data's order; None where its logits are read as
    they stand. names: its own classes, as its weights file states them. asked: whether the spec says `classes`,
    which stands at `path`. places: the step from there to each number, for errors. taps: those that a loss on
    logits reads. notice: what the user should know. hint: what `classes` would have to say, where that is known.
    """

    numbers: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    asked: bool = False
    path: SpecPath = ()
    places: tuple[str | int, ...] = ()
    taps: frozenset[str] = frozenset()
    notice: str | None = None
    hint: str | None = None
    _indices: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, logits: Tensor) -> Tensor:
        """Of logits [B, all the teacher's classes] the columns [B, K] of the data's classes, in the data's order."""
        assert self.numbers is not None
        if logits.device not in self._indices:
            self._indices[logits.device] = torch.tensor(self.numbers, device=logits.device)
        return logits.index_select(1, self._indices[logits.device])

    def outputs(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The named outputs with these columns as `logits`."""
        logits = outputs.get("logits")
        if self.numbers is None or not is_logits(logits):
            return outputs
        return {**outputs, "logits": self.of(logits)}

    def view(self, view: View, taps: frozenset[str]) -> View:
        """The view with these columns wherever it shows the logits. taps: those that hold them."""
        if self.numbers is None:
            return view
        # One tensor that is shown under several names stays one: a cache stores it once.
        made: dict[int, Tensor] = {}

        def of(value: Any) -> Any:
            if not is_logits(value):
                return value
            if id(value) not in made:
                made[id(value)] = self.of(value)
            return made[id(value)]

        features: dict[str, Feature] = {
            name: of(value) if name in taps else value for name, value in view.features.items()
        }
        outputs = {name: of(value) if name == "logits" else value for name, value in view.outputs.items()}
        return replace(view, features=features, outputs=outputs)

    def classifier(self, module: nn.Module) -> nn.Module:
        """A copy of the teacher's classifier, cut down to these columns."""
        if self.numbers is None or not isinstance(module, nn.Linear | nn.Conv2d):
            return module
        index = torch.tensor(self.numbers, device=module.weight.device)
        module.weight = nn.Parameter(module.weight.index_select(0, index), requires_grad=False)
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.index_select(0, index), requires_grad=False)
        if isinstance(module, nn.Linear):
            module.out_features = len(self.numbers)
        else:
            module.out_channels = len(self.numbers)
        return module

    def check(self, teacher: str, outputs: Mapping[str, Any]) -> None:
        """Raise SpecError KD472 where the teacher has no such classes. outputs: of the whole network."""
        if self.numbers is None:
            return
        logits = outputs.get("logits")
        if not is_logits(logits):
            if not self.asked:
                return
            message = f"{teacher} gives no logits [B, K], so there is nothing that `classes` could select"
            help = "leave `classes` out, or let the teacher's list end with its classifier"
            raise SpecError.at(self.path, "KD472", message, help, on_key=True)
        width = logits.shape[1]
        wrong = [number for number in self.numbers if number >= width]
        if wrong:
            place = self.places[self.numbers.index(wrong[0])] if self.places else None
            raise SpecError.at(
                self.path if place is None else (*self.path, place),
                "KD472",
                f"{teacher} has no class {wrong[0]}: it gives {width} logits",
                f"its classes are counted from 0 to {width - 1}",
            )


NO_LABELS = Labels()
"""Nothing is known of the classes: logits are read as they stand."""


def is_logits(value: Any) -> TypeGuard[Tensor]:
    """Whether these are logits of one head, [B, K]."""
    return isinstance(value, Tensor) and value.dim() == 2


def hold_logits(value: Any, view: View, *, read_as_logits: bool) -> bool:
    """Whether a feature holds the network's logits.

    It is the output of that name or made by the layer that makes it; where a loss on logits reads it, it may be
    another of that shape, such as what goes into a softmax. view: of the whole network, as the first run gives it.
    """
    logits = view.outputs.get("logits")
    if not is_logits(logits) or not is_logits(value):
        return False
    return value is logits or (read_as_logits and value.shape == logits.shape)


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
        self.headless = isinstance(taps.net, Network) and taps.net.headless
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
