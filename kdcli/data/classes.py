"""Class and category names matched between the two sides of the data, or two annotation files, after Unicode NFC."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdcli.data.sources import BatchSource, OpenedData, SampleSource
from kdcli.errors import Diagnostic, SpecError, SpecPath, did_you_mean

NAMED = 5
"""How many names a message lists."""


def numbered_like(test: OpenedData, truth: Sequence[str] | None, whose: str = "") -> OpenedData:
    """The test data with the class numbers of the training data.

    truth: the class names of the training data, in the order of their numbers; None where they are unknown. whose:
    "probe's ", where these are the two sides of a probe.
    Names are equal after Unicode NFC. Data without names, or with boxes, stays as it is. Raises SpecError KD541
    where a class is none of the training data's, and where ready batches, whose labels are numbers alone, have other
    classes; one that the test data lacks is a notice.
    """
    own = test.facts.class_names
    if truth is None or own is None or isinstance(test.source, SampleSource):
        return test
    if isinstance(test.source, BatchSource):
        if list(map(one_form, truth)) != list(map(one_form, own)):
            message = f"the classes of the {whose}test data are others than the student has learnt, or in another order"
            help = "batches have numbers alone: give the Dataset, which is matched by name"
            raise SpecError.at((*test.path, "dataset"), "KD541", message, help)
        return test
    if tuple(truth) != own:
        path = (*test.path, "dataset")
        place_of = _places(truth, path, f"{whose}training")
        named = list(_places(own, path, f"{whose}test"))
        unknown = [name for name in named if name not in place_of]
        if unknown:
            raise SpecError(
                _unknown(unknown, list(place_of), path, whose, none_known=1 < len(unknown) == len(own))
            )
        test = test.numbered_by(tuple(truth), [place_of[name] for name in named])
    assert not isinstance(test.source, (SampleSource, BatchSource))
    assert test.source.labels is not None
    missing = np.setdiff1d(np.arange(len(truth)), test.source.labels)
    if not len(missing):
        return test
    names = [truth[number] for number in missing]
    what = "the class" if len(missing) == 1 else f"{len(missing)} classes of the {whose}training data:"
    return replace(
        test, notices=(*test.notices, f"the {whose}test data has no images of {what} {listed(names)}")
    )


def matched(
    test: OpenedData, names: Sequence[str] | None, train: OpenedData | None = None, whose: str = ""
) -> OpenedData:
    """The test data with the class numbers of the training data, where it is known whether that has names.

    names: of the training data, None where it has numbers alone; train: it, where it is opened. A notice where one
    side alone has names; SpecError KD541 where nothing states the numbers of these. Where a side has no labels there
    is nothing to match. whose: as in `numbered_like`.
    """
    if test.facts.labels == "none" or (train is not None and train.facts.labels == "none"):
        return test
    notice = _one_sided(names, train, test, whose)
    if notice is not None:
        return replace(test, notices=(*test.notices, notice))
    return numbered_like(test, names, whose)


def _one_sided(
    names: Sequence[str] | None, train: OpenedData | None, test: OpenedData, whose: str
) -> str | None:
    """The notice for data of which one side alone has class names; None where both have, or neither.

    Names whose numbers nothing states (labels of a list, in alphabetical order) can't be held against numbers.
    """
    own = test.facts.class_names
    if isinstance(test.source, (SampleSource, BatchSource)) or (names is None) == (own is None):
        return None
    named, plain = (
        f"{whose}{side}" for side in (("training", "test") if own is None else ("test", "training"))
    )
    named_classes = list(names or own or ())
    with_names = train if own is None else test
    if with_names is not None and getattr(with_names.source, "invented", False):
        raise SpecError.at(
            (*with_names.path, "dataset"),
            "KD541",
            f"the {named} data gives its classes by name and the {plain} data by number: they can't be matched",
            "write `classes: [...]` beside `meta_file`, the names in the order of the numbers",
        )
    shown = ", ".join(f"{n} is `{name}`" for n, name in enumerate(named_classes[:NAMED])) + (
        ", ..." if len(named_classes) > NAMED else ""
    )
    return f"the {plain} data has numbers and no class names: they are taken for the {named} data's, {shown}"


def _places(names: Sequence[str], path: SpecPath, side: str) -> dict[str, int]:
    """The number of each name, which all differ."""
    alike = list(map(one_form, names))
    places = {name: number for number, name in enumerate(alike)}
    if len(places) < len(names):
        twice = next(name for name, same in zip(names, alike, strict=True) if alike.count(same) > 1)
        raise SpecError.at(
            path,
            "KD541",
            f"two classes of the {side} data are called `{twice}`, so the two sides can't be matched by name",
            "give both sides the same list of classes, in the same order, or rename one",
        )
    return places


def _meant(name: str, known: list[str]) -> str | None:
    """Help for an unknown name: the nearest known one, or all where they are few and the name is short."""
    return (
        did_you_mean(name, known) if len(name) > 3 or len(known) > 12 else "known names: " + ", ".join(known)
    )


def _unknown(
    names: list[str], known: list[str], path: SpecPath, whose: str, *, none_known: bool
) -> list[Diagnostic]:
    """KD541 for each class of the test data that the training data lacks, or one for all of many."""
    if len(names) <= NAMED and not none_known:
        help = "rename it, or leave it out of the test data"
        return [
            Diagnostic(
                code="KD541",
                message=f"class `{name}` of the {whose}test data is no class of the {whose}training data",
                help="; ".join(filter(None, (_meant(name, known), help))),
                path=path,
            )
            for name in names
        ]
    if none_known:
        message = (
            f"the {whose}test data and the {whose}training data have no class in common: the one has {listed(names)},"
            f" the other {listed(known)}"
        )
        help = "their folders have to be those of the same classes: is the `root` of one a folder too high or too low?"
    else:
        message = (
            f"{len(names)} classes of the {whose}test data are no classes of the {whose}training data:"
            f" {listed(names)}; that has {listed(known)}"
        )
        help = "rename them, or leave them out of the test data"
    return [Diagnostic(code="KD541", message=message, help=help, path=path)]


@dataclass(frozen=True, slots=True)
class Matched:
    """Categories of an annotation file matched with those that were trained on.

    by_name: whether names decided, or else ids with their names, since a file has a name twice.

    ids: the learnt id of each own one. strange: own ids without one. lacking: learnt ids without an own one.
    """

    by_name: bool
    ids: Mapping[int, int]
    strange: tuple[int, ...]
    lacking: tuple[int, ...]

    @property
    def fits(self) -> bool:
        """Whether every own category is a learnt one; where names can't tell them apart, all are alike."""
        return not self.strange and (self.by_name or not self.lacking)


