"""What the system refuses is one message about the path, and what can be asked is answered."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcli import disk
from kdcli.disk import LONG, REASONS
from kdcli.errors import RunError, SpecError
from tests.rights import without_rights

QUESTIONS: tuple[Callable[[Any], Any], ...] = (
    disk.exists,
    disk.is_file,
    disk.is_folder,
    disk.is_link,
    disk.size_of,
    disk.bytes_in,
    disk.text_in,
    disk.entries,
)


def code_of(action: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(RunError) as caught:
        action()
    (found,) = caught.value.diagnostics
    assert len(found.message) < LONG + 200 and "\0" not in found.message
    return found.code, found.message


@pytest.mark.parametrize("ask", QUESTIONS, ids=lambda ask: ask.__name__)
@pytest.mark.parametrize(
    ("name", "why"), [("x" * 5000, "too long"), ("a\0b", "NUL"), ("loop/x", "in a circle")], ids=str
)
def test_a_name_that_no_system_takes(
    ask: Callable[[Any], Any], name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    code, message = code_of(lambda: ask(name))
    assert code == "KD521" and why in message, message


@pytest.mark.parametrize("ask", QUESTIONS, ids=lambda ask: ask.__name__)
def test_a_folder_that_may_not_be_entered(ask: Callable[[Any], Any], tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    with without_rights(tmp_path / "shut"):
        code, message = code_of(lambda: ask(tmp_path / "shut" / "file"))
        assert not disk.seen(tmp_path / "shut" / "file")
    assert code == "KD521" and "permission denied" in message


@pytest.mark.parametrize("number", sorted(set(REASONS) - {errno.ENOENT, errno.ENOTDIR}))
def test_every_reason_has_its_words(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), "data")

    monkeypatch.setattr(disk.os, "stat", refuse)
    with pytest.raises(RunError) as caught:
        disk.exists("data")
    (found,) = caught.value.diagnostics
    assert (found.message, found.help) == (f"cannot use `data`: {REASONS[number][0]}", REASONS[number][1])


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abc")
    for path in (tmp_path / "none", tmp_path / "file" / "below"):
        assert not disk.exists(path) and not disk.is_file(path) and not disk.is_folder(path)
        assert not disk.same(path, tmp_path)
    assert disk.is_file(tmp_path / "file") and disk.size_of(tmp_path / "file") == 3
    assert disk.entries(tmp_path) == disk.entries_like(tmp_path, "f*") == [tmp_path / "file"]
    assert disk.entries_like(tmp_path / "none", "*") == []


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert disk.expanded("~/runs") == Path("/home/ada/runs")
    assert disk.expanded("./~nosuchuser") == Path("./~nosuchuser")
    assert code_of(lambda: disk.expanded("~nosuchuser/x")) == (
        "KD521",
        "cannot use `~nosuchuser/x`: there is no user `nosuchuser`",
    )


def test_a_place_to_write_is_proved_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    disk.prove_writable(tmp_path / "old.json")
    disk.prove_writable(tmp_path / "new" / "file.json")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "old.json"]
    assert (tmp_path / "old.json").read_text() == "old"
    assert code_of(lambda: disk.prove_writable(tmp_path / "new"))[0] == "KD740"
    with without_rights(tmp_path / "new", 0o500):
        code, message = code_of(lambda: disk.prove_writable(tmp_path / "new" / "file.json"))
    assert code == "KD740" and "Permission denied" in message
    assert code_of(lambda: disk.write_whole(tmp_path / "a\0b", ""))[0] == "KD740"
    assert code_of(lambda: disk.write_whole(tmp_path / ("x" * 300), ""))[0] == "KD740"


def test_an_error_about_a_file_of_the_spec_is_at_its_key() -> None:
    with pytest.raises(SpecError) as caught, disk.at_path(("saver", "save_dir")):
        disk.exists("x" * 5000)
    assert caught.value.diagnostics[0].path == ("saver", "save_dir")
