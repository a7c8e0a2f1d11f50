"""Items and batches of one's own that are none: told in words, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kdcli.data.build import build_source
from kdcli.data.sources import BatchSource
from kdcli.errors import RunError, SpecError
from kdcli.failures import PLUGINS
from kdcli.spec.plugins import import_plugins
from kdcli.spec.schema import DataPart
from tests.data.conftest import make_part


class Items:
    """A dataset of one kind of item."""

    def __init__(self, kind: str = "dict") -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        image = torch.zeros(1, 8, 8)
        return {"dict": {"image": image, "label": 0}, "nothing": None, "image": image, "one": (image,)}[
            self.kind
        ]


class WithoutLength:
    """Its `__len__` is none."""

    __len__ = None

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1, 8, 8), 0


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What is a plugin here is none in other tests of this process."""
    before = set(PLUGINS)
    yield
    PLUGINS.intersection_update(before)


def own(name: str, **kwargs: Any) -> DataPart:
    """A side of a dataset of this module, which is allowed."""
    part = make_part(f"{__name__}:{name}", **kwargs)
    import_plugins(part, ("tests",))
    return part


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dict", "item 0 is a dict"),
        ("nothing", "item 0 is nothing"),
        ("image", "item 0 is a Tensor"),
        ("one", "item 0 is a tuple"),
    ],
)
def test_an_item_that_is_no_image_and_label(kind: str, said: str) -> None:
    part = own("Items", kind=kind)
    with pytest.raises(SpecError, match=rf"an item is \(image, label\), and {said}") as caught:
        build_source(part, train=True, path=("dataset", "train"))
    assert caught.value.diagnostics[0].code == "KD505"


def test_a_dataset_without_a_length() -> None:
    with pytest.raises(SpecError, match="which is no dataset") as caught:
        build_source(own("WithoutLength"), train=True, path=("dataset", "train"))
    assert caught.value.diagnostics[0].code == "KD505"


def test_a_loader_without_a_batch() -> None:
    data = TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    with pytest.raises(RunError, match="KD542: the iterable of batches gives none"):
        BatchSource(DataLoader(data, 100, drop_last=True))
