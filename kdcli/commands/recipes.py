"""Which sample spec `kdcli distill` begins with: a table of what data and teachers each is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kdcli.errors import RunError

Labels = Literal["classes", "boxes", "none"]
TeacherKind = Literal["classifier", "features", "detector", "none"]
"""`features`: a network without a classifier; `none`: a network is trained alone."""

LABELS: dict[Labels, str] = {"classes": "class folders", "boxes": "boxes", "none": "no labels"}
TEACHERS: dict[TeacherKind, str] = {
    "classifier": "a classifier",
    "features": "features, no classifier",
    "detector": "a detector",
    "none": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A sample and what it is for.

    images: how many training images, from and below; side: the median of their shorter sides in pixels, from and below;
    None is no bound. why: what decided, for a user.
    """

    sample: str
    labels: Labels
    teacher: TeacherKind
    images: tuple[int | None, int | None] = (None, None)
    side: tuple[int | None, int | None] = (None, None)
    why: str

    def fits(self, labels: Labels, teacher: TeacherKind, images: int, side: int) -> bool:
        """Whether it is for this data and this kind of teacher."""
        return (
            (self.labels, self.teacher) == (labels, teacher)
            and _within(images, self.images)
            and _within(side, self.side)
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table, as a user reads it."""
        return (
            self.sample,
            LABELS[self.labels],
            TEACHERS[self.teacher],
            _bounds(self.images, "images"),
            _bounds(self.side, "px"),
        )


RECIPES = (
    Recipe(
        sample="few_images",
        labels="classes",
        teacher="classifier",
        images=(None, 1000),
        side=(None, 96),
        why="an epoch of few images is a few steps, so that there are many epochs",
    ),
    Recipe(
        sample="own_images",
        labels="classes",
        teacher="classifier",
        images=(1000, None),
        side=(None, 96),
        why="small images are moved by a few pixels, and the teacher's logits are mimicked",
    ),
    Recipe(
        sample="own_photos",
        labels="classes",
        teacher="classifier",
        side=(96, None),
        why="photographs are cut at random and mirrored, and the teacher's logits are mimicked",
    ),
    Recipe(
        sample="foundation",
        labels="classes",
        teacher="features",
        why="a teacher without a classifier teaches features; the labels tell what these are worth",
    ),
    Recipe(
        sample="unlabelled_images",
        labels="none",
        teacher="classifier",
        why="without labels the teacher's logits are all that there is to learn",
    ),
    Recipe(
        sample="foundation",
        labels="none",
        teacher="features",
        why="without labels, and of a teacher without a classifier, features are all that there is to learn",
    ),
    Recipe(
        sample="own_boxes",
        labels="boxes",
        teacher="detector",
        why="a detector's maps of features are mimicked beside its own losses",
    ),
    Recipe(
        sample="finetune",
        labels="classes",
        teacher="none",
        why="without a teacher published weights are trained on",
    ),
)
"""The first row that fits is taken."""


def recipe_for(labels: Labels, teacher: TeacherKind, images: int, side: int) -> Recipe:
    """The first recipe that fits; raises RunError KD866."""
    for recipe in RECIPES:
        if recipe.fits(labels, teacher, images, side):
            return recipe
    able = sorted({TEACHERS[recipe.teacher] for recipe in RECIPES if recipe.labels == labels})
    raise RunError.of(
        "KD866",
        f"there is no recipe for {LABELS[labels]} and, as a teacher, {TEACHERS[teacher]}",
        f"for {LABELS[labels]} the teacher may be {' or '.join(able)}; other specs are written by hand: `kdcli init`"
        " lists samples",
    )


def recipe_lines(chosen: Recipe) -> Iterator[str]:
    """The table as text, the chosen row marked, and why it was taken."""
    rows = [("recipe", "labels", "teacher", "how many", "shorter side"), *(one.cells for one in RECIPES)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        mark = "> " if number and RECIPES[number - 1] is chosen else "  "
        yield mark + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield f"taken: {chosen.sample}: {chosen.why}"


def _within(value: int, bounds: tuple[int | None, int | None]) -> bool:
    least, below = bounds
    return (least is None or value >= least) and (below is None or value < below)


def _bounds(bounds: tuple[int | None, int | None], unit: str) -> str:
    least, below = bounds
    if least is None and below is None:
        return "any"
    if least is None:
        return f"below {below:,} {unit}"
    return f"from {least:,} {unit}" if below is None else f"{least:,} to {below - 1:,} {unit}"
