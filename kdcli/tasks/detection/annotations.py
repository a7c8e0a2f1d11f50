"""Findings about a detector's annotations: a class for every category, and files that can be measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from kdcli.data.classes import Matched, listed, match
from kdcli.data.detection.coco_json import CocoFile, read_coco
from kdcli.data.detection.coco_rows import Key
from kdcli.data.facts import DataFacts
from kdcli.disk import exists, is_file, same
from kdcli.errors import Diagnostic, KdError, RunError, SpecPath, did_you_mean
from kdcli.models.detection import COCO_CLASSES, is_detector
from kdcli.spec.in_memory import FROM_PYTHON, in_memory
from kdcli.spec.places import GT_FILE, Places
from kdcli.spec.schema import DataPart, ModuleSpec, Network, Spec
from kdcli.tasks.detection.metrics import read_truth

HEADS = frozenset(
    {
        "BboxFC",
        "BboxRes5",
        "RetinaSubNet",
        "RetinaHeadWithBN",
        "RetinaHeadWithIOU",
        "RetinaHeadWithBNIOU",
        "retina_post",
        "retina_post_iou",
    }
)
"""Modules whose num_classes counts the categories and the background."""

TRAIN_META_FILE: SpecPath = ("dataset", "train", "dataset", "kwargs", "meta_file")
META_FILE: SpecPath = ("dataset", "test", "dataset", "kwargs", "meta_file")
SAME_FILE = "`gt_file` is the file that the test data is read from"
AS_COCO = (
    "it may stay so; COCO's files have ids as whole numbers, and `bbox`, `area` and `iscrowd` for each box"
)

IN_PIXELS = "`bbox` is [x, y, width, height] in pixels of the image; pycocotools cuts no box, so its figures may differ"


def category_findings(spec: Spec, facts: DataFacts) -> list[Diagnostic]:
    """KD563 for every head that has another number of classes than the annotations; KD525, KD597 for their file.

    KD563 is an error where the student has fewer; a warning where a network has more, or a teacher fewer.
    """
    ids: tuple[int, ...] = tuple((facts.annotations or {}).get("categories", ()))
    if facts.annotations is None or not ids:
        return []
    networks: list[tuple[SpecPath, Network]] = [(("net",), spec.net)]
    networks += [(("teachers", name), modules) for name, modules in spec.teachers.items()]
    found = (
        []
        if _given(spec.dataset.train)
        else _told(read_coco(Path(facts.annotations["file"])), TRAIN_META_FILE)
    )
    for place, modules in networks:
        for index, module in enumerate(modules):
            made = _classes_of(module, (*place, index))
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


def _classes_of(module: ModuleSpec, path: SpecPath) -> int | None:
    """How many classes a module that names boxes has, with the background; None for any other."""
    if module.type == FROM_PYTHON:
        from kdcli.models.detection.whole import classes_of

        try:
            return classes_of(in_memory().module(path))
        except KdError:
            return None  # told where it is built
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
    """The names of the training categories by ascending id, from the training file alone.

    None where there is no such file: what is measured elsewhere than it was trained needs no training data.
    Raises RunError KD560 to KD562 for a file that can't be read, since it would tell what the classes are.
    """
    if spec.dataset.train.dataset.type == FROM_PYTHON:
        given = in_memory().data.get(True)
        return None if given is None else dict(read_coco(given.file).names)
    named = _extra(spec.dataset.train).get("meta_file")
    if not isinstance(named, str):
        return None
    file = places.find(named, TRAIN_META_FILE)
    if not exists(file):
        return None
    try:
        return dict(read_coco(file).names)
    except KdError as error:
        raise RunError(replace(finding, path=TRAIN_META_FILE) for finding in error.diagnostics) from error


def truth_findings(
    spec: Spec, training: Mapping[int, str] | None, test: DataFacts | None, places: Places
) -> list[Diagnostic]:
    """Findings about the test annotations and `gt_file`, by which the test data is measured.

    training: the names of the training categories by id; test: of the test data; None where unknown. Errors:
    KD569 where a file has a category that was not trained on, KD560 to KD562 where the `gt_file` is none,
    KD566 where it lacks a test image, KD568 where no box counts. Warnings: KD525 for what a file leaves to be
    derived, KD570 where it lacks categories.
    """
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    named = None if evaluator is None else evaluator.kwargs.get("gt_file")
    given = places.find(named, GT_FILE) if isinstance(named, str) else None
    found = []
    if given is not None and not is_file(given):
        help = f"{SAME_FILE}; {places.missing(str(named), GT_FILE)}"
        found.append(_at(GT_FILE, "KD560", f"there is no file `{named}`", help))
    if test is None or test.annotations is None:
        return found
    file = Path(test.annotations["file"])
    where = META_FILE
    try:
        tested = measured = read_coco(file)
        found += [] if _given(spec.dataset.test) else _told(tested, META_FILE)
        learnt = (str(file), tested.names)
        if training is not None:
            learnt = (str(_extra(spec.dataset.train).get("meta_file", "the training data")), training)
            found += _categories(learnt, tested, META_FILE)
        if given is not None and is_file(given):
            where = GT_FILE
            if not same(given, file):
                measured = read_coco(given)
                found += [*_told(measured, GT_FILE), *_categories(learnt, measured, GT_FILE)]
        if given is None or is_file(given):
            found += _measured_by(tested, measured, where)
    except KdError as error:
        found += [replace(finding, path=where) for finding in error.diagnostics]
    return found


def _given(part: DataPart) -> bool:
    """Whether boxes come from Python, whose data tells of them itself."""
    return part.dataset.type == FROM_PYTHON


def _told(file: CocoFile, path: SpecPath) -> list[Diagnostic]:
    """KD525 where a file is not as COCO's own are, KD597 where boxes are not inside their images."""
    found = [("KD525", file.notice, AS_COCO)] if file.notice else []
    if file.misfits:
        found.append(("KD597", f"`{file.path}`: {file.misfits}", IN_PIXELS))
    return [
        Diagnostic(code=code, severity="warning", message=message, help=help, path=path)
        for code, message, help in found
    ]


