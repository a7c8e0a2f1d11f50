"""A teacher: a frozen network that gives views, and which of its logits are the classes of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.taps import Feature, Taps, View
from kdcli.errors import SpecError, SpecPath
from kdcli.models.feature_layouts import only_size
from kdcli.models.hub import PixelsTrainedOn
from kdcli.models.network import Network
from kdcli.spec.schema import TeacherInput


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
    logits reads. by_class: whether a loss takes its classes for the data's. notice: what the user should know. hint:
    what `classes` would have to say, where that is known. unlike: how its names differ from the data's, where they
    are matched by number all the same. misplaced: a name that both have at another number.
    """

    numbers: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    asked: bool = False
    path: SpecPath = ()
    places: tuple[str | int, ...] = ()
    taps: frozenset[str] = frozenset()
    by_class: bool = False
    notice: str | None = None
    hint: str | None = None
    unlike: str | None = None
    misplaced: str | None = None
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
    into what this teacher expects. precision, autocast: its own. labels: which of its logits are the
    classes of the data; nobody sees the others.
    """

    def __init__(
        self,
        name: str,
        taps: Taps,
        *,
        batch_statistics: bool = False,
        pixels: PixelChange | None = None,
        precision: str = "fp32",
        autocast: torch.autocast | None = None,
        labels: Labels = NO_LABELS,
    ) -> None:
        self.name = name
        self.precision = precision
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
        with self.autocasting():
            outputs = self.net(self.pixels_of(batch))
        return self.labels.outputs(outputs)

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
            with self.autocasting():
                return self.taps.view(batch)

    def autocasting(self) -> AbstractContextManager[object]:
        """Its precision, for a `with` block.

        A context of its own: one torch.autocast entered twice, here and by who evaluates, stays switched on.
        """
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.autocast.device, dtype=self.autocast.fast_dtype)


def use_batch_statistics(net: nn.Module) -> None:
    """Let every BatchNorm normalise by its batch, and never touch its running statistics."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.training = True


class PixelChange:
    """Convert the student's normalised pixels into a teacher's: other mean, std and size, same image.

    student_mean/std, mean/std: per channel, of pixels in [0, 1]; size: (height, width) or None; interpolation: how it
    is resized. by: who states these pixels, where it isn't the spec. notice: what of it can't be done.
    """

    def __init__(
        self,
        student_mean: Sequence[float],
        student_std: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None,
        interpolation: str = "bilinear",
        by: str | None = None,
        notice: str | None = None,
    ) -> None:
        scale = [s / t for s, t in zip(student_std, std, strict=True)]
        shift = [(m - n) / t for m, n, t in zip(student_mean, mean, std, strict=True)]
        self.scale, self.shift = torch.tensor(scale), torch.tensor(shift)
        self.same_pixels = scale == [1.0] * len(scale) and shift == [0.0] * len(shift)
        self.size, self.interpolation, self.by = size, interpolation, by
        self.mean, self.std, self.notice = tuple(mean), tuple(std), notice

    def facts(self) -> dict[str, Any]:
        """What it makes of an image, as plain values."""
        return {
            "size": None if self.size is None else list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
        }

    def __str__(self) -> str:
        numbers = [" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        size = [] if self.size is None else [f"{self.size[0]}x{self.size[1]} ({self.interpolation})"]
        pixels = ", ".join([*size, f"mean {numbers[0]}", f"std {numbers[1]}"])
        return pixels if self.by is None else f"{pixels}, as {self.by} says; `input` in the spec goes over it"

    def __call__(self, image: Tensor) -> Tensor:
        """image [B, C, H, W] as the student sees it; a new tensor, the batch stays as it is."""
        if not self.same_pixels:
            scale = self.scale.to(image.device, image.dtype)[:, None, None]
            shift = self.shift.to(image.device, image.dtype)[:, None, None]
            image = image * scale + shift
        if self.size is not None and tuple(image.shape[-2:]) != self.size:
            if self.interpolation == "nearest":
                return F.interpolate(image, self.size, mode="nearest-exact")
            mode = self.interpolation
            image = F.interpolate(image, self.size, mode=mode, align_corners=False, antialias=True)
        return image


def pixels_of(
    own: TeacherInput | None,
    stated: PixelsTrainedOn | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: tuple[int, int] | None,
    net: nn.Module,
) -> PixelChange | None:
    """The change from the student's pixels to a teacher's; None where both take the same.

    own: what the spec says of the teacher's; stated: what its weights say, for what the spec leaves open. mean, std,
    size: of the student's pixels, None where they aren't known. net: the teacher, which may take one size alone. Images
    of other proportions than the stated ones keep their size, unless the network takes one alone.
    """
    if own is None and stated is None:
        return None
    own = own or TeacherInput()
    asked = None if own.size is None else (own.size, own.size) if isinstance(own.size, int) else own.size
    wanted: Any = asked
    notice = None
    means, stds, by = own.mean, own.std, None
    if stated is not None:
        wanted = asked or only_size(net) or (stated.size if _alike(stated.size, size) else None)
        channels = None if mean is None or std is None else len(mean)
        if channels == len(stated.mean):
            means, stds = means or stated.mean, stds or stated.std
        elif not (means and stds):
            why = (
                "the data is not normalised by a `normalize` transform"
                if channels is None
                else f"the images have {channels} channel{'' if channels == 1 else 's'}, not {len(stated.mean)}"
            )
            notice = f"mean and std that {stated.by} states are not used: {why}"
        by = stated.by
    ones = tuple(1.0 for _ in means or mean or (0.0,))
    mean, std = mean or tuple(0.0 for _ in ones), std or ones
    how = own.interpolation or ("bilinear" if stated is None else _interpolation(stated.interpolation))
    change = PixelChange(mean, std, means or mean, stds or std, wanted, how, by, notice)
    same_size = wanted is None or (size is not None and tuple(wanted) == tuple(size))
    return None if stated is not None and notice is None and change.same_pixels and same_size else change


def _alike(stated: tuple[int, int] | None, size: tuple[int, int] | None) -> bool:
    """Whether images of two sizes have the same proportions; those of unknown size count as such."""
    return stated is None or size is None or stated[0] * size[1] == stated[1] * size[0]


def _interpolation(name: str) -> str:
    """The nearest way of resizing that a device has; libraries name a few more."""
    return name if name in ("nearest", "bilinear", "bicubic") else "bicubic"
