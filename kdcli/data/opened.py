"""One side of the data, opened: where its samples come from and what is true of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdcli.data.facts import DataFacts
from kdcli.data.objects import BatchSource
from kdcli.data.sources import SampleSource, Source
from kdcli.errors import SpecPath
from kdcli.spec.schema import DataPart


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedData:
    """A dataset that has been opened: its lists and labels are read, its samples not yet.

    part: as the spec gives it; path: where that stands, ("dataset", "train"). facts: what the source says, with
    the shape of its first readable image after the transforms. notices: what the user should be told.
    """

    part: DataPart
    train: bool
    path: SpecPath
    source: Source | BatchSource
    facts: DataFacts
    notices: tuple[str, ...] = ()

    def numbered_by(self, names: tuple[str, ...], numbers: list[int]) -> OpenedData:
        """The same samples with the classes `names`; numbers: for each class of this side its place in them."""
        assert not isinstance(self.source, (SampleSource, BatchSource))
        source = self.source.renumbered(names, numbers)
        facts = replace(self.facts, class_names=names, num_classes=source.num_classes)
        return replace(self, source=source, facts=facts)
