"""Mutual learning: networks that are trained together, each the others' teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, ClassVar

from kdcli.distill.adapters import shown
from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.mimicker import Compared, MimicContext, Mimicker, Requirements
from kdcli.distill.taps import View, tapped, tensors_in
from kdcli.distill.terms import TapPair, Term, binding_of, sides_of
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
    def requirements_of(cls, job: Job) -> Requirements:
        """The labels, where the loss asks for them."""
        return Requirements(batch=binding_of(loss_of(cls.losses_of(job)["loss"].type)).requirements.batch)

    def __init__(self, context: MimicContext) -> None:
        super().__init__(context)
        loss = self.losses_of(context.job)["loss"]
        binding = binding_of(loss_of(loss.type))
        path = (*context.path, "student", "mimic_name")
        if context.job.teachers or binding.stateful or "teacher" not in binding.inputs:
            raise SpecError.at(
                context.path,
                "KD454",
                "mutual learning takes no teacher, and a loss that is a function of two logits",
                "leave the teacher out, and use kd_loss, dist, dkd or another logit loss",
            )
        sides = sides_of(context.student, self.student_taps)
        sizes = [side.shape for side in sides if side.element is None]
        if len(sizes) != len(self.student_taps) or len({*sizes}) != 1 or len(sizes) < 2 or len(sizes[0]) != 2:
            given = ", ".join(shown(size) for size in sizes) or "none"
            raise SpecError.at(
                path,
                "KD454",
                f"mutual learning takes the logits [B, K] of two networks or more, not {given}",
                "add a module of type `peer` to `net`, and write `mimic_name: [logits, peer_logits]`",
            )
        for option in ("temperature", "standardize", "adapter"):
            for place, part in ((context.path, context.job), ((*context.path, "losses", "loss"), loss)):
                if getattr(part, option):
                    help = "set `kwargs.T` of the loss" if option == "temperature" else "leave it out"
                    message = f"`{option}` does nothing here: `Mutual` compares logits as they are"
                    raise SpecError.at((*place, option), "KD452", message, help, on_key=True)
        kwargs = {**loss_of(loss.type).preset, **loss.kwargs}
        self.terms["loss"] = Term(
            "loss",
            loss.type,
            [TapPair(student=own, teacher=other) for own, other in permutations(sides, 2)],
            binding=binding,
            calls=[binding.target],
            kwargs=binding.own(kwargs),
            loss_weight=binding.weight_of(kwargs),
        )

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """Every ordered pair of two networks' logits."""
        logits = list(tensors_in(tapped(student, self.student_taps)))
        students, others = zip(*permutations(logits, 2), strict=True)
        teachers_logits = [other.detach() for other in others]
        yield "loss", Compared(students=students, teachers=teachers_logits, divisor=len(logits) - 1)
