"""Facts and findings of the data's files, as far as a check looks into them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from kdcli.data.check import Look, check_files
from kdcli.data.check_images import Progress
from kdcli.data.facts import DataFacts, describe, with_classes_of
from kdcli.data.sources import SampleSource
from kdcli.errors import Diagnostic, Findings, KdError
from kdcli.spec.schema import Spec
from kdcli.training.sides import Sides


@dataclass(frozen=True, slots=True)
class DataSeen:
    """Facts and findings of both sides' data, from the spec or from the files as far as they were read."""

    train: DataFacts
    test: DataFacts
    findings: tuple[Diagnostic, ...]


def data_facts(spec: Spec, sides: Sides, *, look: Look, progress: Progress | None) -> DataSeen:
    """The facts of both sides that a check uses; each file is read once. look, progress: as in kdcli.data.check."""
    train, test = describe(spec.dataset.train), describe(spec.dataset.test, train=False)
    if train.shape is not None and min(train.shape) < 1:
        train = replace(train, shape=None)
    if look == "nothing":
        return DataSeen(with_classes_of(train, test), test, ())
    found = Findings()
    found.found += check_data_files(sides, look=look, progress=progress)
    reported = {(finding.code, finding.message) for finding in found.found}
    own: tuple[str, ...] = ()
    for side in (True, False):
        try:
            opened = sides.opened(side)
        except KdError:
            continue  # found by the look at its files
        if side:
            train = opened.facts
        else:
            test, own = opened.facts, opened.notices
    try:
        numbered = sides.test
        test = numbered.facts
        if look != "start":  # the run gives it as a notice
            found.found += [_without_images(text) for text in numbered.notices if text not in own]
    except KdError as error:
        found.found += [one for one in error.diagnostics if (one.code, one.message) not in reported]
    return DataSeen(with_classes_of(train, test), test, tuple(found.found))


def _without_images(text: str) -> Diagnostic:
    return Diagnostic(code="KD624", severity="warning", message=text, path=("dataset", "test", "dataset"))


def check_data_files(
    sides: Sides, *, look: Look = "whole", progress: Progress | None = None
) -> list[Diagnostic]:
    """Findings and facts of both sides' data files. look, progress: as in kdcli.data.check."""
    found: list[Diagnostic] = []
    for train in (True, False):
        found += check_files(
            sides.part(train),
            ("dataset", "train" if train else "test"),
            partial(sides.source, train),
            partial(sides.opened, train),
            look=look,
            progress=progress,
        )
    found += sides.task.agree(sides.spec, _facts(sides, True), _facts(sides, False), sides.places)
    # The test side asks for what the training side's file says too.
    return list({(one.code, one.message, one.path): one for one in found}.values())


def _facts(sides: Sides, train: bool) -> DataFacts | None:
    """Facts from one side's own file; None where it can't be read, or images come without one."""
    try:
        source = sides.source(train)
    except KdError:
        return None
    return source.facts if isinstance(source, SampleSource) else None
