"""Data that a caller has in memory in place of what the spec names: a Dataset's items, or a DataLoader's batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdcli.check.check import CheckOptions, check
from kdcli.data.classification.images import DatasetImages
from kdcli.data.sources import BadSample, BatchSource
from kdcli.errors import KdError
from kdcli.parallel.distributed import Processes
from kdcli.records import Finished, Notice, Record
from kdcli.spec.parse import ParsedSpec
from kdcli.training.build import built
from kdcli.training.run import RunOptions
from kdcli.training.sides import Sides
from kdcli.training.train import train
from tests.training.runs import SPEC, spec_of


class Items(Dataset[Any]):
    """Greys that tell their class."""

    classes = ("a", "b", "c", "d")

    def __init__(self, count: int, kind: str = "PIL") -> None:
        self.count, self.kind = count, kind

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        grey = np.full((8, 8), 40 + 50 * (index % 4) + index % 3, dtype=np.uint8)
        grey[0] += 5
        made = {"PIL": Image.fromarray, "array": np.asarray, "tensor": lambda a: torch.from_numpy(a)[None]}
        return made.get(self.kind, lambda a: a.astype(np.float32))(grey), index % 4


def records(parsed: ParsedSpec, given: dict[bool, Any]) -> list[Record]:
    here = Processes(device=torch.device("cpu"))
    sides = Sides(parsed.spec, parsed.places, given)
    with built(parsed, RunOptions(overwrite=True), here, sides) as run:
        return list(train(run))


def score(found: list[Record]) -> float:
    assert isinstance(found[-1], Finished)
    return found[-1].last["top1"]


LONGER = ("trainer.max_epoch=12", "trainer.test_freq=12")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PIL", "array", "tensor"])
def test_the_items_of_a_dataset(kind: str) -> None:
    parsed = spec_of(SPEC, *LONGER)
    given = {True: DatasetImages(Items(64, kind)), False: DatasetImages(Items(16, kind))}
    sides = Sides(parsed.spec, parsed.places, given)
    assert sides.train.facts.class_names == Items.classes and sides.train.facts.shape == (1, 8, 8)
    assert [f.code for f in check(parsed, CheckOptions(look="start"), sides).findings] == []
    assert score(records(parsed, given)) > 50.0
    # The test side is matched by name here too.
    swapped = DatasetImages(Items(16, kind), class_names=("b", "a", "c", "d"))
    assert Sides(parsed.spec, parsed.places, {**given, False: swapped}).test.source.labels.tolist()[:2] == [
        1,
        0,
    ]  # type: ignore[union-attr]


def test_images_of_other_numbers_are_no_images() -> None:
    with pytest.raises(BadSample, match="not uint8"):
        DatasetImages(Items(4, "float")).read(0)


def batches(count: int, *, labelled: bool = True) -> DataLoader[Any]:
    images, labels = zip(*(Items(count, "tensor")[i] for i in range(count)), strict=True)
    pixels = torch.stack(images).float() / 255
    told = (torch.tensor(labels),) if labelled else ()
    return DataLoader(TensorDataset(pixels, *told), batch_size=8)


def test_the_batches_of_a_loader() -> None:
    parsed = spec_of(SPEC, *LONGER)
    given = {True: BatchSource(batches(64)), False: BatchSource(batches(16))}
    facts = Sides(parsed.spec, parsed.places, given).train.facts
    assert (facts.shape, facts.num_samples, facts.num_classes, facts.labels) == (
        (1, 8, 8),
        64,
        None,
        "classes",
    )
    found = records(parsed, given)
    assert score(found) > 50.0
    assert any(isinstance(r, Notice) and "made outside kdcli" in r.message for r in found)
    assert [f.code for f in check(parsed, CheckOptions(look="start"), Sides(parsed.spec, parsed.places, given)).findings
            ] == []  # fmt: skip


def test_what_is_unknown_is_asked_for_by_who_needs_it() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches(16))

        def __len__(self) -> int:
            return 2

    crd = spec_of(SPEC, "mimic.cfgs.loss={type: crd, kwargs: {feat_dim: 4, K: 2}}",
                  "mimic.teacher0.mimic_name=[model.layer3]", "mimic.student.mimic_name=[model.layer3]")  # fmt: skip
    given = {True: BatchSource(Endless(), num_classes=4), False: BatchSource(batches(16))}
    with pytest.raises(KdError, match="KD544: `crd`"):
        records(crd, given)
    with pytest.raises(KdError, match="KD543: the training data has no labels"):
        records(spec_of(SPEC), {**given, True: BatchSource(batches(16, labelled=False))})
    with pytest.raises(KdError, match=r"KD419.*4 logits, and the training data has 6"):
        records(spec_of(SPEC), {**given, True: BatchSource(batches(16), num_classes=6)})


@pytest.mark.parametrize(
    ("wrong", "said"), [(({"pixels": 1} for _ in range(2)), "no tensor `image`"), ([[torch.zeros(1), 2]], "")]
)
def test_batches_that_are_none(wrong: Any, said: str) -> None:
    if said:
        with pytest.raises(KdError, match=f"KD542.*{said}"):
            BatchSource(wrong)
    else:
        assert BatchSource(wrong).batch_size == 1
    with pytest.raises(KdError, match=r"KD542.*no length"):
        BatchSource(iter([(torch.zeros(2, 1, 4, 4), torch.zeros(2))]))
