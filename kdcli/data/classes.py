"""The classes of the two sides of the data, matched by name: the training data's list is the truth."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdcli.data.objects import BatchSource
from kdcli.data.opened import OpenedData
from kdcli.data.sources import SampleSource
from kdcli.errors import Diagnostic, SpecError, SpecPath, did_you_mean

TOLD = 5
"""So many class names are listed in a message."""


def numbered_like(test: OpenedData, truth: Sequence[str] | None) -> OpenedData:
    """The test data with the class numbers of the training data.

    truth: the class names of the training data, in the order of their numbers; None where they are unknown.
    Names are equal after Unicode NFC. Data without names, or with boxes, stays as it is. Raises SpecError KD541
    where a class is none of the training data's; one that the test data lacks is a notice.
    """
    own = test.facts.class_names
    if truth is None or own is None or isinstance(test.source, (SampleSource, BatchSource)):
        return test
    if tuple(truth) != own:
        where = (*test.path, "dataset")
        place_of = _places(truth, where, "training")
        named = list(_places(own, where, "test"))
        unknown = [name for name in named if name not in place_of]
        if unknown:
            raise SpecError([_unknown(name, list(place_of), where) for name in unknown])
        test = test.numbered_by(tuple(truth), [place_of[name] for name in named])
    assert not isinstance(test.source, (SampleSource, BatchSource))
    missing = np.setdiff1d(np.arange(len(truth)), test.source.labels)
    if not len(missing):
        return test
    listed = ", ".join(f"`{truth[number]}`" for number in missing[:TOLD]) + (
        ", ..." if len(missing) > TOLD else ""
    )
    what = "the class" if len(missing) == 1 else f"{len(missing)} classes of the training data:"
    return replace(test, notices=(*test.notices, f"the test data has no images of {what} {listed}"))


def _places(names: Sequence[str], where: SpecPath, side: str) -> dict[str, int]:
    """The number of each name, which all differ."""
    places = {unicodedata.normalize("NFC", name): number for number, name in enumerate(names)}
    if len(places) < len(names):
        twice = next(name for name in names if list(map(_nfc, names)).count(_nfc(name)) > 1)
        raise SpecError.at(
            where,
            "KD541",
            f"two classes of the {side} data are called `{twice}`, so the two sides can't be matched by name",
            "give both sides the same list of classes, in the same order, or rename one",
        )
    return places


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _unknown(name: str, known: list[str], where: SpecPath) -> Diagnostic:
    return Diagnostic(
        code="KD541",
        message=f"class `{name}` of the test data is no class of the training data",
        help=did_you_mean(name, known) or "rename it, or leave it out of the test data",
        path=where,
    )
