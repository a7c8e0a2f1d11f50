"""Mutual learning: networks that are trained together, each the others' teacher."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdcli.distill.adapters import shown
from kdcli.distill.binding import binding_of
from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View
from kdcli.errors import SpecError
from kdcli.losses import loss_of
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method


class MutualMimicker(Mimicker):
    """Each network learns from every other's logits of the same step (DML), which give no gradient back.

    `loss` (kd_loss at T 1 by default, a function of logits) for each ordered pair, divided by the number of
    others and summed over the networks. The job has no teacher; the student's `mimic_name` lists the
    logits: its own and those of the `peer` modules of `net` ([logits, peer_logits]). Each network's
    cross entropy is the task's.
    Source: "Deep Mutual Learning", arXiv:1706.00384.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["Mutual"]

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """The labels, where the loss asks for them."""
        return Needs(batch=binding_of(loss_of(cls.losses_of(job)["loss"].type)).needs.batch)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        loss = self.losses_of(setting.job)["loss"]
        self.names = tuple(setting.job.student.mimic_name)
        self.binding = binding_of(loss_of(loss.type))
        kwargs = {**loss_of(loss.type).preset, **loss.kwargs}
        self.loss_weight, self.kwargs = self.binding.weight_of(kwargs), self.binding.own(kwargs)
        path = (*setting.path, "student", "mimic_name")
        if setting.job.teachers or self.binding.stateful or "teacher" not in self.binding.inputs:
            raise SpecError.at(
                setting.path,
                "KD454",
                "mutual learning takes no teacher, and a loss that is a function of two logits",
                "leave the teacher out, and use kd_loss, dist, dkd or another logit loss",
            )
        shapes = [setting.student.features[name] for name in self.names]
        sizes = [one.shape for one in shapes if isinstance(one, Tensor)]
        if len(sizes) != len(self.names) or len(sizes) < 2 or len({*sizes}) > 1 or len(sizes[0]) != 2:
            given = ", ".join(shown(size) for size in sizes) or "none"
            raise SpecError.at(
                path,
                "KD454",
                f"mutual learning takes the logits [B, K] of two networks or more, not {given}",
                "add a module of type `peer` to `net`, and write `mimic_name: [logits, peer_logits]`",
            )

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        clock: Clock,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """`loss`."""
        if "loss" not in wanted:
            return {}
        logits = [student.features[name] for name in self.names]
        losses = []
        for index, mine in enumerate(logits):
            for other, theirs in enumerate(logits):
                if other != index:
                    assert isinstance(theirs, Tensor)
                    given = {"student": mine, "teacher": theirs.detach(), "labels": batch.get("labels")}
                    given |= {"step": clock.stage_step, "epoch": int(clock.epoch)}
                    loss = self.binding.compute(self.binding.target, given, self.kwargs, self.loss_weight)
                    losses.append(loss)
        return {"loss": torch.stack(losses).sum() / (len(logits) - 1)}
