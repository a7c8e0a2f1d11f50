"""FRS: mimic neck maps and scores where the teacher sees something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from kdcli.distill.mimickers import MIMICKERS, FrsOptions
from kdcli.distill.mimickers.detectors import DetectorMimicker, made_sides
from kdcli.distill.mimickers.mimicker import Compared, MimicContext, Requirements
from kdcli.distill.taps import View, tapped
from kdcli.distill.terms import TapSide, binding_of, sides_of
from kdcli.errors import SpecError
from kdcli.losses import loss_of
from kdcli.spec.schema import Job, LossSpec
from kdcli.spec.tables import Method


class FrsMimicker(DetectorMimicker):
    """`neck_loss` (l2) on the tapped maps and `pred_loss` (bce) on the score maps, both weighted by a mask.

    The mask is, at each position of each level, the greatest of the teacher's sigmoid scores there. Levels
    are added up. pred_loss compares the student's scores with the teacher's, from their logits. Both are
    divided by the sum of the mask over positions, as in United-Perception, whose weights fit; with
    `mask_count: elements` by its sum over all channels, as `l2_loss` and `bce_loss` divide elsewhere: 256
    channels weaken neck_loss 256 times. (`batch_mean: true` divides by the batch either way.) With
    `pred_gradient: false`, the silence of United-Perception, pred_loss is logged and moves nothing.
    Source: "Distilling Object Detectors with Feature Richness", arXiv:2111.00674.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["FRS"]
    options: FrsOptions

    @classmethod
    def requirements_of(cls, job: Job) -> Requirements:
        """The class logits of every level, of both sides."""
        return Requirements(student_outputs=frozenset({"preds"}), teacher_outputs=frozenset({"preds"}))

    def __init__(self, context: MimicContext) -> None:
        super().__init__(context)
        losses = self.losses_of(context.job)
        self.by_positions = self.options.mask_count == "positions"
        # Probabilities that are compared know no temperature, and as logits they are compared at 1.
        self.compares_logits = "from_logits" in binding_of(loss_of(losses["pred_loss"].type)).keywords
        given = bool(losses["pred_loss"].kwargs.get("from_logits", False))
        as_logits = {"from_logits": True, "T": 1.0} if self.compares_logits and not given else {}
        own, neck = (
            self.score_maps(context.student, "the student"),
            sides_of(context.student, self.student_taps),
        )
        self.counts: dict[str, int] = {}
        for teacher, view in context.teachers.items():
            maps, scores = sides_of(view, self.teacher_taps[teacher]), self.score_maps(view, teacher)
            self.counts[teacher] = count = len(maps)
            if not count <= min(len(own), len(scores)):
                raise SpecError.at(
                    (*context.path, "teachers", teacher, "mimic_name"),
                    "KD463",
                    f"{count} layers, and the heads have {len(own)} and {len(scores)} levels",
                    "name one neck layer for each level, from the finest on",
                )
            preds = [made_sides("preds", side[:count]) for side in (own, scores)]
            factors = self._factors(losses["neck_loss"], maps)
            self.add(context, "neck_loss", teacher, neck, maps, masked=True, factors=factors)
            factors = self._factors(losses["pred_loss"], preds[1])
            self.add(context, "pred_loss", teacher, *preds, adapted=False, options=as_logits, factors=factors)

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The tapped maps and the score maps of each level, under the teacher's best score there."""
        neck, levels = tapped(student, self.student_taps), self.score_maps(student, "the student")
        if not self.options.pred_gradient:
            levels = [level.detach() for level in levels]
        for teacher, count in self.counts.items():
            view, own = teachers[teacher], levels[:count]
            scores = [level.detach() for level in self.score_maps(view, teacher)[:count]]
            masks = [level.sigmoid().amax(dim=1, keepdim=True) for level in scores]
            maps = tapped(view, self.teacher_taps[teacher])
            yield f"{teacher}:neck_loss", Compared(students=neck, teachers=maps, masks=masks)
            if not self.compares_logits:
                own, scores = ([level.sigmoid() for level in side] for side in (own, scores))
            yield f"{teacher}:pred_loss", Compared(students=own, teachers=scores, masks=masks)

    @property
    def logged_only(self) -> Mapping[str, str]:
        """pred_loss with `pred_gradient: false`."""
        return {} if self.options.pred_gradient else {"pred_loss": "`pred_gradient: false`"}

    def _factors(self, loss: LossSpec, sides: Sequence[TapSide]) -> list[float] | None:
        """The channels of each level: times these a mean over elements is one over positions.

        sides: of the teacher; those of an adapted student have as many channels.
        """
        divides_by_mask = loss_of(loss.type).divides_by_mask and not loss.kwargs.get("batch_mean", False)
        return [float(side.shape[1]) for side in sides] if self.by_positions and divides_by_mask else None
