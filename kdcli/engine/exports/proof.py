"""Whether a file answers as the student does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.engine.exports.format import Answer
from kdcli.engine.exports.portable import Detector, Portable, Tensors
from kdcli.errors import RunError

NEAR_PIXELS = 1.0
NEAR_SHARE = 0.05
"""Boxes of one class are one where no edge is further away than this, in pixels and in sides together."""

ALONE = 0.02
MANY = 20
"""So large a share of the boxes, or a single one of many, may have no counterpart: rounding decides among equal
scores, and at thresholds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The largest difference of any value; of boxes: how many there were, how many had no counterpart."""

    difference: float
    boxes: int | None = None
    alone: int = 0


def prove(student: Portable, answer: Answer, inputs: Tensors, tolerance: float) -> Proof:
    """Compare over the whole batch and over one image alone.

    Raises RunError KD761 beyond the tolerance of |difference| / max(1, |value|), or where there is nothing
    to compare.
    """
    largest, boxes, alone = 0.0, 0, 0
    for batch in (inputs, tuple(value[:1] for value in inputs)):
        with torch.inference_mode():
            expected = student.eager(*(value.clone() for value in batch))
            found = answer(*(value.clone() for value in batch))
        if isinstance(student, Detector):
            pairs, compared, missed = _matched(expected, found)
            boxes, alone = max(boxes, compared), max(alone, missed)
            _refuse_strangers(compared, missed)
        else:
            pairs = [("logits", expected[0], found[0])]
        for name, one, other in pairs:
            largest = max(largest, _gap(name, one, other, tolerance))
    if not isinstance(student, Detector):
        return Proof(difference=largest)
    if boxes == 0:
        raise RunError.of(
            "KD761",
            f"the student finds no box in {len(inputs[0])} images, so nothing can be proved; no file is left",
            "export a trained detector, on test images that show something",
        )
    return Proof(difference=largest, boxes=boxes, alone=alone)


def _gap(name: str, expected: Tensor, found: Tensor, tolerance: float) -> float:
    if found.shape != expected.shape:
        shapes = f"{list(found.shape)} instead of {list(expected.shape)}"
        raise RunError.of("KD761", f"the exported file gives {name} {shapes}; no file is left")
    if expected.numel() == 0:
        return 0.0
    gap = (found - expected).abs()
    worst = float((gap / expected.abs().clamp_min(1.0)).max())
    if not worst <= tolerance:
        raise RunError.of(
            "KD761",
            f"the exported file answers otherwise: {name} differ by up to {float(gap.max()):.3g}, "
            f"more than the tolerance {tolerance:g}; no file is left",
            "try another format, or allow more with `--tolerance`",
        )
    return float(gap.max())


def _matched(expected: Tensors, found: Tensors) -> tuple[list[tuple[str, Tensor, Tensor]], int, int]:
    """Boxes and scores of the pairs, how many boxes there are, and how many have no counterpart."""
    used = torch.zeros(len(found[0]), dtype=torch.bool)
    ours: list[int] = []
    theirs: list[int] = []
    kin = (expected[2][:, None] == found[2]) & (expected[3][:, None] == found[3])
    sides = (expected[0][:, 2:] - expected[0][:, :2]).amax(1)
    for row in expected[1].argsort(descending=True, stable=True).tolist():
        apart = (found[0] - expected[0][row]).abs().amax(1)
        near = kin[row] & ~used & (apart <= NEAR_PIXELS + NEAR_SHARE * sides[row])
        worse = apart + (found[1] - expected[1][row]).abs()
        if bool(near.any()):
            best = int(torch.where(near, worse, float("inf")).argmin())
            used[best] = True
            ours.append(row)
            theirs.append(best)
    pairs = [
        ("boxes", expected[0][ours], found[0][theirs]),
        ("scores", expected[1][ours], found[1][theirs]),
    ]
    total = max(len(expected[0]), len(found[0]))
    return pairs, total, total - len(ours)


def _refuse_strangers(boxes: int, alone: int) -> None:
    if alone > max(ALONE * boxes, 1 if boxes >= MANY else 0):
        raise RunError.of(
            "KD761",
            f"the exported file finds other boxes: of {boxes} boxes {alone} have no counterpart; no file is left",
            "try another format",
        )
