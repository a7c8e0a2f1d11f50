"""What a detector's spec says of its annotations: classes for every category, and a file to be measured by."""

from __future__ import annotations

from pathlib import Path

from kdcli.data.facts import DataFacts
from kdcli.data.places import find
from kdcli.errors import Diagnostic, SpecPath
from kdcli.models.detection.families import COCO_CLASSES, is_detector
from kdcli.spec.schema import ModuleSpec, Network, Spec

HEADS = frozenset({"BboxFC", "RetinaSubNet", "retina_post"})
"""Modules whose num_classes counts the categories and the background."""


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


def truth_findings(spec: Spec, base_dir: Path | None) -> list[Diagnostic]:
    """KD560 where the evaluator's `gt_file` is not there."""
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    named = None if evaluator is None else evaluator.kwargs.get("gt_file")
    if not isinstance(named, str) or find(named, base_dir).is_file():
        return []
    path: SpecPath = ("dataset", "test", "dataset", "kwargs", "evaluator", "kwargs", "gt_file")
    message, help = f"there is no file `{named}`", "`gt_file` is the file that the test data is read from"
    return [Diagnostic(code="KD560", message=message, help=help, path=path)]
