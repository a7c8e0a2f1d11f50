"""The student that is measured and taken away, where a method gives it another end (SimKD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.distill.taps import Taps
from kdcli.errors import SpecError, SpecPath
from kdcli.models.network import Network
from kdcli.spec.schema import Mimic

END = "_end"
"""The new end's name among the modules; no module of a spec can be called so."""


class DeployedStudent(nn.Module):
    """A network up to the feature `tap`, then `end`, which turns it into `logits`.

    Its modules are the network's own, under their own names, and the end as `_end`: weights have the names
    they have in the network. What comes after the tap in the network is kept and not run.
    """

    def __init__(self, net: Network, tap: str, end: nn.Module) -> None:
        super().__init__()
        for name, child in net.named_children():
            self.add_module(name, child)
        self.add_module(END, end)
        self.tap = tap
        # Taps are no module: the network's children are registered once, above.
        self.taps = Taps(net, [tap], ())

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`logits` [B, K]."""
        with self.taps:
            if self.taps.counts is None:
                self.taps.learn(batch)
            feature = self.taps.view(batch).features[self.tap]
        return {"logits": self.get_submodule(END)(feature)}

    def training_only(self) -> frozenset[str]:
        """Names of the modules that serve training alone and are not exported."""
        net = self.taps.net
        assert isinstance(net, Network)
        return net.training_only()

    def exported_state(self) -> dict[str, Tensor]:
        """The network's exported state, and the end's."""
        dropped = self.training_only()
        return {key: value for key, value in self.state_dict().items() if key.split(".", 1)[0] not in dropped}


def deployed_student(student: nn.Module, mimickers: Mapping[str, Mimicker], mimic: Mimic | None) -> nn.Module:
    """The student itself, or with the end that one of the methods gives it.

    Raises SpecError KD448 where the task's loss would train the end that is thrown away, KD449 where
    two methods give an end.
    """
    ends = {
        name: found for name, mimicker in mimickers.items() if (found := mimicker.student_end()) is not None
    }
    if not ends or mimic is None:
        return student
    if len(ends) > 1:
        second = list(ends)[1]
        raise SpecError.at(
            ("mimic", "jobs", second),
            "KD449",
            f"jobs {' and '.join(f'`{name}`' for name in ends)} both replace the student's classifier",
            "keep one of them",
        )
    for path in _with_task_loss(mimic):
        raise SpecError.at(
            path,
            "KD448",
            f"job `{next(iter(ends))}` replaces the student's classifier, which the task's loss would train",
            "write `task_loss: false` under `mimic`",
        )
    ((tap, end),) = ends.values()
    assert isinstance(student, Network)
    return DeployedStudent(student, tap, end)


def _with_task_loss(mimic: Mimic) -> list[SpecPath]:
    """The places where the task's loss is on."""
    if not mimic.stages:
        return [("mimic", "task_loss")] if mimic.task_loss else []
    return [
        ("mimic", "stages", index)
        for index, stage in enumerate(mimic.stages)
        if (mimic.task_loss if stage.task_loss is None else stage.task_loss)
    ]
