"""`kdcli predict`: what a student answers about image files, as a table, as JSON, as pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.commands import located, run_or_spec
from kdcli.disk import is_file, is_folder, seen
from kdcli.errors import Diagnostic, RunError, UsageError
from kdcli.failures import doing

if TYPE_CHECKING:
    from kdcli.commands.options import PredictOptions
    from kdcli.exports.predict import Prediction, Predictor

CLASSES = 3
"""So many classes are shown of each image, unless `--top` says another number."""


def predict(options: PredictOptions) -> None:
    """Print what the student answers about each image; exit 1 where one can't be read."""
    from kdcli.report.console import write
    from kdcli.report.predictions import drawn, predictions_text

    if not options.images:
        raise UsageError.of(
            "there is no image", "name image files, folders of them, or patterns: 'photos/*.jpg'"
        )
    files = image_files(options.images)
    predictor = _predictor(options)
    if predictor.kind == "features":
        sys.stderr.write(
            "warning: no head of this student was trained, so it names no class: each image gets the vector that a "
            "head would read (`pooled`), whole with `--format json`\n"
        )
    top = options.top if options.top is not None else CLASSES if predictor.kind == "classes" else None
    kept: list[Prediction] = []
    with doing("predicting"):
        for prediction in predictor.predictions(files, top=top, min_score=options.min_score):
            if options.pictures is not None and prediction.pixels is not None:
                drawn(prediction, options.pictures, bgr=predictor.preprocess.reader.color_mode == "BGR")
            kept.append(_without_pixels(prediction))
    write(predictions_text(kept, predictor.kind, predictor.source, options.format))
    findings = [
        Diagnostic(code="KD882", message=f"`{one.image}` can't be answered: {one.error}")
        for one in kept
        if one.error is not None
    ]
    if findings:
        raise RunError(findings)


def _predictor(options: PredictOptions) -> Predictor:
    """What `RUN|FILE` names."""
    from kdcli.exports.predict import predictor_of_file, predictor_of_run

    named = Path(options.spec)
    if is_folder(named) or named.suffix in (".yaml", ".yml"):
        opened = run_or_spec(options)
        with located(opened.parsed), doing("opening the student"):
            return predictor_of_run(opened.parsed, opened.options, options.weights, options.weight_key)
    if options.weights is not None:
        raise UsageError.of(
            "`--weights` is for a run, and a file has its own", "leave it out, or name the run folder"
        )
    if not seen(named):
        raise RunError.of(
            "KD881", f"there is no run folder or file `{named}`", "kdcli predict runs/digits_kd a.png"
        )
    with doing("opening the student"):
        return predictor_of_file(named, options.plugins)


def image_files(words: Sequence[str]) -> list[Path]:
    """The files that the words name, in order: a folder stands for all images below it, a pattern for what it meets.

    Raises RunError KD883 where a folder or a pattern has none. A file that isn't there is reported with its image.
    """
    from kdcli.data.classification.image_folder import images_below

    files: list[Path] = []
    findings: list[Diagnostic] = []
    for word in words:
        if has_magic(word) and not seen(word):
            met = [Path(one) for one in sorted(glob(word, recursive=True)) if is_file(one)]
            what = f"the pattern `{word}` meets no file"
        elif is_folder(word):
            try:
                met = [Path(one) for one in images_below(Path(word))[0]]
            except OSError as error:
                raise RunError.of("KD883", f"`{word}` can't be listed: {error.strerror}") from error
            what = f"there is no image in the folder `{word}`"
        else:
            met, what = [Path(word)], ""
        files += met
        if not met:
            findings.append(
                Diagnostic(code="KD883", message=what, help="images are .jpg, .png, .webp, .tif ...")
            )
    if findings:
        raise RunError(findings)
    return files


def _without_pixels(prediction: Prediction) -> Prediction:
    from dataclasses import replace

    return replace(prediction, pixels=None)