def _measured_by(tested: CocoFile, measured: CocoFile, path: SpecPath) -> list[Diagnostic]:
    """Whether a file has the images of the test data, and a box in them."""
    places = measured.image_keys
    lacking = [key for key in tested.image_keys if key not in places]
    if lacking:
        message = f"`{measured.path}` lacks {_images(lacking)} of `{tested.path}`"
        return [_at(path, "KD566", message, SAME_FILE)]
    for key, place in tested.image_keys.items():
        own, other = (_size_and_name(file, at) for file, at in ((tested, place), (measured, places[key])))
        if own != other:
            message = f"image {key} is {own} in `{tested.path}`, and {other} in `{measured.path}`"
            return [_at(path, "KD566", message, SAME_FILE)]
    ids = measured.ids.tolist()
    if not read_truth(measured.path).counting({ids[places[key]] for key in tested.image_keys}):
        message = f"`{measured.path}`: the test annotations have no box to measure by"
        help = "at least one annotation is a box inside its image, and no crowd"
        return [_at(path, "KD568", message, help)]
    return []


def _size_and_name(file: CocoFile, place: int) -> str:
    """An image in words; of its name the last part, since the folders may be others."""
    height, width = file.sizes[place].tolist()
    return f"`{PurePath(file.file_names[place]).name}` of {width}x{height}"


def _categories(learnt: tuple[str, Mapping[int, str]], own: CocoFile, path: SpecPath) -> list[Diagnostic]:
    """KD569 where a file has a category that was not trained on, KD570 where it lacks one.

    learnt: the file that was trained on, and its names by id.
    """
    file, names = learnt
    fitting = match(names, own.names)
    if not fitting.by_name:
        return [] if fitting.fits else [_by_id(file, names, own, fitting, path)]
    if fitting.strange:
        strange = [own.names[category] for category in fitting.strange]
        help = did_you_mean(strange[0], list(names.values()))
        message = f"`{own.path}` has {_named(strange)}, and `{file}` has not"
        return [_at(path, "KD569", message, help or "test categories are those of training, by their names")]
    if fitting.lacking:
        message = f"`{own.path}` lacks {_named([names[c] for c in fitting.lacking])} of `{file}`"
        help = "the figures are of the other categories"
        return [Diagnostic(code="KD570", severity="warning", message=message, help=help, path=path)]
    return []


def _by_id(
    file: str, names: Mapping[int, str], own: CocoFile, fitting: Matched, path: SpecPath
) -> Diagnostic:
    """KD569 for the first category that differs, of files of which one has a name twice."""
    category = min([*fitting.strange, *fitting.lacking])
    trained, tested = names.get(category), own.names.get(category)
    if trained is None:
        what = f"`{file}` has no category {category}, and `{own.path}` has it as `{tested}`"
    elif tested is None:
        what = f"`{file}` has category {category} as `{trained}`, and `{own.path}` has none"
    else:
        what = f"category {category} is `{trained}` in `{file}` and `{tested}` in `{own.path}`"
    help = "a name stands for two categories, so that ids tell them apart: write the same ids into both files"
    return _at(path, "KD569", what, help)


def _named(names: list[str]) -> str:
    return (
        f"the category {listed(names)}" if len(names) == 1 else f"{len(names)} categories ({listed(names)})"
    )


def _extra(part: DataPart) -> Mapping[str, Any]:
    return part.dataset.kwargs.model_extra or {}


def _images(ids: list[Key]) -> str:
    return f"image {ids[0]}" if len(ids) == 1 else f"{len(ids)} images (the first is {ids[0]})"


def _at(path: SpecPath, code: str, message: str, help: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path)
