"""The recipes of kdcli/CONTRIBUTING.md: their code blocks, each with the file that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTRIBUTING = ROOT / "kdcli" / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```(?P<language>\w+) ?(?P<file>\S*) ?(?P<table>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One code block. file: empty for commands. table: of that file, to which the text adds a line; else empty."""

    language: str
    file: str
    table: str
    text: str


def recipe(title: str) -> list[Block]:
    """The blocks of the section `## <title>`."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", CONTRIBUTING.read_text(), re.M | re.S)
    return [Block(**found.groupdict()) for found in BLOCK.finditer(section)]


def text_of(title: str, file: str) -> str:
    """What a recipe writes into a new file."""
    (text,) = [block.text for block in recipe(title) if block.file == file and not block.table]
    return text


def apply(blocks: Sequence[Block], root: Path) -> list[str]:
    """Write the blocks into a copy of the repository, specs into its root; returns the commands to be run there."""
    commands = []
    for block in blocks:
        path = root / block.file
        if block.language == "sh":
            commands += block.text.splitlines()
        elif not block.table:
            assert not path.exists(), f"{block.file} is there already"
            path.write_text(block.text)
        else:
            start = re.compile(rf"^{block.table}: .* = \{{\n", re.M)
            text, count = start.subn(lambda found, block=block: found[0] + block.text, path.read_text())
            assert count == 1, f"{block.file} has no table {block.table}"
            path.write_text(text)
    return commands
