"""The front page: short, its links lead somewhere, its commands are kdcli's, its figures were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdcli.cli import COMMANDS
from kdcli.commands.samples import sample_specs
from kdcli.losses import LOSSES
from tests.recipes import ROOT
from tests.test_pages import FOLDER, run, told

README = ROOT / "README.md"
LINKED = [
    README,
    ROOT / "sample_configs/README.md",
    ROOT / "tests/benchmarks/README.md",
    *FOLDER.glob("*.md"),
]


def test_the_front_page_is_a_page() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert "On a GPU kdcli has run on one H100" in text
    assert re.search(r"pip install -e '\.\[dev\]' && pytest", text), ".ci/run takes its command from here"
    assert f"{len(LOSSES)} losses" in text


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_the_repository_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    links = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in links:
        if "://" not in link:
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_named_is_one_of_kdclis(path: Path) -> None:
    text = path.read_text()
    blocks = "\n".join(re.findall(r"^```\w+\n(.*?)^```$", text, re.M | re.S))
    named = re.findall(r"`kdcli ([a-z][a-z-]*)", text)
    named += re.findall(r"(?:^|&& |srun )kdcli ([a-z][a-z-]*)", blocks, re.M)
    assert set(named) <= set(COMMANDS)
    for sample in re.findall(r"kdcli init ([a-z]\w+)", path.read_text()):
        assert sample in sample_specs(), sample


def test_every_sample_is_in_the_gallery() -> None:
    text = (ROOT / "sample_configs/README.md").read_text()
    assert [name for name in sample_specs() if f"`{name}`" not in text] == []


def test_the_table_of_results_is_the_benchmarks() -> None:
    """Each figure of the front page stands in the tables, which have the commands."""
    measured = (ROOT / "tests/benchmarks/README.md").read_text()
    section = README.read_text().split("## What it is worth")[1].split("\n## ")[0]
    figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", "".join(re.findall(r"^\|.*$", section, re.M)))
    assert len(figures) > 12
    assert [figure for figure in figures if figure not in measured] == []


@pytest.mark.slow
def test_the_front_pages_commands_work(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines
    for line in lines:
        done = run(line, "", tmp_path)
        assert done.returncode == 0, done.stdout
    assert (tmp_path / "runs/demo/student.safetensors").is_file() and told("", "data") == []
