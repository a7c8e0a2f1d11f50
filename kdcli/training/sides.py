"""Both sides (train, test) of a spec's data, each opened once a command, whoever asks for it first; and the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from kdcli.data.build import build_source, open_source
from kdcli.data.classes import matched
from kdcli.data.digest import Digest, changes, in_words, listing_from, listing_of, unpacked
from kdcli.data.held_out import split
from kdcli.data.sources import BatchSource, OpenedData, SampleSource, Source
from kdcli.disk import bytes_in, entries_like
from kdcli.errors import Diagnostic, KdError, RunError, SpecError, SpecPath
from kdcli.parallel.distributed import Processes
from kdcli.parallel.meeting import ranks_text
from kdcli.spec.check.labels import is_unlabelled
from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.places import GT_FILE, Places
from kdcli.spec.plugins import import_plugins
from kdcli.spec.schema import DataPart, Spec
from kdcli.tasks import build_task
from kdcli.tasks.probe.data import ProbeData, findings_of, opened_side, probe_data, probe_source
from kdcli.tasks.probe.probe import Probe
from kdcli.training.run_folder import SAMPLES, has_data_facts, recorded_classes

T = TypeVar("T")


class Sides:
    """The training and test data of a spec. task: what is learnt from them.

    given: by side (True is training) what the caller has in memory, in place of what the spec names. plugins: the
    packages that may be imported; what the spec names of them is imported here, before anything is built.
    What could not be opened raises the same KdError whenever it is asked for.
    """

    def __init__(
        self,
        spec: Spec,
        places: Places,
        given: Mapping[bool, Source | BatchSource] | None = None,
        *,
        plugins: Sequence[str] = (),
    ) -> None:
        import_plugins(spec, plugins)
        self.spec, self.places, self.given = spec, places, given or {}
        self.task = build_task(spec, places)
        self._found: dict[tuple[str, bool], object] = {}

    def part(self, train: bool) -> DataPart:
        """The part of the spec that describes one side."""
        return self.spec.dataset.train if train else self.spec.dataset.test

    def source(self, train: bool) -> Source | BatchSource:
        """One side's samples and labels; nothing is decoded."""
        return self._once("source", train, lambda: self._source(train))

    def opened(self, train: bool) -> OpenedData:
        """One side with its own class numbers; categories of boxes are numbered as the training side's."""
        return self._once("opened", train, lambda: self._opened(train))

    @property
    def train(self) -> OpenedData:
        """The training data."""
        return self.opened(True)

    @property
    def test(self) -> OpenedData:
        """The test data with the class numbers of the training data."""
        return self._once(
            "test", False, lambda: matched(self.opened(False), self.train.facts.class_names, self.train)
        )

    def test_of_run(self, root: Path, stated: Sequence[str] | None = None) -> OpenedData:
        """The test data with the class numbers of the run in `root`, else as `test`.

        stated: the classes in the order of a weights file's logits, where other weights than the run's are measured.
        Where the training data can't be opened it keeps its own: what is measured elsewhere than it was trained
        needs no training data.
        """
        test = self.opened(False)
        if test.facts.annotations is not None or is_unlabelled(self.spec.dataset.train):
            return test
        truth = stated or recorded_classes(root)
        if truth is not None or has_data_facts(root):
            return matched(test, truth)
        try:
            train = self.train
        except KdError:
            return test
        return matched(test, train.facts.class_names, train)

    def test_changed_since(self, root: Path) -> str | None:
        """A sentence on how the test data differs from what the run in `root` recorded; None where it is not known to.

        Names, labels and sizes of files are compared, as `--resume` does it; data from Python has no such record.
        """
        recorded = entries_like(root, SAMPLES.format(side="test", digest="[0-9a-f]" * 16))
        if not recorded or self.spec.dataset.test.dataset.type == FROM_PYTHON:
            return None
        now = listing_of(self.test_of_run(root), truth_file(self.spec, self.places))
        text = now.text()
        listings = [unpacked(bytes_in(file)) for file in recorded]
        if text in listings:
            return None
        before = next((listing_from(one) for one in listings if one is not None), None)
        words = [] if before is None else in_words(changes(before, now), before, now)
        return f"the test data is not what training measured: {', '.join(words) or 'its list of samples differs'}"

    def probe_source(self, side: str) -> Source:
        """The samples and labels of one side of the probe; nothing is decoded."""
        return self._once(f"probe source {side}", False, lambda: probe_source(self.spec, side, self.places))

    def probe_side(self, side: str) -> OpenedData:
        """One side of the probe with its own class numbers."""
        opened = partial(opened_side, self.spec, side)
        return self._once(f"probe {side}", False, lambda: opened(self.probe_source(side)))

    @property
    def probe(self) -> ProbeData | None:
        """The probe's data, its two sides matched by class; None where the spec has none."""
        if self.spec.dataset.probe is None:
            return None
        return self._once(
            "probe", False, lambda: probe_data(self.probe_side("train"), self.probe_side("test"))
        )

    def build_probe(self, device: torch.device, folder: Path | None) -> tuple[Probe | None, list[Diagnostic]]:
        """The probe, None where the spec has none, and findings about its data. folder: see Probe."""
        data, settings = self.probe, self.spec.dataset.probe
        if data is None or settings is None:
            return None, []
        found = list(findings_of(data, self.train.facts))
        if any(finding.severity == "error" for finding in found):
            raise SpecError(found)
        return Probe(settings, data, seed=self.spec.runtime.random_seed, device=device, folder=folder), found

    def _source(self, train: bool) -> Source | BatchSource:
        share = self.spec.dataset.hold_out
        if share is None:
            return self._whole(train, train)
        whole = self._once("whole", True, lambda: self._whole(True, True))
        if isinstance(whole, SampleSource) and not train and True not in self.given:
            whole = self._whole(False, True)  # with the transforms of the test side
        return split(whole, share, held=not train)

    def _whole(self, train: bool, of_training: bool) -> Source | BatchSource:
        """The samples of one side, or of the training data as that side reads them, before any are held out."""
        if of_training in self.given:
            return self.given[of_training]
        return build_source(
            self.part(train),
            train=of_training,
            path=_path(train),
            places=self.places,
            aligned=self.spec.runtime.aligned,
            classes=None if train else self.task.training_classes(self.spec, self.places),
        )

    def _opened(self, train: bool) -> OpenedData:
        return open_source(self.source(train), self.part(train), train=train, path=_path(train))

    def _once(self, what: str, train: bool, make: Callable[[], T]) -> T:
        key = (what, train)
        if key not in self._found:
            try:
                self._found[key] = make()
            except KdError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, KdError):
            raise found
        return found  # type: ignore[return-value]


