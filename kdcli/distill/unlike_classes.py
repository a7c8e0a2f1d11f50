"""Logits of different width: no loss and no adapter maps one network's classes to another's unasked."""

from __future__ import annotations

from kdcli.distill.adapters import Shape, shown
from kdcli.distill.labels import NO_LABELS
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.errors import SpecError, SpecPath


def unlike_classes(
    setting: MimicContext, teacher: str, student: Shape, theirs: Shape, path: SpecPath, what: str
) -> SpecError:
    """The error for logits of two widths. what: which loss or adapter compares them."""
    message = f"the student's logits are {shown(student)}, those of {teacher} {shown(theirs)}: {what}"
    return SpecError.at(path, "KD470", message, way_out(setting, teacher, student[1], theirs[1]))


def way_out(setting: MimicContext, teacher: str, width: int, other: int) -> str:
    """What to do about a teacher with `other` logits where `width` are meant."""
    labels = setting.labels.get(teacher, NO_LABELS)
    if labels.asked:
        return f"`classes` names {other} of {teacher}'s: name one for each of the {width}"
    if other == setting.num_classes:
        return f"{teacher} knows the data's {other} classes: give the student `num_classes: {other}`"
    if other < width:
        return f"{teacher} knows fewer classes than are learnt: mimic its features instead"
    if labels.hint is not None:
        return f"its file names the data's classes among its own: beside its mimic_name write `{labels.hint}`"
    return (
        f"say beside its mimic_name which of {teacher}'s classes those of the data are: `classes: [...]`, "
        f"{width} of its {other} numbers (from 0) in the data's order; or mimic its features"
    )
