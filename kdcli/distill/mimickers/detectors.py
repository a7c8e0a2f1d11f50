"""What the methods for detectors have in common: a term for each teacher and loss, and what heads give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from kdcli.distill.build_terms import build_term
from kdcli.distill.mimickers.mimicker import MimicContext, Mimicker
from kdcli.distill.tap_checks import check_masked
from kdcli.distill.taps import View
from kdcli.distill.terms import TapSide, sides_of
from kdcli.errors import SpecError, SpecPath


class DetectorMimicker(Mimicker):
    """A method whose own losses are each compared with every teacher, over features that it picks or makes."""

    def add(
        self,
        context: MimicContext,
        name: str,
        teacher: str,
        students: Sequence[TapSide],
        teachers: Sequence[TapSide],
        *,
        masked: bool = False,
        **more: Any,
    ) -> None:
        """Build the term of one loss and one teacher; its pairs are added up. more: as build_term takes it.

        masked: its features are compared under a mask, and so have to be maps; raises SpecError KD451 where not.
        """
        if masked:
            check_masked(context, students, teacher, teachers)
        loss = self.losses_of(context.job)[name]
        term = build_term(context, name, loss, teacher, students, teachers, over_pairs="sum", **more)
        self.terms[f"{teacher}:{name}"] = term

    def score_maps(self, view: View, whose: str) -> list[Tensor]:
        """The class logits [B, A·C, H, W] of each level, of an RPN where there is one.

        Raises SpecError KD460 without a dense head.
        """
        preds = view.outputs.get("rpn_preds", view.outputs.get("preds"))
        if preds is not None:
            return [level[0] for level in preds]
        message = f"{whose} gives no `preds`: it has no dense head (`NaiveRPN`, `RetinaSubNet` ...)"
        help = "this method compares class scores of every position; give the network its head"
        raise SpecError.at((*self.job_path, "mimic_ins_type"), "KD460", message, help)

    def proposals(self, view: View, whose: str) -> Tensor:
        """The proposals [N, 7] of a two-stage detector; raises SpecError KD461 where there are none."""
        boxes = view.outputs.get("rpn_dt_bboxes")
        if isinstance(boxes, Tensor):
            return boxes
        message = f"{whose} gives no `rpn_dt_bboxes`: it proposes no boxes"
        help = "its list needs `rpn_post`; or set `teacher_proposal` so that the other network proposes"
        raise SpecError.at((*self.job_path, "mimic_ins_type"), "KD461", message, help)


def made_sides(name: str, features: Iterable[Tensor], first: int = 0) -> list[TapSide]:
    """Features that a method picks from an output or makes, as sides `name[0]`, `name[1]`, ...

    first: the place in `mimic_name` of the tap that the first of them stands beside, for errors.
    """
    found = {f"{name}[{level}]": feature for level, feature in enumerate(features)}
    return sides_of(View(found), found, first)


def check_levels(levels: Sequence[int], count: int, maps: str, path: SpecPath) -> None:
    """Raises SpecError KD462 where levels are no indices into the maps, or leave a gap.

    count: how many maps there are to number; maps: what the user calls them. path: of the option.
    """
    name = path[-1]
    if not levels or max(levels) >= count or min(levels) < 0:
        raise SpecError.at(
            path, "KD462", f"levels {levels} of {count} {maps}", f"`{name}` are indices into them, from 0 on"
        )
    if levels != list(range(levels[0], levels[0] + len(levels))):
        # A box of a level that is not there would be left out without a word.
        first = min(levels)
        last = min(count, max(max(levels) + 1, first + len(levels)))
        raise SpecError.at(
            path,
            "KD462",
            f"levels {levels} are not successive",
            f"every size of box needs its map: write `{list(range(first, last))}`",
        )
