"""What one loss is, read from its source without importing it: for `kdcli methods`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from kdcli.losses import loss_of
from kdcli.spec.check.signatures import signature

NEEDS = {
    "teacher": "a teacher",
    "labels": "labels",
    "indices": "sample indices",
    "student_logits": "the student's logits",
    "teacher_logits": "the teacher's logits",
    "teacher_classifier": "the teacher's classifier",
    "teacher_norms": "the teacher's BatchNorms",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOption:
    """One YAML kwarg: its name, annotation as written, and default value."""

    name: str
    annotation: str
    default: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One loss in words, for `kdcli methods`; what is parsed from its docstring is shown and decides nothing.

    kind: logit, feature, relational or teacher-free. summary: the docstring's first paragraph.
    details: the rest of it. taps: which layers its authors take. needs: what it takes beside the
    student. paper: title or title and venue; arxiv: its id.
    """

    name: str
    kind: str
    summary: str
    details: str
    taps: str | None
    needs: tuple[str, ...]
    options: tuple[LossOption, ...]
    paper: str
    arxiv: str | None


@cache
def describe(name: str) -> Description:
    """The description of a loss, or of own code that has been imported."""
    target = loss_of(name)
    taken = signature(target)
    assert taken is not None, target.path
    summary, details, taps, paper = _parts(taken.doc or "")
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", paper)
    return Description(
        name=name,
        kind=target.kind,
        summary=summary,
        details=details,
        taps=taps or None,
        needs=tuple(phrase for word, phrase in NEEDS.items() if word in taken.needs),
        options=tuple(
            LossOption(name=p.name, annotation=p.type_text or "Any", default=p.default)
            for p in taken.kwargs.values()
        ),
        paper=re.sub(r",? arXiv:[\d.]+", "", paper).strip().rstrip("."),
        arxiv=arxiv.group(1) if arxiv else None,
    )


def _parts(docstring: str) -> tuple[str, str, str, str]:
    """Summary, details, taps, source."""
    body, _, source = docstring.partition("Source:")
    body, _, taps = body.partition("Taps:")
    summary, _, details = body.partition("\n\n")
    return _one_line(summary), details.strip(), _one_line(taps), _one_line(source)


def _one_line(text: str) -> str:
    return " ".join(text.split())
