"""What a detector's spec says of its annotations: classes for every category, and a file to be measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli.data.coco_json import read_names
from kdcli.data.facts import DataFacts
from kdcli.errors import Diagnostic, KdError, SpecPath
from kdcli.models.detection.families import COCO_CLASSES, is_detector
from kdcli.spec.places import Places
from kdcli.spec.schema import DataPart, ModuleSpec, Network, Spec
from kdcli.tasks.detection.truth import read_truth

HEADS = frozenset({"BboxFC", "RetinaSubNet", "retina_post"})
"""Modules whose num_classes counts the categories and the background."""

TRAIN_META_FILE: SpecPath = ("dataset", "train", "dataset", "kwargs", "meta_file")
META_FILE: SpecPath = ("dataset", "test", "dataset", "kwargs", "meta_file")
GT_FILE: SpecPath = ("dataset", "test", "dataset", "kwargs", "evaluator", "kwargs", "gt_file")
SAME_FILE = "`gt_file` is the file that the test data is read from"


def category_findings(spec: Spec, facts: DataFacts) -> list[Diagnostic]:
    """KD563 for every head that has another number of classes than the annotations.

    An error where the student has fewer; a warning where a network has more, or a teacher fewer.
    """
    ids: tuple[int, ...] = tuple((facts.annotations or {}).get("categories", ()))
    if not ids:
        return []
    networks: list[tuple[SpecPath, Network]] = [(("net",), spec.net)]
    networks += [(("teachers", name), modules) for name, modules in spec.teachers.items()]
    found = []
    for place, modules in networks:
        for index, module in enumerate(modules):
            made = _classes_of(module)
            if made is None or made == len(ids) + 1:
                continue
            if is_detector(module.type) and made == max(ids) + 1:
                continue  # its labels are category ids
            teacher = place[0] == "teachers"
            of = f" of {place[1]}" if teacher else ""
            found.append(
                Diagnostic(
                    code="KD563",
                    severity="error" if made <= len(ids) and not teacher else "warning",
                    message=f"`{module.name}`{of} has {made} classes with the background, "
                    f"and the annotations have {len(ids)} categories",
                    help="what it finds of the others counts for nothing, and its labels have to be in the "
                    "annotations' order"
                    if teacher
                    else f"write `num_classes: {len(ids) + 1}`",
                    path=(*place, index, "kwargs", "num_classes"),
                )
            )
    return found


def _classes_of(module: ModuleSpec) -> int | None:
    """How many classes a module that names boxes has, with the background; None for any other."""
    if is_detector(module.type):
        made = module.kwargs.get("num_classes", COCO_CLASSES)
    else:
        made = module.kwargs.get("num_classes") if module.type in HEADS else None
    return made if isinstance(made, int) else None


def categories_of(facts: DataFacts) -> dict[int, str] | None:
    """The names of one side's categories by ascending id; None where the data has no annotations."""
    if facts.annotations is None:
        return None
    return dict(zip(facts.annotations["categories"], facts.class_names or (), strict=True))


def training_categories(spec: Spec, places: Places) -> dict[int, str] | None:
    """The same of the training side, from its file alone.

    None where it can't be read: what is measured elsewhere than it was trained needs no training data.
    """
    named = _extra(spec.dataset.train).get("meta_file")
    if not spec.detects or not isinstance(named, str):
        return None
    try:
        return read_names(places.find(named, TRAIN_META_FILE))
    except KdError:
        return None


def truth_findings(
    spec: Spec, training: Mapping[int, str] | None, test: DataFacts | None, places: Places
) -> list[Diagnostic]:
    """What is wrong with the boxes that the test data is measured by.

    training: the names of the training categories by id; test: of the test data; None where unknown. KD569
    where two files have other categories, KD560 to KD562 where the `gt_file` is none, KD566 where it lacks a
    test image, KD568 where no box counts.
    """
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    named = None if evaluator is None else evaluator.kwargs.get("gt_file")
    given = places.find(named, GT_FILE) if isinstance(named, str) else None
    found = []
    if given is not None and not given.is_file():
        help = f"{SAME_FILE}; {places.missing(str(named), GT_FILE)}"
        found.append(_at(GT_FILE, "KD560", f"there is no file `{named}`", help))
    own = None if test is None else categories_of(test)
    if test is None or test.annotations is None or own is None:
        return found
    file = Path(test.annotations["file"])
    if training is not None:
        trained_on = str(_extra(spec.dataset.train).get("meta_file"))
        found += _other_categories((trained_on, training), (str(file), own), META_FILE)
    if given is None or given.is_file():
        where = META_FILE if given is None else GT_FILE
        try:
            found += _measured_by(file, file if given is None or given.samefile(file) else given, where)
        except KdError as error:
            found += [replace(finding, path=where) for finding in error.diagnostics]
    return found


def _measured_by(tested_on: Path, truth_file: Path, where: SpecPath) -> list[Diagnostic]:
    """Whether the truth has the categories and the images of the test data, and a box; raises KdError."""
    found = []
    tested = truth = read_truth(tested_on)
    if truth_file != tested_on:
        truth = read_truth(truth_file)
        found = _other_categories((str(tested_on), tested.names), (str(truth_file), truth.names), where)
        lacking = sorted(set(tested.images) - set(truth.images))
        if lacking:
            message = f"`{truth_file}` lacks {_images(lacking)} of `{tested_on}`"
            return [*found, _at(where, "KD566", message, SAME_FILE)]
    if not truth.counting(set(tested.images)):
        message = f"`{truth_file}`: the test annotations have no box to measure by"
        help = "at least one annotation is a box inside its image, and no crowd"
        found.append(_at(where, "KD568", message, help))
    return found


def _other_categories(
    first: tuple[str, Mapping[int, str]], second: tuple[str, Mapping[int, str]], path: SpecPath
) -> list[Diagnostic]:
    """KD569 for the first category that differs, by ascending id. first, second: file, and names by id."""
    (file, ours), (other_file, theirs) = first, second
    for category in sorted({*ours, *theirs}):
        if ours.get(category) == theirs.get(category):
            continue
        if category not in ours:
            what = f"`{file}` has no category {category}, and `{other_file}` has it as `{theirs[category]}`"
        elif category not in theirs:
            what = f"`{file}` has category {category} as `{ours[category]}`, and `{other_file}` has none"
        else:
            what = (
                f"category {category} is `{ours[category]}` in `{file}` and `{theirs[category]}` in "
                f"`{other_file}`"
            )
        return [_at(path, "KD569", what, "write the same ids and names into both files, in any order")]
    return []


def _extra(part: DataPart) -> Mapping[str, Any]:
    return part.dataset.kwargs.model_extra or {}


def _images(ids: Sequence[int]) -> str:
    return f"image {ids[0]}" if len(ids) == 1 else f"{len(ids)} images (the first is {ids[0]})"


def _at(path: SpecPath, code: str, message: str, help: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path)