def truth_file(spec: Spec, places: Places) -> Path | None:
    """The evaluator's `gt_file`, where the spec gives one."""
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    named = None if evaluator is None else evaluator.kwargs.get("gt_file")
    return places.find(named, GT_FILE) if isinstance(named, str) else None


def require_same_data(processes: Processes, digests: Mapping[str, Digest]) -> None:
    """Raise RunError KD727 in every process where the samples of a side differ between processes.

    Names, labels and sizes of files are compared (`kdcli.data.digest`), not their content.
    """
    for side, digest in digests.items():
        rows = processes.gather((digest.listing, digest.samples))
        others = [rank for rank, row in enumerate(rows) if row[0] != rows[0][0]]
        if not others:
            continue
        numbers = sorted({rows[rank][1] for rank in others})
        there = ", ".join(f"{number:,}" for number in numbers)
        what = "training" if side == "train" else "test"
        examples = processes.gather(_first_difference(processes.broadcast(digest.packed), digest.packed))
        example = next((name for name in examples if name is not None), None)
        raise RunError.of(
            "KD727",
            f"{ranks_text(others)} found other {what} data than process 0: {there} samples there, {rows[0][1]:,} in"
            f" process 0" + ("" if example is None else f"; one that differs is `{example}`"),
            "every machine needs the same files under the paths that the spec names",
        )


def _first_difference(before: bytes, now: bytes) -> str | None:
    """The name of a sample that differs between two packed lists; None where none does."""
    texts = unpacked(before), unpacked(now)
    if texts[0] is None or texts[1] is None or texts[0] == texts[1]:
        return None
    found = changes(listing_from(texts[0]), listing_from(texts[1]))
    named = [*found.went, *found.came, *(one.name for one in (*found.labels, *found.contents))]
    return named[0] if named else None


def _path(train: bool) -> SpecPath:
    return ("dataset", "train" if train else "test")
