"""Values against annotations."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from kdcli.spec.check.components import fits, wording


def parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


@pytest.mark.parametrize(
    ("annotation", "yes", "no"),
    [
        ("int", [1, 0], [1.5, True, "1", None, [1]]),
        ("float", [1, 1.5], [True, "1"]),
        ("bool", [True], [1, "on"]),
        ("str", ["a"], [1]),
        ("Any", [1, "a", None, []], []),
        ("int | None", [1, None], ["a"]),
        ("Optional[int]", [1, None], ["a"]),
        ("Union[int, str]", [1, "a"], [[1]]),
        ("list[int]", [[], [1, 2]], [1, [1, "a"], (1,)]),
        ("list[list[float]]", [[[1.5]]], [[1.5]]),
        ("typing.Sequence[float]", [[1, 2.5]], [1.5]),
        ("tuple[int, int]", [[1, 2]], [[1], [1, 2, 3], 1]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [["a"]]),
        ("dict[str, Any]", [{"a": 1}], [[1]]),
        ("Mapping[str, float]", [{"a": 1}], [3]),
        ("Literal['a', 1, True]", ["a", 1, True], ["b", 1.0, False]),
        ("Annotated[int, 'x']", [1], ["a"]),
        ("list", [[1]], [1]),
        ("dict", [{}], [1]),
        ("torch.Tensor", [1, "a"], []),
        ("Path", ["a"], []),
        ("Callable[[int], int]", [1], []),
    ],
)
def test_fits(annotation: str, yes: list[Any], no: list[Any]) -> None:
    node = parsed(annotation)
    assert [value for value in yes if not fits(node, value)] == []
    assert [value for value in no if fits(node, value) and not isinstance(value, tuple)] == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "a whole number"),
        ("float | None", "a number"),
        ("int | list[int]", "a whole number or a list of whole numbers"),
        ("Literal['a', 'b']", "one of `a`, `b`"),
        ("Literal['a']", "`a`"),
        ("dict[str, Any] | str", "a mapping or text"),
        ("tuple[float, float]", "a list of numbers"),
        ("list[dict[str, Any]]", "a list"),
        ("list", "a list"),
        ("Path", "Path"),
        ("None", "nothing"),
    ],
)
def test_wording(annotation: str, words: str) -> None:
    assert wording(parsed(annotation)) == words
