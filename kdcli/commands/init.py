"""`kdcli init`, `kdcli make-data`: a sample spec to start from, and a small data set that is composed."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.disk import entries_like, exists, is_file, is_folder, real_path, text_in
from kdcli.errors import KdError, RunError, UsageError, did_you_mean

if TYPE_CHECKING:
    from kdcli.commands.options import InitOptions, MakeDataOptions

FOLDER = "sample_configs"
SCHEMA = "kdcli.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"
"""The first line of every sample, by which editors find the language's schema beside it."""

_WEIGHTS = re.compile(r"(?<![\w./-])weights/[\w.-]+")
_INCLUDE = re.compile(r"!include\s+([\w./-]+)")


def init(options: InitOptions) -> None:
    """Print the names of the samples, or copy one, with the files it names, and print where to."""
    from kdcli.report.console import write

    samples = sample_specs()
    name = options.name
    if name is None:
        width = max(len(sample) for sample in samples)
        lines = [f"{sample:<{width}}  {summary_of(path)}\n" for sample, path in samples.items()]
        write("".join(lines) + "\nkdcli init NAME [DIR] copies one.\n")
        return
    key = name.removesuffix(".yaml")
    if key not in samples:
        raise UsageError.of(f"there is no sample `{name}`", did_you_mean(key, list(samples)))
    target = copy_sample(samples[key], options.folder or Path(), force=options.force)
    write(f"{target}\nnext: kdcli validate {target} && kdcli train {target}\n")


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


def copy_sample(path: Path, folder: Path, *, force: bool = False) -> Path:
    """Copy a sample, the weights and specs it names, and the language's schema; returns the new spec.

    Raises UsageError where a file lies there already, unless `force`.
    """
    from kdcli.reference.schema_json import schema_text

    target = folder / path.name
    text = text_in(path)
    beside = [
        name for name in (*_WEIGHTS.findall(text), *_INCLUDE.findall(text)) if is_file(path.parent / name)
    ]
    if exists(target) and not force:
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
    """Paths of the sample specs that the wheel brought, wherever the installer put its data."""
    try:
        known = files("kdcli") or []
    except PackageNotFoundError:
        return []
    places = [Path(str(file.locate())) for file in known if f"{FOLDER}/" in file.as_posix()]
    return sorted(real_path(place) for place in places if place.suffix == ".yaml" and is_file(place))


def make_data(options: MakeDataOptions) -> None:
    """Compose scenes of garments from Fashion-MNIST into a folder, and print the paths and counts.

    Raises UsageError where the folder holds scenes already (unless force) or can't be written, RunError
    KD506 where Fashion-MNIST is missing.
    """
    from kdcli.data.detection.fashion_scenes import make_scenes
    from kdcli.report.console import write

    folder = options.folder
    if not options.force and any(exists(folder / f"{side}.json") for side in ("train", "test")):
        raise UsageError.of(
            f"{folder} holds scenes already", "choose another folder, or overwrite them with `--force`"
        )
    try:
        written = make_scenes(
            folder,
            options.seed,
            root=None if options.root is None else str(options.root),
            num_train=options.num_train,
            num_test=options.num_test,
        )
    except OSError as error:
        raise UsageError.of(f"cannot write into {folder}: {error.strerror or error}") from error
    except KdError as error:
        missing = error.diagnostics[0]
        if missing.code != "KD506":
            raise
        raise RunError.of(
            "KD506",
            missing.message,
            "install Debian's dataset-fashion-mnist, or name its folder: `--root DIR`",
        ) from error
    counts = {"train": options.num_train, "test": options.num_test}
    lines = [f"{path}  {counts[side]:,} scenes in {folder / side}\n" for side, path in written.items()]
    write("".join(lines))
