"""The sample specs: where they lie, and what each is."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from kdcli.disk import entries_like, is_file, is_folder, real_path, text_in
from kdcli.errors import UsageError

FOLDER = "sample_configs"
SCHEMA = "kdcli.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"
"""The first line of every sample, by which editors find the language's schema beside it."""


def sample_specs() -> dict[str, Path]:
    """Paths of the sample specs by name: those of a checkout, else of the installed package."""
    beside = real_path(Path(__file__)).parents[2] / FOLDER
    found = entries_like(beside, "*.yaml") if is_folder(beside) else _installed()
    if not found:
        raise UsageError.of(
            "the sample specs are not installed", "install kdcli from its wheel or a checkout"
        )
    return {path.stem: path for path in found}


def summary_of(path: Path) -> str:
    """The first sentence of the comment that a sample begins with."""
    words: list[str] = []
    for line in text_in(path).removeprefix(MODELINE).splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    text = " ".join(words)
    end = re.search(r"[.;:](?= [a-zA-Z]).*|\.$", text)
    return text[: end.start()] if end and end[0].startswith(".") else text.rstrip(".")


def _installed() -> list[Path]:
    """Paths of the sample specs that the wheel brought, wherever the installer put its data."""
    try:
        known = files("kdcli") or []
    except PackageNotFoundError:
        return []
    places = [Path(str(file.locate())) for file in known if f"{FOLDER}/" in file.as_posix()]
    return sorted(real_path(place) for place in places if place.suffix == ".yaml" and is_file(place))
