"""The labelled set of a probe: both sides opened, matched by class, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kdcli.data.build import build_source, open_source
from kdcli.data.classes import listed, matched
from kdcli.data.facts import DataFacts
from kdcli.data.sources import BatchSource, Located, OpenedData, SampleSource, Source
from kdcli.disk import real_path
from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.places import Places
from kdcli.spec.schema import DataPart, Spec
from kdcli.tasks.probe.classifiers import FOLDS

PROBE: SpecPath = ("dataset", "probe")


@dataclass(frozen=True, slots=True)
class ProbeData:
    """Both sides of a probe, with the training side's class numbers. folds: into so many its training part is cut."""

    train: OpenedData
    test: OpenedData
    folds: int

    @property
    def classes(self) -> int:
        """How many classes it has."""
        return self.train.facts.num_classes or 0


def probe_path(side: str) -> SpecPath:
    """Where a side of the probe stands in the spec."""
    return (*PROBE, side)


def probe_part(spec: Spec, side: str) -> DataPart:
    """What the spec says of a side of the probe, which it has."""
    assert spec.dataset.probe is not None
    return spec.dataset.probe.train if side == "train" else spec.dataset.probe.test


def probe_source(spec: Spec, side: str, places: Places) -> Source:
    """The images and labels of one side; nothing is decoded."""
    return build_source(
        probe_part(spec, side),
        train=side == "train",
        path=probe_path(side),
        places=places,
        aligned=spec.runtime.aligned,
    )


def opened_side(spec: Spec, side: str, source: Source | BatchSource) -> OpenedData:
    """One side, read in its own order and not augmented as training data is; raises SpecError KD263 without labels."""
    opened = open_source(source, probe_part(spec, side), train=False, path=probe_path(side))
    what = None
    if opened.facts.labels == "none":
        what = "has no labels"
    elif isinstance(source, (SampleSource, BatchSource)):
        what = "has no one class for each image"
    elif opened.facts.heads is not None:
        what = f"has {opened.facts.heads} labels for each image"
    if what is not None:
        raise SpecError.at(
            (*probe_path(side), "dataset"),
            "KD263",
            f"the probe's {_word(side)} data {what}",
            "a probe needs images with one class each: `image_folder`, or `cls` with a label in each line",
        )
    return opened


def probe_data(train: OpenedData, test: OpenedData) -> ProbeData:
    """Both sides matched by the names of their classes.

    Raises SpecError KD541 where the test side has a class that the training side lacks, KD261 for classes of a single
    image, KD262 where there is one class.
    """
    test = matched(test, train.facts.class_names, train, whose="probe's ")
    assert train.labels is not None
    place = (*train.path, "dataset")
    names = train.facts.class_names
    counts = Counter(train.labels.tolist())
    alone = sorted(number for number, count in counts.items() if count == 1)
    if len(counts) < 2:
        raise SpecError.at(
            place,
            "KD262",
            f"all {len(train.labels):,} images of the probe's training data are of one class",
            "a probe tells classes apart: give it images of two or more",
        )
    if alone:
        one = len(alone) == 1
        raise SpecError.at(
            place,
            "KD261",
            f"{'the class' if one else f'{len(alone)} classes'} {listed(_called(alone, names))} of the probe's training "
            f"data {'has' if one else 'have'} a single image",
            "its L2 is chosen on images that are held out of each class: give each class two or more, five at best, "
            "or leave it out of both sides",
        )
    return ProbeData(train, test, min(FOLDS, *counts.values()))


def findings_of(data: ProbeData, facts: DataFacts) -> Iterator[Diagnostic]:
    """KD260 where its images are not made as the student's; warnings KD264, KD268. facts: of the training data."""
    yield from unlike_pixels(data.train, facts)
    yield from unlike_pixels(data.test, facts)
    shared = _shared_files(data.train.source, data.test.source)
    if shared:
        many = len(shared) > 1
        yield Diagnostic(
            code="KD264",
            severity="warning",
            message=f"{len(shared):,} image{'s' if many else ''} of the probe's test data {'are' if many else 'is'} in its "
            f"training data too: {listed(shared, 3)}",
            help="what is measured on them is remembered, not recognised: keep the two sides apart",
            path=(*data.test.path, "dataset"),
        )
    if data.folds < FOLDS:
        assert data.train.labels is not None
        counts = Counter(data.train.labels.tolist())
        few = sorted(number for number, count in counts.items() if count == data.folds)
        names = listed(_called(few, data.train.facts.class_names))
        yield Diagnostic(
            code="KD268",
            severity="warning",
            message=f"the probe's L2 is chosen by {data.folds} folds in place of {FOLDS}: {names} has {data.folds} images",
            help=f"give each class {FOLDS} images or more",
            path=(*data.train.path, "dataset"),
        )


def unlike_pixels(side: OpenedData, facts: DataFacts) -> Iterator[Diagnostic]:
    """KD260 where a side's images differ from the training data's in channels or normalisation, as far as known."""
    own = side.facts
    word = _word(str(side.path[-1]))
    if own.shape is not None and facts.shape is not None and own.shape[0] != facts.shape[0]:
        yield _unlike(
            side.path,
            f"the probe's {word} images have {own.shape[0]} channels, those of the training data {facts.shape[0]}",
        )
    elif any(
        one is not None and other is not None and not np.allclose(one, other)
        for one, other in ((own.mean, facts.mean), (own.std, facts.std))
    ) or (own.mean is None) != (facts.mean is None):
        ours, theirs = (
            "none" if one.mean is None else f"mean {_numbers(one.mean)}, std {_numbers(one.std or ())}"
            for one in (own, facts)
        )
        message = (
            f"the probe's {word} images are normalised by {ours}, those of the training data by {theirs}"
        )
        yield _unlike(side.path, message)


def _unlike(path: SpecPath, message: str) -> Diagnostic:
    return Diagnostic(
        code="KD260",
        message=message,
        help="the student has to see them as it was trained: repeat the `normalize` of dataset.train",
        path=(*path, "dataset", "kwargs", "transformer"),
    )


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _shared_files(train: object, test: object) -> list[str]:
    """The files that both sides name."""
    located = [side.located() if isinstance(side, Located) else None for side in (train, test)]
    if located[0] is None or located[1] is None:
        return []
    known = set(map(real_path, located[0][0]))
    return [file for file in located[1][0] if real_path(file) in known]


def _word(side: str) -> str:
    return "training" if side == "train" else "test"


def _called(numbers: Sequence[int], names: Sequence[str] | None) -> list[str]:
    return [str(number) if names is None else names[number] for number in numbers]
