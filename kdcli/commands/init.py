"""`kdcli init`, `kdcli make-data`: a sample spec to start from, and a small data set that is composed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.commands.samples import FOLDER, SCHEMA, sample_specs, summary_of
from kdcli.disk import (
    entries,
    exists,
    filled,
    is_file,
    is_folder,
    sweep_temporary,
    text_in,
)
from kdcli.errors import KdError, RunError, UsageError, did_you_mean
from kdcli.waiting import say

if TYPE_CHECKING:
    from kdcli.commands.options import InitOptions, MakeDataOptions

FINETUNE = "finetune"

_WEIGHTS = re.compile(r"(?<![\w./-])weights/[\w.-]+")
_INCLUDE = re.compile(r"!include\s+([\w./-]+)")


def init(options: InitOptions) -> None:
    """Print the names of the samples, or copy one, with the files it names, and print where to."""
    from kdcli.report.console import screen_width, write
    from kdcli.report.reference_text import samples_text

    if _is_from(options):
        from kdcli.commands.distill import init_from

        init_from(options)
        return
    samples = sample_specs()
    name = options.name
    if name is None:
        shown = samples_text(
            {sample: summary_of(path) for sample, path in samples.items()}, screen_width(sys.stdout)
        )
        write(shown + "\nkdcli init NAME [DIR] copies one.\n")
        return
    key = name.removesuffix(".yaml")
    if key not in samples:
        raise UsageError.of(f"there is no sample `{name}`", did_you_mean(key, list(samples)))
    folder = options.folder or Path()
    text = _text_with_student(samples, key, options)
    target = copy_sample(samples[key], folder, text=text, force=options.force)
    write(f"{target}\nnext: kdcli validate {target} && kdcli train {target}\n")


def _is_from(options: InitOptions) -> bool:
    """Whether a spec is made from networks and images; raises UsageError for a mixture with copying a sample."""
    given = [name for name in ("teacher", "data", "out") if getattr(options, name) is not None]
    if not options.recipe:
        if given:
            raise UsageError.of(
                f"`--{given[0]}` is for `kdcli init --from`", "add `--from`, or leave it out to copy a sample"
            )
        return False
    if options.name is not None or options.folder is not None or options.after is not None:
        word = options.name or options.folder or "--after"
        raise UsageError.of(
            f"`--from` chooses the sample itself, and `{word}` names one",
            "leave it out; the folder is `--out DIR`",
        )
    return True


def _text_with_student(samples: Mapping[str, Path], key: str, options: InitOptions) -> str:
    """The sample's text with the student that was asked for, or that the spec beside it has trained."""
    from kdcli.commands.students import begun_after, has_student, spec_before, with_student

    text = text_in(samples[key])
    if options.after is not None and key != FINETUNE:
        raise UsageError.of(
            f"`--after` is for `{FINETUNE}`, not for `{key}`", f"kdcli init {FINETUNE} --after SPEC"
        )
    if options.student is not None:
        if not has_student(text):
            able = ", ".join(name for name, path in samples.items() if has_student(text_in(path)))
            raise UsageError.of(
                f"`--student` can't change the student of `{key}`",
                f"write it into the copy; it changes that of {able}",
            )
        if options.after is not None:
            raise UsageError.of("`--student` and `--after` both name a student", "leave one of them out")
        return with_student(text, options.student)
    before = spec_before(options.folder or Path(), options.after) if key == FINETUNE else None
    if before is None:
        return text
    say(f"begins with the student of {before}")
    return begun_after(text, before)


def copy_sample(path: Path, folder: Path, *, text: str | None = None, force: bool = False) -> Path:
    """Copy a sample, the weights and specs it names, and the language's schema; returns the new spec.

    text: what is written instead of the sample's own. Raises UsageError where a file lies
    there already, unless `force`.
    """
    from kdcli.reference.schema_json import schema_text

    target = folder / path.name
    text = text_in(path) if text is None else text
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


def make_data(options: MakeDataOptions) -> None:
    """Compose a data set into a folder, and print the paths and counts.

    Raises UsageError for options of the other kind and where the folder is not free, RunError where sources are
    missing or the folder can't be written.
    """
    _foreign_options_refused(options)
    if options.kind == "fashion-scenes":
        _make_fashion_scenes(options)
    else:
        _make_stamp_scenes(options)


