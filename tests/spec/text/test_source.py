"""Text to nodes: places of everything, bounded work, no crash on anything."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdcli.errors import KdError, Span, SpecError
from kdcli.spec.parse import parse
from kdcli.spec.text.nodes import Mapping, Node, Scalar, Sequence, to_data
from kdcli.spec.text.source import MAX_DEPTH, compose, decode


def mapping(text: str) -> Mapping:
    composed = compose(text, "f")
    assert composed.findings == ()
    assert isinstance(composed.tree, Mapping)
    return composed.tree


def place(span: Span) -> tuple[int, int, str]:
    return span.line, span.column, span.excerpt[span.column - 1 : span.end_column - 1]


def codes(text: str) -> list[str]:
    return [finding.code for finding in compose(text, "f").findings]


def test_places_of_keys_scalars_and_lists() -> None:
    tree = mapping("a: 1  # one\nb:\n  - 'q'\n  - [1, &x 22]\n  - *x\n")
    a, b = tree.entries
    assert place(a.key_span) == (1, 1, "a")
    assert place(a.value.span) == (1, 4, "1")
    assert isinstance(b.value, Sequence)
    quoted, flow, alias = b.value.items
    assert place(quoted.span) == (3, 5, "'q'")
    assert place(flow.span) == (4, 5, "[1, &x 22]")
    assert isinstance(flow, Sequence)
    assert place(flow.items[1].span) == (4, 12, "22")
    assert place(alias.span) == (5, 5, "*x")
    assert alias.span.written is not None
    assert place(alias.span.written) == (4, 12, "22")


def test_everything_below_an_alias_is_used_there() -> None:
    tree = mapping("base: &b {x: 1, y: [2]}\nmine: *b\n")
    mine = tree.get("mine")
    assert isinstance(mine, Mapping)
    x = mine.entries[0]
    assert place(x.key_span) == (2, 7, "*b")
    assert x.key_span.written is not None
    assert place(x.key_span.written) == (1, 11, "x")


def test_merge_keys() -> None:
    tree = mapping("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  y: 9\n  <<: [*a, *b]\nd: {<<: *b, z: 0}\n")
    assert to_data(tree)["c"] == {"y": 9, "x": 1, "z": 4}
    assert to_data(tree)["d"] == {"z": 0, "y": 3}
    c = tree.get("c")
    assert isinstance(c, Mapping)
    merged = c.find("x")
    assert merged is not None
    assert place(merged.key_span) == (5, 8, "*a")


def test_all_findings_of_a_text_come_at_once() -> None:
    assert codes("a: *no\nb: !x 1\nc: {d: 1, d: 2}\n? [e]\n: 1\n<<: 3\nf: &f [*f]\n") == [
        "KD107",
        "KD106",
        "KD105",
        "KD111",
        "KD112",
        "KD107",
    ]


def test_a_quoted_merge_sign_is_a_plain_key() -> None:
    assert to_data(mapping("'<<': 3\n")) == {"<<": 3}


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: 'open\nb: 1\n", 1, 4),
        ("a: [1, 2\nb: 3\n", 1, 4),
        ("a: @x\n", 1, 4),
        ("a: b: c\n", 1, 5),
        ("a:\n\t- 1\n", 2, 1),
        ("%YAML 9.0\n---\na: 1\n", 1, 1),
    ],
)
def test_syntax_errors_have_a_place(text: str, line: int, column: int) -> None:
    (finding,) = compose(text, "f").findings
    assert finding.span is not None
    assert (finding.span.line, finding.span.column) == (line, column)


def test_line_ends_and_byte_order_mark() -> None:
    tree = mapping("\ufeffa: 1\r\nb: 2\rc: 3\n")
    assert [place(e.key_span) for e in tree.entries] == [(1, 1, "a"), (2, 1, "b"), (3, 1, "c")]


@pytest.mark.parametrize("data", [b"a: caf\xe9\n", b"x: 1\na: \xff\n", b"\xff\xfea\x00"])
def test_bytes_that_are_not_utf8(data: bytes) -> None:
    with pytest.raises(SpecError) as caught:
        decode(data, "f")
    (finding,) = caught.value.diagnostics
    assert finding.code == "KD103"
    assert finding.span is not None
    assert finding.span.line == (2 if data.startswith(b"x") else 1)


def test_depth_through_aliases_is_bounded() -> None:
    half = MAX_DEPTH // 2 + 2
    text = f"a: &a {'[' * half}{']' * half}\nb: &b {'[' * half}*a{']' * half}\n"
    assert codes(text) == ["KD108"]
    assert codes("[" * 50_000) == ["KD108"]
    assert codes("- " * 50_000) == ["KD108"]


def test_a_billion_laughs_stop_early() -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert codes("\n".join(lines)) == ["KD109"]


def walk(node: Node) -> None:
    for span in spans(node):
        assert span.line >= 1
        assert 1 <= span.column < span.end_column
        assert "\n" not in span.excerpt


def spans(node: Node) -> list[Span]:
    found = [node.span]
    if isinstance(node, Sequence):
        found += [span for item in node.items for span in spans(item)]
    elif isinstance(node, Mapping):
        found += [span for e in node.entries for span in (e.key_span, *spans(e.value))]
    return found


SIGNS = list("ab01 .:-?,[]{}#&*!|>'\"%@`<~\n\t\r\u2028\x85\ufeff\x00é😀\ud800")
YAML_SIGNS = st.text(alphabet=st.sampled_from(SIGNS), max_size=60)


@settings(max_examples=400, deadline=None)
@given(YAML_SIGNS)
@example("a: &a\n  b: *a")
@example("? \n: \n")
@example("!!int\n")
@example("&a\n")
@example("a: !!map []\n")
@example("- !include x\n")
@example("a: |\n  \x00")
@example("\ud800")
@example("*a : 1")
@example("<<: {a: 1}\n<<: {a: 2}")
def test_no_text_crashes(text: str) -> None:
    composed = compose(text, "f")
    if composed.tree is not None:
        walk(composed.tree)
    for finding in composed.findings:
        assert finding.span is not None
    if not isinstance(composed.tree, Scalar):
        try:
            parse(text, "f")
        except KdError as error:
            assert all(one.span is not None for one in error.diagnostics)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_crash(data: bytes) -> None:
    try:
        parse(decode(data, "f"), "f")
    except KdError as error:
        assert all(one.span is not None for one in error.diagnostics)


def test_without_the_c_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x 1\nb: [*x, {c: 'd'}]\n<<: {e: ~}\n"
    fast = compose(text, "f")
    wrong = ["a: [1\nb: 2\n", "a: 'x", "a:\n\t- 1\n", "a: @x", "a: b: c", "a: !<x", "&", "? "]
    places = [compose(one, "f").findings[0].span for one in wrong[:5]]
    monkeypatch.setattr("kdcli.spec.text.source._LOADER", yaml.SafeLoader)
    assert compose(text, "f") == fast
    assert codes("[" * 5000) == ["KD108"]
    for one in wrong:
        compose(one, "f")
    assert [compose(one, "f").findings[0].span for one in wrong[1:5]] == places[1:]