def match(learnt: Mapping[int, str], own: Mapping[int, str]) -> Matched:
    """Match the categories of a file with those that were trained on; both: names by id.

    Names are the same letter by letter, however Unicode composes these.
    """
    by_name = all(len({one_form(name) for name in names.values()}) == len(names) for names in (learnt, own))
    if by_name:
        places = {one_form(name): category for category, name in learnt.items()}
        found = {category: places.get(one_form(name)) for category, name in own.items()}
    else:
        alike = {c for c, name in own.items() if c in learnt and one_form(learnt[c]) == one_form(name)}
        found = {category: category if category in alike else None for category in own}
    ids = {category: other for category, other in found.items() if other is not None}
    strange = tuple(category for category in own if category not in ids)
    return Matched(by_name, ids, strange, tuple(c for c in learnt if c not in set(ids.values())))


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """`a`, `b`, ...: the first names, for messages."""
    return ", ".join(f"`{name}`" for name in names[:most]) + (", ..." if len(names) > most else "")


def contradict(own: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether two lists of class names share some and are not the same: lists without a common name rename classes."""
    listed_own = list(map(str, own))
    return listed_own != list(names) and not set(listed_own).isdisjoint(names)


def one_form(name: str) -> str:
    """A name in the form in which names are compared: letters with marks as one character (NFC)."""
    return unicodedata.normalize("NFC", name)
