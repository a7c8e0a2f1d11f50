"""What kdcli's contributors are told: recipes that work as written, a map with every room."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes import CONTRIBUTING, ROOT, apply, recipe

PACKAGE = ROOT / "kdcli"
RECIPES = ("A loss", "A mimic method", "A dataset", "A task")


def test_every_recipe_is_tested() -> None:
    titles = re.findall(r"^## (.*)$", CONTRIBUTING.read_text(), re.M)
    assert tuple(title for title in titles if recipe(title)) == RECIPES
    for title in RECIPES:
        blocks = recipe(title)
        assert {"python", "yaml", "sh"} == {block.language for block in blocks}
        assert any(block.table for block in blocks)


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works_as_written(title: str, tmp_path: Path) -> None:
    """In a copy of the package: its commands succeed, and the linter has nothing to say about its code."""
    shutil.copytree(PACKAGE, tmp_path / "kdcli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    commands = apply(recipe(title), tmp_path)
    assert [command.split()[0] for command in commands] == ["kdcli"] * len(commands)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "kdcli.cli", *command.split()[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    (spec,) = [block.file for block in recipe(title) if block.language == "yaml"]
    assert (tmp_path / "runs" / Path(spec).stem / "finished.json").is_file()
    if shutil.which("ruff"):
        for check in ("check", "format --check"):
            command = [
                "ruff",
                *check.split(),
                "--no-cache",
                "--target-version",
                "py311",
                str(tmp_path / "kdcli"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, done.stdout


def test_the_map_names_every_folder() -> None:
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", (PACKAGE / "README.md").read_text(), re.M))
    assert [room for room in rows if not (PACKAGE / room).is_dir()] == []
    folders = [path for path in PACKAGE.rglob("*/") if path.is_dir() and list(path.glob("*.py"))]
    assert len(folders) > 20
    for folder in folders:
        room, *inner = folder.relative_to(PACKAGE).parts
        assert room in rows, f"kdcli/README.md has no row for {room}/"
        assert all(f"`{name}/`" in rows[room] for name in inner), f"{room}/'s row doesn't name {inner}"
