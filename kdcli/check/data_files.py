"""Facts and findings of the data's files, as far as a check looks into them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from kdcli.data.build import grouped_batches
from kdcli.data.check import Look, check_files
from kdcli.data.check_images import Progress
from kdcli.data.facts import DataFacts, describe, with_classes_of
from kdcli.data.sources import SampleSource
from kdcli.errors import Diagnostic, Findings, KdError, SpecPath
from kdcli.spec.schema import Spec
from kdcli.tasks.probe.data import findings_of, probe_part, probe_path, unlike_pixels
from kdcli.training.sides import Sides


@dataclass(frozen=True, slots=True)
class DataSeen:
    """Facts and findings of both sides' data, from the spec or from the files as far as they were read.

    batches: of the training data in an epoch, where these are no matter of the number of samples alone.
    """

    train: DataFacts
    test: DataFacts
    findings: tuple[Diagnostic, ...]
    batches: int | None = None


def data_facts(spec: Spec, sides: Sides, *, look: Look, progress: Progress | None) -> DataSeen:
    """The facts of both sides that a check uses; each file is read once. look, progress: as in kdcli.data.check."""
    train, test = describe(spec.dataset.train), describe(spec.dataset.test, train=False)
    if train.shape is not None and min(train.shape) < 1:
        train = replace(train, shape=None)
    if look == "nothing":
        probe = probe_findings(spec, train)
        return DataSeen(with_classes_of(train, test), test, tuple(probe))
    found = Findings()
    found.found += check_data_files(sides, look=look, progress=progress)
    reported = {(finding.code, finding.message) for finding in found.found}
    own: tuple[str, ...] = ()
    batches = None
    for side in (True, False):
        try:
            opened = sides.opened(side)
        except KdError:
            continue  # found by the look at its files
        if side:
            train, batches = opened.facts, grouped_batches(opened)
        else:
            test, own = opened.facts, opened.notices
    try:
        numbered = sides.test
        test = numbered.facts
        if look != "start":  # the run gives it as a notice
            found.found += [_without_images(text) for text in numbered.notices if text not in own]
    except KdError as error:
        found.found += [one for one in error.diagnostics if (one.code, one.message) not in reported]
    found.found += check_probe_files(sides, train, look=look, progress=progress)
    return DataSeen(with_classes_of(train, test), test, tuple(found.found), batches)


def probe_findings(spec: Spec, train: DataFacts) -> list[Diagnostic]:
    """What the spec alone shows of a probe's images: KD260 where they are not made as the student's."""
    found: list[Diagnostic] = []
    for side, part in spec.dataset.parts.items():
        if side[0] == "probe":
            found += unlike_pixels(("dataset", *side), describe(part, train=side[1] == "train"), train)
    return found


def check_probe_files(
    sides: Sides, train: DataFacts, *, look: Look, progress: Progress | None
) -> list[Diagnostic]:
    """Findings about the probe's files, classes and pixels; train: facts of the training data."""
    if sides.spec.dataset.probe is None:
        return []
    found = Findings()
    for side in ("train", "test"):
        found.found += check_files(
            probe_part(sides.spec, side),
            probe_path(side),
            partial(sides.probe_source, side),
            partial(sides.probe_side, side),
            look=look,
            progress=progress,
        )
    if all(finding.severity != "error" for finding in found.found):
        with found.part():
            data = sides.probe
            assert data is not None
            found.found += findings_of(data, train)
            own = {*sides.probe_side("train").notices, *sides.probe_side("test").notices}
            if look != "start":  # the run gives it as a notice
                found.found += [
                    _without_images(text, data.test.path) for text in data.test.notices if text not in own
                ]
    return found.found


def _without_images(text: str, side: SpecPath = ("dataset", "test")) -> Diagnostic:
    return Diagnostic(code="KD624", severity="warning", message=text, path=(*side, "dataset"))


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
