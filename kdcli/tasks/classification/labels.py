"""A teacher's classes matched with those of the data: by what the spec says, or by name where a file has names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdcli.data.classes import listed, one_form
from kdcli.data.facts import DataFacts
from kdcli.distill.teacher import Labels, is_logits
from kdcli.errors import Diagnostic, SpecError, SpecPath, did_you_mean

Said = tuple[int | str, ...] | dict[str, int | str]
"""The value of `classes`: a list in the data's order, or a mapping from its names."""


def asked_labels(
    said: Said, teacher: str, names: Sequence[str] | None, facts: DataFacts, path: SpecPath, *, known: bool
) -> Labels:
    """The labels of a teacher whose `classes` stand at `path`.

    names: its own classes, where its file states them. known: whether the data and the file have been looked at;
    if not, what only they could tell is taken for right, and the shapes are right all the same. Raises SpecError
    KD471 where `classes` are not those of the data, KD472 where they are none of the teacher's.
    """
    chosen = _in_order(said, facts, path, known=known)
    numbers: list[int] = []
    wrong: list[Diagnostic] = []
    for step, value in chosen:
        try:
            number = value if isinstance(value, int) else _numbered(value, teacher, names, (*path, step))
        except SpecError as error:
            if names is not None or known:
                wrong += error.diagnostics
            number = len(numbers)
        if number in numbers and known:
            message = f"`classes` names class {number} of {teacher} twice"
            help = "one class of the teacher can't stand for two of the data"
            wrong.append(Diagnostic(code="KD472", message=message, help=help, path=(*path, step)))
        numbers.append(number)
    if wrong:
        raise SpecError(wrong)
    # Without a look at the files a number that stands for a name means nothing, and is not checked.
    all_numbers = all(isinstance(value, int) for _, value in chosen)
    return Labels(
        numbers=tuple(numbers) if known or all_numbers else tuple(range(len(numbers))),
        names=None if names is None else tuple(names),
        asked=True,
        path=path,
        places=tuple(step for step, _ in chosen),
    )


def _in_order(
    said: Said, facts: DataFacts, path: SpecPath, *, known: bool
) -> list[tuple[str | int, int | str]]:
    """The teacher's class for each class of the data, in the data's order, with its step in the path."""
    due = facts.num_classes
    if not isinstance(said, dict):
        if due is not None and len(said) != due:
            message = f"`classes` names {len(said)} of the teacher's classes, and the data has {due}"
            raise SpecError.at(
                path,
                "KD471",
                message,
                "name one for each class of the data, in the data's order",
                on_key=True,
            )
        return list(enumerate(said))
    names = facts.class_names or (None if due is None else tuple(map(str, range(due))))
    if names is None or (facts.class_names is None and not known):
        return list(said.items())
    given = {one_form(name): name for name in said}
    data_names = [one_form(name) for name in names]
    wrong = [
        Diagnostic(
            code="KD471",
            message=f"the data has no class `{name}`",
            help=did_you_mean(name, list(names)) or f"its classes: {listed(names, 3)}",
            path=(*path, name),
            on_key=True,
        )
        for key, name in given.items()
        if key not in data_names
    ]
    missing = [name for name in names if one_form(name) not in given]
    if missing:
        message = f"`classes` leaves out {listed(missing, 3)} of the data"
        help = "say for each class of the data which of the teacher's it is"
        wrong.append(Diagnostic(code="KD471", message=message, help=help, path=path, on_key=True))
    if wrong:
        raise SpecError(wrong)
    return [(given[name], said[given[name]]) for name in data_names]


def _numbered(name: str, teacher: str, names: Sequence[str] | None, path: SpecPath) -> int:
    """The number of one of the teacher's classes."""
    if names is None:
        message = f"the weights file of {teacher} states no names of classes, so `{name}` can't be looked up"
        raise SpecError.at(path, "KD472", message, "give its number, counted from 0")
    found = [number for number, own in enumerate(names) if one_form(own) == one_form(name)]
    if len(found) == 1:
        return found[0]
    if found:
        message = f"{teacher} has {len(found)} classes `{name}`: {', '.join(map(str, found))}"
        raise SpecError.at(path, "KD472", message, "give the number of the one that is meant")
    help = did_you_mean(name, list(names)) or f"its classes: {listed(names, 3)}"
    raise SpecError.at(path, "KD472", f"{teacher} has no class `{name}`", help)


