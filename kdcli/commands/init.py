"""`kdcli init`: the sample specs that come with kdcli, and a copy of one to start from."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from kdcli.errors import UsageError, did_you_mean

FOLDER = "sample_configs"
SCHEMA = "kdcli.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"
"""The first line of every sample, by which editors find the language's schema beside it."""

_WEIGHTS = re.compile(r"(?<![\w./-])weights/[\w.-]+")
_INCLUDE = re.compile(r"!include\s+([\w./-]+)")


def init(name: str | None, folder: Path | None, *, force: bool) -> None:
    """List the samples, or copy one into a folder (the working directory) with the files it names."""
    from kdcli.report.console import write

    samples = sample_specs()
    if name is None:
        width = max(len(sample) for sample in samples)
        lines = [f"{sample:<{width}}  {summary_of(path)}\n" for sample, path in samples.items()]
        write("".join(lines) + "\nkdcli init NAME [DIR] copies one.\n")
        return
    key = name.removesuffix(".yaml")
    if key not in samples:
        raise UsageError.of(f"there is no sample `{name}`", did_you_mean(key, list(samples)))
    target = copy_sample(samples[key], folder or Path(), force=force)
    write(f"{target}\nnext: kdcli validate {target} && kdcli train {target}\n")


def sample_specs() -> dict[str, Path]:
    """The samples by name: of a checkout, else of the installed package."""
    beside = Path(__file__).resolve().parents[2] / FOLDER
    found = sorted(beside.glob("*.yaml")) if beside.is_dir() else _installed()
    if not found:
        raise UsageError.of(
            "the sample specs are not installed", "install kdcli from its wheel or a checkout"
        )
    return {path.stem: path for path in found}


def summary_of(path: Path) -> str:
    """The first sentence of the comment that a sample begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").removeprefix(MODELINE).splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    text = " ".join(words)
    end = re.search(r"[.;:](?= [a-zA-Z]).*|\.$", text)
    return text[: end.start()] if end and end[0].startswith(".") else text.rstrip(".")


def copy_sample(path: Path, folder: Path, *, force: bool = False) -> Path:
    """Copy a sample, the weights and specs it names, and the language's schema; returns the new spec.

    Raises UsageError where a file lies there already, unless `force`.
    """
    from kdcli.reference.schema_json import schema_text

    target = folder / path.name
    text = path.read_text(encoding="utf-8")
    beside = [
        name for name in (*_WEIGHTS.findall(text), *_INCLUDE.findall(text)) if (path.parent / name).is_file()
    ]
    if target.exists() and not force:
        raise UsageError.of(
            f"{target} is there already", "choose another folder, or overwrite it with `--force`"
        )
    shown = folder.as_posix()
    text = text.replace(f"{FOLDER}/", "" if shown == "." else f"{shown}/")
    try:
        for name in dict.fromkeys(beside):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.parent / name, folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCHEMA).write_text(schema_text(), encoding="utf-8")
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError.of(f"cannot write into {folder}: {error.strerror or error}") from error
    return target


def _installed() -> list[Path]:
    """The samples that the wheel brought, wherever the installer put its data."""
    try:
        known = files("kdcli") or []
    except PackageNotFoundError:
        return []
    places = [Path(str(file.locate())) for file in known if f"{FOLDER}/" in file.as_posix()]
    return sorted(place.resolve() for place in places if place.suffix == ".yaml" and place.is_file())
