"""Commands on folders that hold no whole run of this version: one clear line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcli.cli import main
from tests.report.run_folders import make_run

COMMANDS = ("report", "compare", "export", "eval")


def empty(root: Path) -> str:
    root.mkdir()
    return "KD750 is empty"


def strangers(root: Path) -> str:
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    return "KD750 no run of kdcli"


def another_version(root: Path) -> str:
    make_run(root)
    env = json.loads((root / "env.json").read_text())
    (root / "env.json").write_text(json.dumps({**env, "run_format": 99, "kdcli": "7.0"}))
    return "KD753 kdcli 7.0"


def half_a_spec(root: Path) -> str:
    make_run(root)
    text = (root / "spec.resolved.yaml").read_text()
    (root / "spec.resolved.yaml").write_text(text[: len(text) // 2] + "\n  - {")
    return "KD752 half-written"


def half_an_environment(root: Path) -> str:
    make_run(root)
    (root / "env.json").write_text('{"kdcli": "0.')
    return "KD752 half-written"


def no_spec(root: Path) -> str:
    make_run(root)
    (root / "spec.resolved.yaml").unlink()
    return "KD752 interrupted"


FOLDERS = (empty, strangers, another_version, half_a_spec, half_an_environment, no_spec)


def said_by(
    command: str, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a command fails with: one error, and its help."""
    monkeypatch.setattr(sys, "argv", ["kdcli", command, path])
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert left.value.code in (1, 2) and out == "" and "Traceback" not in err
    assert err.count("error KD") == 1, err
    assert len(err.splitlines()) <= 2, err
    return err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("make", FOLDERS)
def test_bad_folders(
    command: str,
    make: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, what = make(Path("folder")).split(" ", 1)
    said = said_by(command, "folder", monkeypatch, capsys)
    assert said.startswith(f"error {code}: folder") and what in said, said


@pytest.mark.parametrize("command", ["export", "eval"])
def test_a_run_that_has_no_weights_yet(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = Path(__file__).parent.parent / "sample_configs" / "digits_student.yaml"
    Path("folder").mkdir()
    Path("folder/spec.resolved.yaml").write_text(sample.read_text())
    assert "KD719: there are no weights" in said_by(command, "folder", monkeypatch, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_nowhere(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "gone" in said_by(command, "gone", monkeypatch, capsys)
