"""Includes: relative, inside the folder, once round."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spec.specs import BASE, changed, findings, good

SAVER = ("saver:\n  save_dir: runs/it", "saver: !include {FILE}")


def spec(file: str) -> str:
    return changed(SAVER, ("{FILE}", file))


def test_a_file_and_a_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "saver.yaml").write_text("save_dir: runs/a\n")
    (tmp_path / "parts" / "all.yaml").write_text("x:\n  - saver: !include saver.yaml\n")
    for file in ("parts/saver.yaml", "parts/all.yaml//x.0.saver", "./parts/../parts/saver.yaml"):
        assert good(spec(file), base_dir=tmp_path).spec.saver.save_dir == "runs/a"


def test_a_finding_inside_points_at_both_places(tmp_path: Path) -> None:
    (tmp_path / "saver.yaml").write_text("save_dir: runs/a\nauto_resum: true\n")
    (found,) = findings(spec("saver.yaml"), base_dir=tmp_path)
    assert found.code == "KD202"
    assert found.span is not None
    assert found.span.written is not None
    assert (found.span.source, found.span.line) == ("cfg.yaml", 73)
    assert (found.span.written.source, found.span.written.line) == ("saver.yaml", 2)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("none.yaml", "KD114"),
        (".", "KD114"),
        ("", "KD114"),
        ("empty.yaml", "KD114"),
        ("../outside.yaml", "KD115"),
        ("/etc/hostname", "KD115"),
        ("link.yaml", "KD115"),
        ("one.yaml", "KD116"),
        ("cfg.yaml", "KD116"),
        ("part.yaml//save_dri", "KD117"),
        ("part.yaml//save_dir.x", "KD117"),
        ("twice.yaml", "KD105"),
        ("broken.yaml", "KD101"),
        ("latin.yaml", "KD103"),
    ],
)
def test_what_is_refused(tmp_path: Path, file: str, code: str) -> None:
    (tmp_path / "outside.yaml").write_text("save_dir: runs/a\n")
    root = tmp_path / "root"
    root.mkdir()
    text = spec(f"'{file}'")
    (root / "cfg.yaml").write_text(text)
    (root / "empty.yaml").write_text("")
    (root / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (root / "one.yaml").write_text("a: !include two.yaml\n")
    (root / "two.yaml").write_text("a: !include one.yaml\n")
    (root / "part.yaml").write_text("save_dir: runs/a\n")
    (root / "twice.yaml").write_text("save_dir: a\nsave_dir: b\n")
    (root / "broken.yaml").write_text("a: [\n")
    (root / "latin.yaml").write_bytes(b"save_dir: caf\xe9\n")
    found = findings(text, base_dir=root)
    assert [one.code for one in found] == [code]
    assert found[0].span is not None


def test_without_a_folder_nothing_is_included() -> None:
    assert [one.code for one in findings(spec("a.yaml"))] == ["KD114"]


@pytest.mark.slow
def test_includes_share_one_budget(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("[" + "1, " * 20_000 + "1]\n")
    text = "x-big: [" + ", ".join(["!include big.yaml"] * 8) + "]\n" + BASE
    assert "KD109" in [one.code for one in findings(text, base_dir=tmp_path)]
