"""Both sides (train, test) of a spec's data, each opened once a command, whoever asks for it first; and the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kdcli.data.build import build_source, open_source
from kdcli.data.classes import matched
from kdcli.data.sources import BatchSource, OpenedData, Source
from kdcli.errors import KdError, SpecPath
from kdcli.spec.places import Places
from kdcli.spec.plugins import import_plugins
from kdcli.spec.schema import DataPart, Spec
from kdcli.tasks import build_task
from kdcli.training.run_folder import has_data_facts, recorded_classes

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
        if test.facts.annotations is not None:
            return test
        truth = stated or recorded_classes(root)
        if truth is not None or has_data_facts(root):
            return matched(test, truth)
        try:
            train = self.train
        except KdError:
            return test
        return matched(test, train.facts.class_names, train)

    def _source(self, train: bool) -> Source | BatchSource:
        if train in self.given:
            return self.given[train]
        return build_source(
            self.part(train),
            train=train,
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


def _path(train: bool) -> SpecPath:
    return ("dataset", "train" if train else "test")
