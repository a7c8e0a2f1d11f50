"""Every code that a spec can cause once its words are right, as the user reads it, word by word."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import kdcli
from kdcli.codes import CODES
from kdcli.commands.help_options import ExplainOptions
from kdcli.commands.reference import explain
from kdcli.commands.validate import examine
from kdcli.report.diagnostics import render
from tests.check.wrong_specs import CASES, ELSEWHERE, PLUGIN, lay

GOLDEN = Path(__file__).with_name("golden.txt")
EARLIER = Path(__file__).parents[1] / "spec/golden.txt"
MODULES = (
    *("models", "distill", "losses", "data", "tasks", "report"),
    *("parallel", "training", "check", "analysis", "exports", "reference"),
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the cases name; one folder for a worker that comes back here, for it has imported from it."""
    folder = tmp_path_factory.mktemp("wrong")
    lay(folder)
    return folder


def said(code: str, folder: Path) -> str:
    """What validate prints about the case of a code, wherever its files lie."""
    case = CASES[code]
    Path("cfg.yaml").write_text(case.text)
    found = examine("cfg.yaml", case.changes, files="full" if case.files else None, plugins=(PLUGIN,))[0]
    text = render(found, "text", colour=False, width=None)
    text = text.replace(f"{folder}/", "").replace(f"{folder}", ".")
    return "\n".join(line.rstrip() for line in text.splitlines())


def sections(file: Path) -> dict[str, str]:
    parts = re.split(r"^== (KD\d{3})\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {code: text.strip("\n") for code, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("code", sorted(CASES))
def test_what_is_said(
    code: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(str(files))
    monkeypatch.setitem(sys.modules, "timm", None)
    found = said(code, files)
    assert f" {code}: " in found
    assert found.strip("\n") == sections(GOLDEN)[code]
    explain(ExplainOptions(word=code))
    assert CODES[code].title in capsys.readouterr().out


def test_every_code_has_its_text() -> None:
    """KD3xx to KD6xx; KD7xx tell of a run, what spec/ says is in its own golden file."""
    package = Path(kdcli.__file__).parent
    files = [file for part in MODULES for file in (package / part).rglob("*.py")]
    used = {
        code for file in files for code in re.findall(r"\bKD[3-6]\d{2}\b", file.read_text(encoding="utf-8"))
    }
    assert used - set(CASES) - ELSEWHERE - set(sections(EARLIER)) == set()
    assert set(sections(GOLDEN)) == set(CASES)
