"""A teacher's classes matched with those of the data, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.data.facts import DataFacts
from kdcli.distill.teacher import NO_LABELS, Labels
from kdcli.errors import SpecError
from kdcli.models.weight_files import save_safetensors, stated_classes
from kdcli.tasks.classification.labels import asked_labels, not_scored, stated_labels

PETS = DataFacts(num_classes=2, class_names=("cat", "dog"))
NAMELESS = DataFacts(num_classes=2)
WHERE = ("classes",)


def asked(said: Any, names: Any = None, facts: DataFacts = PETS, *, known: bool = True) -> Labels:
    return asked_labels(said, "teacher0", names, facts, WHERE, known=known)


def refused(*arguments: Any, **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        asked(*arguments, **options)
    return [(found.code, found.message) for found in caught.value.diagnostics]


def width(number: int) -> dict[str, Any]:
    return {"logits": torch.rand(3, number)}


def test_numbers_stand_in_the_datas_order() -> None:
    assert asked((281, 207)).numbers == (281, 207)
    assert asked({"dog": 207, "cat": 281}).numbers == (281, 207)
    assert asked({"1": 207, "0": 281}, facts=NAMELESS).numbers == (281, 207)
    assert asked((5, 3, 1), facts=DataFacts()).numbers == (5, 3, 1)


def test_torchvisions_categories_are_names() -> None:
    names = stated_classes("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    assert names is not None and len(names) == 1000
    assert asked({"cat": "tabby", "dog": "golden retriever"}, names).numbers == (281, 207)


def test_a_name_that_stands_twice_is_not_guessed() -> None:
    names = ("crane", "tabby", "crane")
    assert refused(("crane", 1), names) == [("KD472", "teacher0 has 2 classes `crane`: 0, 2")]


def test_names_are_compared_after_nfc() -> None:
    facts = DataFacts(num_classes=2, class_names=("caf\u00e9", "tea"))
    assert asked({"cafe\u0301": 4, "tea": 2}, facts=facts).numbers == (4, 2)
    assert stated_labels("teacher0", ("tea", "cafe\u0301"), facts).numbers == (1, 0)


def test_every_slip_is_told_at_once() -> None:
    assert refused({"cat": 1, "hound": 2}) == [
        ("KD471", "the data has no class `hound`"),
        ("KD471", "`classes` leaves out `dog` of the data"),
    ]
    assert [code for code, _ in refused(("x", "y"), ("a", "b"))] == ["KD472", "KD472"]


def test_without_a_look_at_the_files_the_shapes_are_right_all_the_same() -> None:
    assert asked({"cat": "tabby", "dog": "golden retriever"}, known=False).numbers == (0, 1)
    assert asked({"kitten": 281, "puppy": 207}, facts=DataFacts(), known=False).numbers == (281, 207)
    assert refused((1,), known=False)[0][0] == "KD471"


def test_classes_that_a_file_states(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights = {"w": torch.zeros(1)}
    save_safetensors(weights, path, {"class_names": json.dumps(["cat", "dog"])})
    assert stated_classes(path) == ("cat", "dog")
    for metadata in ({}, {"class_names": "null"}, {"class_names": "[1]"}, {"class_names": "{"}):
        save_safetensors(weights, path, metadata)
        assert stated_classes(path) is None
    torch.save(weights, tmp_path / "a.pth")
    assert stated_classes(tmp_path / "a.pth") is None


@pytest.mark.parametrize(
    ("names", "numbers", "hint"),
    [
        (None, None, None),
        (("cat", "dog"), None, None),
        (("dog", "cat"), (1, 0), None),
        (("dog", "fox", "cat"), None, "classes: [2, 0]"),
        (("dog", "fox"), None, "classes: [1, 0]"),
        (("dog", "cat", "dog"), None, None),
    ],
)
def test_stated_names(names: Any, numbers: Any, hint: Any) -> None:
    labels = stated_labels("teacher0", names, PETS)
    assert (labels.numbers, labels.hint) == (numbers, hint)
    assert (labels.notice is not None) == (numbers is not None)


@pytest.mark.parametrize(
    ("labels", "logits", "facts", "words"),
    [
        (NO_LABELS, 2, PETS, None),
        (NO_LABELS, 3, PETS, "it gives 3 logits, and the data has 2 classes; `classes` beside"),
        (NO_LABELS, 1, PETS, "it gives 1 logits, and the data has 2 classes"),
        (NO_LABELS, 7, DataFacts(), None),
        (Labels(numbers=(5, 3)), 2, PETS, None),
        (Labels(names=("cat", "dog")), 2, PETS, None),
        (Labels(names=("cat", "dog")), 4, PETS, None),
        (Labels(names=("cat", "fox")), 2, PETS, "its classes are others (`cat`, `fox`)"),
        (Labels(names=("cat", "fox")), 2, NAMELESS, None),
        (Labels(names=("a", "cat", "dog"), hint="classes: [1, 2]"), 3, PETS, "`classes: [1, 2]` beside"),
    ],
)
def test_what_is_scored(labels: Labels, logits: int, facts: DataFacts, words: str | None) -> None:
    why = not_scored("teacher0", labels, width(logits), facts)
    assert (why is None) == (words is None)
    assert words is None or (why is not None and words in why)


def test_logits_of_several_heads_are_not_scored() -> None:
    assert not_scored("teacher0", NO_LABELS, {"logits": [torch.rand(3, 2)]}, PETS) is not None