_OF_STAMP_SCENES = (
    "num_val",
    "unlabelled",
    "unlabelled_stamps",
    "task",
    "size",
    "classes",
    "stamps",
    "backgrounds",
)


def _foreign_options_refused(options: MakeDataOptions) -> None:
    given = [name for name in _OF_STAMP_SCENES if getattr(options, name) not in (None, ())]
    if options.kind == "fashion-scenes" and given:
        flag = "--class" if given[0] == "classes" else f"--{given[0].replace('_', '-')}"
        raise UsageError.of(f"`{flag}` is an option of stamp-scenes", "leave it out, or make stamp-scenes")


def _make_fashion_scenes(options: MakeDataOptions) -> None:
    """Garments of Fashion-MNIST. Raises UsageError where scenes lie there (unless force), RunError KD506."""
    from kdcli.data.detection.fashion_scenes import SIDES, make_scenes
    from kdcli.report.console import write

    folder = options.folder
    if not options.force and any(exists(folder / f"{side}.json") for side in ("train", "test")):
        raise UsageError.of(
            f"{folder} holds scenes already", "choose another folder, or overwrite them with `--force`"
        )
    counts = {"train": options.num_train or SIDES["train"], "test": options.num_test or SIDES["test"]}
    try:
        written = make_scenes(
            folder,
            options.seed,
            root=None if options.root is None else str(options.root),
            num_train=counts["train"],
            num_test=counts["test"],
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
    lines = [f"{path}  {counts[side]:,} scenes in {folder / side}\n" for side, path in written.items()]
    write("".join(lines))


def _make_stamp_scenes(options: MakeDataOptions) -> None:
    """Cut-out photographs on photographs; the folder appears whole or not at all."""
    from kdcli.data.stamp_scenes import MADE, MANIFEST, Recipe, make_stamp_scenes
    from kdcli.data.stamps import Split, find_sources
    from kdcli.report.console import write

    folder = options.folder
    _free_folder(folder, MANIFEST, force=options.force)
    given: dict[Split, int] = {
        "train": options.num_train or 2400,
        "val": options.num_val or 0,
        "test": options.num_test or 800,
    }
    recipe = Recipe(
        task=options.task or "classification",
        size=options.size or 96,
        seed=options.seed,
        counts={split: count for split, count in given.items() if count},
        unlabelled=options.unlabelled or 0,
    )
    if options.unlabelled_stamps and not recipe.unlabelled:
        raise UsageError.of(
            "`--unlabelled-stamps` without `--unlabelled` makes no image", "add `--unlabelled N`"
        )
    root = options.root or Path("/")
    if options.root is not None and not is_folder(root):
        raise UsageError.of(f"there is no folder {root}", "`--root` is where the packages were extracted")
    say("reading stamps and backgrounds")
    sources = find_sources(
        options.seed,
        tuple(recipe.counts),
        root=root,
        stamps=options.stamps,
        backgrounds=options.backgrounds,
        classes=options.classes,
        others=options.unlabelled_stamps,
    )
    say(f"composing {sum(recipe.counts.values()) + recipe.unlabelled:,} images")
    with filled(folder, MADE) as beside:
        written = make_stamp_scenes(beside, recipe, sources, root)
    if sources.left_out:
        say(
            f"{len(sources.left_out):,} images are left out (stamps that are wholly opaque or transparent, backgrounds"
            " that are transparent in places or of more than 8 bits, unlabelled stamps that can't be read):"
            f" `left_out` in {folder / MANIFEST} lists them"
        )
    write("".join(f"{folder / name}  {count:,} images\n" for name, count in written.items()))


def _free_folder(folder: Path, manifest: str, *, force: bool) -> None:
    """Raise UsageError where a file or a folder with something in it is at that place; force: unless kdcli made it."""
    if is_folder(folder):
        sweep_temporary(folder)
    if not exists(folder) or (is_folder(folder) and not entries(folder)):
        return
    if not is_folder(folder):
        raise UsageError.of(f"{folder} is a file", "name a folder that is new or empty")
    if not is_file(folder / manifest):
        raise UsageError.of(f"{folder} is not empty", "name a folder that is new or empty")
    if not force:
        raise UsageError.of(
            f"{folder} holds scenes already", "choose another folder, or overwrite them with `--force`"
        )
