"""What a detector's spec says of its annotations: classes for every category, and a file to be measured by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcli.data.places import find
from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.schema import Spec

HEADS = frozenset({"BboxFC", "RetinaSubNet", "retina_post"})
"""Modules whose num_classes counts the categories and the background."""


def category_findings(spec: Spec, categories: int | None) -> list[Diagnostic]:
    """KD563 for every head of the student that has another number of classes; a warning where it has more."""
    if categories is None:
        return []
    found = []
    for index, module in enumerate(spec.net):
        kwargs: Mapping[str, Any] = module.kwargs
        made = kwargs.get("num_classes")
        if module.type not in HEADS and not module.type.startswith("torchvision."):
            continue
        if not isinstance(made, int) or made == categories + 1:
            continue
        path: SpecPath = ("net", index, "kwargs", "num_classes")
        found.append(
            Diagnostic(
                code="KD563",
                severity="error" if made <= categories else "warning",
                message=f"`{module.name}` has {made} classes with the background, "
                f"and the annotations have {categories} categories",
                help=f"write `num_classes: {categories + 1}`",
                path=path,
            )
        )
    return found


def truth_findings(spec: Spec, base_dir: Path | None) -> list[Diagnostic]:
    """KD560 where the evaluator's `gt_file` is not there."""
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    named = None if evaluator is None else evaluator.kwargs.get("gt_file")
    if not isinstance(named, str) or find(named, base_dir).is_file():
        return []
    path: SpecPath = ("dataset", "test", "dataset", "kwargs", "evaluator", "kwargs", "gt_file")
    message, help = f"there is no file `{named}`", "`gt_file` is the file that the test data is read from"
    return [Diagnostic(code="KD560", message=message, help=help, path=path)]