def stated_labels(teacher: str, names: Sequence[str] | None, facts: DataFacts) -> Labels:
    """The labels of a teacher of which the spec says nothing and its file maybe the names of its classes.

    The data's own names in another order are matched by name, with a notice.
    """
    labels = Labels(names=None if names is None else tuple(names))
    data = facts.class_names
    if names is None or data is None:
        return labels
    own, data_names = [one_form(name) for name in names], [one_form(name) for name in data]
    if len(set(own)) < len(own) or len(set(data_names)) < len(data_names):
        return labels
    if not set(data_names) <= set(own):
        return _with_other_names(labels, own, data_names, facts)
    order = tuple(own.index(name) for name in data_names)
    if len(own) > len(data_names):
        return replace(labels, hint=f"classes: [{', '.join(map(str, order))}]")
    if own == data_names:
        return labels
    notice = (
        f"{teacher} has the data's classes in another order ({listed(names, 3)}): its logits are matched with them "
        "by name"
    )
    return replace(labels, numbers=order, notice=notice)


def _with_other_names(
    labels: Labels, own: Sequence[str], data_names: Sequence[str], facts: DataFacts
) -> Labels:
    """The labels of as many classes as the data has, of which some have no name of the data's."""
    names, data = labels.names, facts.class_names
    if names is None or data is None or len(own) != len(data_names):
        return labels
    unlike = f"its classes are others ({listed(names, 3)}) than the data's ({listed(data, 3)})"
    moved = next(
        (name for name in own if name in data_names and own.index(name) != data_names.index(name)), None
    )
    if moved is None:
        return replace(labels, unlike=unlike)
    number, place = own.index(moved), data_names.index(moved)
    known = [str(own.index(name)) if name in own else "?" for name in data_names]
    left = [number for number, name in enumerate(own) if name not in data_names]
    if len(left) == 1:  # what is left over on both sides is one class
        known = [str(left[0]) if one == "?" else one for one in known]
    return replace(
        labels,
        unlike=unlike,
        misplaced=f"`{names[number]}` is class {number} of it and class {place} of the data",
        hint=f"classes: [{', '.join(known)}]",
    )


def not_scored(teacher: str, labels: Labels, outputs: Mapping[str, Any], facts: DataFacts) -> str | None:
    """Why a network's logits are no answers to the data's classes; None where they are.

    outputs: as the labels let them through.
    """
    logits = outputs.get("logits")
    if not is_logits(logits):
        return f"{teacher} is not scored on this data: its `logits` are not one row [K] for each image"
    if labels.numbers is not None:
        return None
    width, data = logits.shape[1], facts.class_names
    own = None if labels.names is None or len(labels.names) > width else labels.names
    if own is not None and data is not None:
        if list(map(one_form, own)) == list(map(one_form, data)):
            return None
        if width == facts.num_classes and len(own) == width and not labels.by_class:
            return (
                f"{teacher} is not scored on this data: its classes are others ({listed(own, 3)}) than the data's "
                f"({listed(data, 3)}); `classes` beside its mimic_name says which are which"
            )
    if facts.num_classes is not None and width != facts.num_classes:
        line = f"`{labels.hint}`" if labels.hint is not None else "`classes`"
        return (
            f"{teacher} is not scored on this data: it gives {width} logits, and the data has {facts.num_classes} "
            f"classes"
            + (f"; {line} beside its mimic_name says which they are" if width > facts.num_classes else "")
        )
    return None


class ClassMatching:
    """Matching of a teacher's classes with the data's, as `Task.matching`."""

    asked = staticmethod(asked_labels)
    stated = staticmethod(stated_labels)
    not_scored = staticmethod(not_scored)
