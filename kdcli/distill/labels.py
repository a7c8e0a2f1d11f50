"""Which of a teacher's logits are the classes of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from kdcli.distill.taps import Feature, View
from kdcli.errors import SpecError, SpecPath


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
