"""Findings in every format, held by golden texts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcli.errors import Diagnostic, Span
from kdcli.report.console import display_width
from kdcli.report.diagnostics import FORMATS, github, render

from .samples import MISSPELT, UNUSED, span


def found(excerpt: str, marked: str, *, help: str | None = None, line: int = 7) -> Diagnostic:
    return Diagnostic(code="KD301", message="unknown name", help=help, span=span(excerpt, marked, line=line))


def test_text_golden() -> None:
    assert render([MISSPELT, UNUSED]) == (
        "cfg.yaml:131:16: error KD203: unknown key `weigth`\n"
        "  131 |         loss: {weigth: 2}\n"
        "      |                ^^^^^^\n"
        "  written here: cfg.yaml:4:3\n"
        "    4 |   weigth: 2\n"
        "      |   ^^^^^^\n"
        "  help: did you mean `weight`?\n"
        "\n"
        "warning KD601: teacher `t` is unused (at teachers.t[0])\n"
        "\n"
        "1 error, 1 warning\n"
    )


def test_text_keeps_what_is_to_be_pasted() -> None:
    text = render([found("name: x", "x", help="add to `net`:\n- name: a\n  type: adap")])
    assert text == (
        "cfg.yaml:7:7: error KD301: unknown name\n"
        "  7 | name: x\n"
        "    |       ^\n"
        "  help: add to `net`:\n"
        "        - name: a\n"
        "          type: adap\n"
    )


def test_text_counts_cells_of_wide_characters_and_tabs() -> None:
    lines = render([found("\t名字: 蒸馏器, x", "蒸馏器")]).splitlines()
    assert lines[1] == "  7 |     名字: 蒸馏器, x"
    assert lines[2] == "    |           ^^^^^^"


@pytest.mark.parametrize("before, after", [(600, 700), (0, 700), (600, 0), (40, 40)])
def test_text_shows_a_window_of_a_long_line(before: int, after: int) -> None:
    shown, carets = render([found("a" * before + "MARK" + "z" * after, "MARK")], width=60).splitlines()[1:3]
    assert len(shown) <= 60
    at = carets.index("^")
    assert carets[at:] == "^^^^" and shown[at : at + 4] == "MARK"
    assert ("…a" in shown) == (before > 0) and shown.endswith("…") == (after > 0)


def test_text_of_a_mark_longer_than_the_window() -> None:
    shown, carets = render([found("k: " + "q" * 900 + " # end", "q" * 900)], width=60).splitlines()[1:3]
    assert len(shown) <= 60 and shown.startswith("  7 | k: qqq") and len(carets) <= 60


def test_text_at_the_end_of_a_line_has_one_caret() -> None:
    place = Span(source="cfg.yaml", line=2, column=6, end_column=6, excerpt="key: ")
    shown, carets = render([Diagnostic(code="KD102", message="no value", span=place)]).splitlines()[1:3]
    assert (shown, carets) == ("  2 | key:", "    |      ^")


def test_text_cannot_drive_the_terminal() -> None:
    evil = Diagnostic(code="KD301", message="no \x1b[31m", help="\x07", span=span("a\x1b]0;x\x07: 1", "1"))
    for format in ("text", "concise"):
        assert not any(ord(char) < 32 and char != "\n" for char in render([evil], format))


def test_colour_says_nothing_that_the_text_does_not() -> None:
    import re

    coloured = render([MISSPELT, UNUSED], colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render([MISSPELT, UNUSED])


def test_concise_golden() -> None:
    assert render([MISSPELT, UNUSED, MISSPELT], "concise") == (
        "cfg.yaml:131:16: error KD203: unknown key `weigth`\n"
        "warning KD601: teacher `t` is unused (at teachers.t[0])\n"
    )


def test_order_is_by_line_within_a_file() -> None:
    late, early = found("x: 1", "x", line=9), found("y: 1", "y", line=2)
    assert render([late, early], "concise").splitlines()[0].startswith("cfg.yaml:2:")


def test_nothing_found() -> None:
    assert [render([], name) for name in ("text", "concise", "github")] == ["", "", ""]
    assert json.loads(render([], "json"))["errors"] == 0
    check_sarif(json.loads(render([], "sarif")))


def test_json() -> None:
    document = json.loads(render([MISSPELT, UNUSED], "json"))
    assert (document["errors"], document["warnings"]) == (1, 1)
    first, second = document["diagnostics"]
    assert first["span"]["column"] == 16 and first["span"]["written"]["line"] == 4
    assert second["path"] == ["teachers", "t", 0] and second["span"] is None


def test_github_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.yaml").write_text("x: 1\n")
    place = Span(source="a,b.yaml", line=1, column=1, end_column=2, excerpt="x: 1")
    finding = Diagnostic(code="KD203", message="100% wrong:\nyes", help="none, sorry", span=place)
    assert github([finding]) == (
        "::error file=a%2Cb.yaml,line=1,endLine=1,col=1,endColumn=1,title=kdcli KD203::"
        "100%25 wrong:%0Ayes%0Ahelp: none, sorry\n"
    )


def test_github_without_a_file_says_the_place_in_words() -> None:
    place = span("lr=x", "x", source="<argument 1>", line=1)
    assert render([Diagnostic(code="KD204", message="no number", span=place)], "github") == (
        "::error title=kdcli KD204::<argument 1>:1:4: error KD204: no number\n"
    )


def test_sarif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg 1.yaml").write_text("")
    inner = span("  k: 2", "k", line=4, source="cfg 1.yaml")
    inside = span("k: {k}", "{k}", source=str(tmp_path / "cfg 1.yaml"), written=inner)
    log = json.loads(
        render([Diagnostic(code="KD203", message="m", help="h", span=inside, path=("net",)), UNUSED], "sarif")
    )
    check_sarif(log)
    (run,) = log["runs"]
    first = run["results"][0]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "cfg%201.yaml"
    assert first["locations"][0]["physicalLocation"]["region"]["endColumn"] == 7
    assert first["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == 4
    assert [run["tool"]["driver"]["rules"][r["ruleIndex"]]["id"] for r in run["results"]] == [
        "KD203",
        "KD601",
    ]
    outside = tmp_path / "inner"
    outside.mkdir()
    monkeypatch.chdir(outside)
    log = json.loads(render([Diagnostic(code="KD203", message="m", span=inside)], "sarif"))
    uri = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.startswith("file:///") and uri.endswith("/cfg%201.yaml")


def test_sarif_rules_carry_the_explanations() -> None:
    from kdcli.codes import CODES

    code = next(iter(CODES))
    log = json.loads(render([Diagnostic(code=code, message="m")], "sarif"))
    (rule,) = log["runs"][0]["tool"]["driver"]["rules"]
    assert rule["shortDescription"]["text"] == CODES[code].title
    check_sarif(log)


@given(
    excerpt=st.text(max_size=300),
    column=st.integers(1, 320),
    length=st.integers(0, 320),
    width=st.integers(0, 120),
)
def test_any_excerpt_is_drawn(excerpt: str, column: int, length: int, width: int) -> None:
    place = Span(source="s", line=1, column=column, end_column=column + length, excerpt=excerpt)
    finding = Diagnostic(code="KD101", message="m", span=place)
    for format in FORMATS:
        assert render([finding], format, width=width)
    shown = render([finding], width=width).split("\n")[1]
    assert display_width(shown) <= max(width, 28)


def check_sarif(log: object) -> None:
    """What of the SARIF 2.1.0 schema our logs can touch; unknown properties are refused as there."""
    import jsonschema

    jsonschema.validate(log, SARIF)


def _closed(properties: dict[str, object], *required: str) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT = _closed({"text": {"type": "string"}}, "text")
_POSITIVE = {"type": "integer", "minimum": 1}
_PHYSICAL = _closed(
    {
        "artifactLocation": _closed({"uri": {"type": "string", "pattern": r"^[^\s\\<>\"{}|^`]+$"}}, "uri"),
        "region": _closed(
            {
                **dict.fromkeys(("startLine", "startColumn", "endLine", "endColumn"), _POSITIVE),
                "snippet": _TEXT,
            },
            "startLine",
        ),
    },
    "artifactLocation",
)
_LOCATION = _closed(
    {
        "physicalLocation": _PHYSICAL,
        "logicalLocations": {
            "type": "array",
            "uniqueItems": True,
            "items": _closed({"fullyQualifiedName": {"type": "string"}}),
        },
        "message": _TEXT,
    }
)
_RULE = _closed(
    {
        "id": {"type": "string"},
        "shortDescription": _TEXT,
        "fullDescription": _TEXT,
        "help": _TEXT,
    },
    "id",
)
_RESULT = _closed(
    {
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": -1},
        "level": {"enum": ["none", "note", "warning", "error"]},
        "message": _TEXT,
        "locations": {"type": "array", "items": _LOCATION},
        "relatedLocations": {"type": "array", "uniqueItems": True, "items": _LOCATION},
    },
    "message",
)
_DRIVER = _closed(
    {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "rules": {"type": "array", "uniqueItems": True, "items": _RULE},
    },
    "name",
)
SARIF = _closed(
    {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "items": _closed(
                {
                    "tool": _closed({"driver": _DRIVER}, "driver"),
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {"type": "array", "items": _RESULT},
                },
                "tool",
            ),
        },
    },
    "version",
    "runs",
)


def many(errors: int, warnings: int) -> list[Diagnostic]:
    """Warnings from line 1 on, errors after them."""
    return [
        Diagnostic(
            code="KD202",
            severity="error" if line > warnings else "warning",
            message=f"unknown key `k{line}`",
            span=span(f"k{line}: 1", f"k{line}", line=line),
        )
        for line in range(1, errors + warnings + 1)
    ]


def test_of_very_many_the_first_are_shown_and_all_are_counted() -> None:
    lines = render(many(20_000, 0)).splitlines()
    assert lines[-1] == "20000 errors (the first 100 are shown)"
    assert sum(line.startswith("cfg.yaml:") for line in lines) == 100 and "`k100`" in lines[-5]
    assert render(many(1200, 1), "concise").splitlines()[-1] == "and 200 errors, 1 warning more"
    said = json.loads(render(many(1200, 1), "json"))
    assert (said["errors"], said["warnings"], len(said["diagnostics"])) == (1200, 1, 1000)
    assert render(many(60, 40)).endswith("\n60 errors, 40 warnings\n")


def test_warnings_never_hide_an_error() -> None:
    lines = render(many(1, 300)).splitlines()
    assert "cfg.yaml:301:1: error KD202: unknown key `k301`" in lines
    assert lines[-1] == "1 error, 300 warnings (the first 100 are shown)"


def test_many_findings_on_one_long_line_are_shown_at_once() -> None:
    keys = [f"key{number}" for number in range(5000)]
    line = "saver: {" + ", ".join(f"{key}: 1" for key in keys) + "}"
    started = time.process_time()
    text = render([found(line, f"{key}:") for key in keys])
    # Cutting a line of 70,000 characters a character at a time took 3 s for each finding.
    assert time.process_time() - started < 1.0
    shown, carets = text.splitlines()[-4:-2]
    at = carets.index("^")
    assert (
        carets[at:] == "^^^^^^"
        and shown[at : at + 6] == "key99:"
        and shown.startswith("  7 | …")
        and shown.endswith("…")
    )
    assert len(shown) <= 100
    assert (
        json.loads(render([found(line, "key77:")], "json"))["diagnostics"][0]["span"]["excerpt"] == "key77:"
    )
