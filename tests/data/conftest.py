"""Sides of a `dataset` as the parser would make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdcli.data.build import build_loader, build_source, open_source
from kdcli.data.check import Look, check_files
from kdcli.data.check_images import Progress
from kdcli.data.loaders import Loader
from kdcli.data.sources import OpenedData, Source
from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.schema import DataPart

Part = Callable[..., DataPart]


def make_part(
    type: str = "fake",
    *,
    batch_size: int = 8,
    transformer: list[dict[str, Any]] | None = None,
    sampler: dict[str, Any] | None = None,
    batch_sampler: dict[str, Any] | None = None,
    dataloader: dict[str, Any] | None = None,
    **kwargs: Any,
) -> DataPart:
    """One side; kwargs are the dataset's."""
    return DataPart.model_validate(
        {
            "dataset": {"type": type, "kwargs": {**kwargs, "transformer": transformer or []}},
            "batch_sampler": batch_sampler
            or {"kwargs": {"batch_size": batch_size, **({"sampler": sampler} if sampler else {})}},
            "dataloader": {"kwargs": dataloader or {}},
        }
    )


def open_side(part: DataPart, *, train: bool, path: SpecPath, **kwargs: Any) -> OpenedData:
    """One side of the data; kwargs: as build_source takes them."""
    source = build_source(part, train=train, path=path, **kwargs)
    return open_source(source, part, train=train, path=path)


def make_loader(part: DataPart, **kwargs: Any) -> Loader:
    """The loader with what a test leaves open."""
    opening = {"train": True, "path": ("dataset", "train")}
    opening |= {name: kwargs.pop(name) for name in ("train", "path", "places", "aligned") if name in kwargs}
    return build_loader(open_side(part, **opening), **{"seed": 131, **kwargs})


def look_at(
    part: DataPart, path: SpecPath, *, look: Look = "whole", progress: Progress | None = None
) -> list[Diagnostic]:
    """What is found about the files of one side."""

    def source() -> Source:
        return build_source(part, train=path[-1] == "train", path=path)

    def side() -> OpenedData:
        return open_source(source(), part, train=path[-1] == "train", path=path)

    return check_files(part, path, source, side, look=look, progress=progress)


@pytest.fixture(name="part")
def _part() -> Part:
    return make_part


@pytest.fixture(name="loader")
def _loader() -> Any:
    """make_loader, whose loaders are closed at the end."""
    made: list[Loader] = []

    def make(part: DataPart, **kwargs: Any) -> Loader:
        made.append(make_loader(part, **kwargs))
        return made[-1]

    yield make
    for loader in made:
        loader.close()
