"""Lists whose labels are names, or have names beside their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdcli.data.classes import numbered_like
from kdcli.data.sources import OpenedData
from kdcli.errors import KdError
from tests.data.conftest import make_part, open_side


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcd":
        Image.new("L", (4, 4), ord(name)).save(tmp_path / f"{name}.png")
    return tmp_path


def listed(root: Path, lines: list[Any], *, train: bool = True, **kwargs: Any) -> OpenedData:
    file = root / ("train" if train else "test")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts), encoding="utf-8")
    kind = "imagenet" if isinstance(lines[0], str) else "custom_cls"
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(root), "color_mode": "GRAY"}}
    part = make_part("cls", meta_file=str(file), meta_type=kind, image_reader=reader, **kwargs)
    return open_side(part, train=train, path=("dataset", "train" if train else "test"))


def labels(opened: OpenedData) -> list[int]:
    found: list[int] = opened.source.labels.tolist()  # type: ignore[union-attr]
    return found


def test_names_are_numbered_in_alphabetical_order_or_as_they_are_listed(root: Path) -> None:
    lines = ["a.png zebra", "b.png ant", "c.png zebra"]
    made = listed(root, lines)
    assert made.facts.class_names == ("ant", "zebra") and labels(made) == [1, 0, 1]
    made = listed(root, lines, classes=["zebra", "cow", "ant"])
    assert made.facts.class_names == ("zebra", "cow", "ant") and labels(made) == [0, 2, 0]
    assert made.facts.num_classes == 3


def test_json_lines_may_give_numbers_and_names(root: Path) -> None:
    rows = [{"filename": f"{f}.png", "label": n, "label_name": name} for f, n, name in
            (("a", 1, "cat"), ("b", 0, "dog"), ("c", 1, "cat"))]  # fmt: skip
    made = listed(root, rows)
    assert made.facts.class_names == ("dog", "cat") and labels(made) == [1, 0, 1]
    made = listed(root, [{"filename": "a.png", "label": "cat"}, {"filename": "b.png", "label": "ant"}])
    assert made.facts.class_names == ("ant", "cat") and labels(made) == [1, 0]
    with pytest.raises(KdError, match="line 3: class 1 is called `cow` here and `cat` before"):
        listed(root, [*rows[:2], {**rows[2], "label_name": "cow"}])


def test_numbers_have_the_names_that_are_listed(root: Path) -> None:
    made = listed(root, ["a.png 1", "b.png 0"], classes=["dog", "cat", "cow"])
    assert made.facts.class_names == ("dog", "cat", "cow") and labels(made) == [1, 0]
    assert listed(root, ["a.png 1", "b.png 0"]).facts.class_names is None
    with pytest.raises(KdError, match=r"KD515.*label 3 is outside 0\.\.2"):
        listed(root, ["a.png 3"], classes=["dog", "cat", "cow"])


def test_test_names_have_the_training_numbers(root: Path) -> None:
    train = listed(root, ["a.png zebra", "b.png ant", "c.png cow"])
    test = numbered_like(listed(root, ["d.png zebra"], train=False), train.facts.class_names)
    assert labels(test) == [2] and len(test.notices) == 1
    with pytest.raises(KdError, match=r"KD541.*`zebras`"):
        numbered_like(listed(root, ["d.png zebras"], train=False), train.facts.class_names)


@pytest.mark.parametrize(
    ("lines", "kwargs", "said"),
    [
        (["a.png 0", "b.png O"], {}, "line 2: the label is `O`, and others are numbers"),
        (["a.png cat", "b.png 1"], {}, "line 2: the label is 1, and others are names"),
        (["a.png b.png"], {}, "line 1 is not"),
        (["a.png 1.5"], {}, "line 1 is not"),
        (["a.png caat"], {"classes": ["cat", "dog"]}, "`classes` does not list `caat`: did you mean `cat`"),
        (
            ["a.png 0"],
            {"classes": ["cat", "dog"], "num_classes": 3},
            "`num_classes` is 3, and `classes` lists 2",
        ),
    ],
)
def test_what_can_not_be_meant(root: Path, lines: list[str], kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(KdError, match=said):
        listed(root, lines, **kwargs)


def test_a_class_is_listed_once(root: Path) -> None:
    with pytest.raises(KdError, match="`classes` lists `cat` twice"):
        listed(root, ["a.png cat"], classes=["cat", "dog", "cat"])


def test_json_lines_say_what_reads_them(root: Path) -> None:
    file = root / "lines"
    file.write_text('{"filename": "a.png", "label": "cat"}\n')
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(root), "color_mode": "GRAY"}}
    part = make_part("cls", meta_file=str(file), image_reader=reader)
    with pytest.raises(KdError, match="KD510") as caught:
        open_side(part, train=True, path=("dataset", "train"))
    assert "meta_type: custom_cls" in str(caught.value.diagnostics[0].help)
