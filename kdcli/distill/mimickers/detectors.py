"""Terms over features that a detector's mimicker picks or makes, in place of all tapped ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from kdcli.distill.mimickers.mimicker import Setting
from kdcli.distill.taps import Feature, View
from kdcli.distill.terms import Term
from kdcli.errors import SpecError
from kdcli.spec.schema import Job, JobStudent, LossSpec


def term_over(
    setting: Setting,
    name: str,
    loss: LossSpec,
    teacher: str,
    students: Mapping[str, Feature],
    teachers: Mapping[str, Feature],
    *,
    adapted: bool = True,
) -> Term:
    """A term that reads these features, in pairs; their losses are added up unless over_pairs says other.

    students, teachers: by the name that the user is shown. adapted: whether the job's adapter is for them.
    """
    job = setting.job
    theirs = job.teachers[teacher].model_copy(update={"mimic_name": tuple(teachers)})
    changes: dict[str, Any] = {
        "student": JobStudent(mimic_name=tuple(students)),
        "teachers": {**job.teachers, teacher: theirs},
    }
    if not adapted:
        changes["adapter"] = None
    narrowed: Job = job.model_copy(update=changes)
    views = {**setting.teachers, teacher: View(dict(teachers), setting.teachers[teacher].outputs)}
    own = replace(
        setting, job=narrowed, student=View(dict(students), setting.student.outputs), teachers=views
    )
    return Term(own, name, loss.model_copy(update={"over_pairs": loss.over_pairs or "sum"}), teacher)


def tapped(view: View, names: Sequence[str]) -> dict[str, Feature]:
    """The tapped features of some names, in order."""
    return {name: view.features[name] for name in names}


def score_maps(setting: Setting | None, view: View, whose: str) -> list[Tensor]:
    """The class logits [B, A·C, H, W] of each level, of an RPN where there is one.

    setting: for the error's place, while the method is built. Raises SpecError KD460 without a dense head.
    """
    preds = view.outputs.get("rpn_preds", view.outputs.get("preds"))
    if preds is None:
        path = ("mimic",) if setting is None else setting.path
        raise SpecError.at(
            (*path, "mimic_ins_type"),
            "KD460",
            f"{whose} gives no `preds`: it has no dense head (`NaiveRPN`, `RetinaSubNet`)",
            "this method compares class scores of every position; give the network its head",
        )
    return [level[0] for level in preds]


def proposals(setting: Setting | None, view: View, whose: str) -> Tensor:
    """The proposals [N, 7] of a two-stage detector; raises SpecError KD461 where there are none."""
    boxes = view.outputs.get("rpn_dt_bboxes")
    if boxes is None:
        path = ("mimic",) if setting is None else setting.path
        raise SpecError.at(
            (*path, "mimic_ins_type"),
            "KD461",
            f"{whose} gives no `rpn_dt_bboxes`: it proposes no boxes",
            "its list needs `rpn_post`; or set `teacher_proposal` so that the other network proposes",
        )
    assert isinstance(boxes, Tensor)
    return boxes
