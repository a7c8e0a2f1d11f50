"""The proof of an export: whether the file gives the outputs that the student gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.errors import RunError
from kdcli.exports.format import Answer
from kdcli.tasks.task import Portable, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The largest difference of any value; for boxes how many there were, and how many had no counterpart."""

    difference: float
    boxes: int | None = None
    alone: int = 0


def prove(student: Portable, answer: Answer, inputs: Tensors, tolerance: float) -> Proof:
    """Compare over the whole batch and over one image alone.

    Raises RunError KD761 beyond the tolerance of |difference| / max(1, |value|), or where there is nothing
    to compare.
    """
    largest, alone = 0.0, 0
    boxes: int | None = None
    for batch in (inputs, tuple(value[:1] for value in inputs)):
        with torch.inference_mode():
            expected = student.eager(*(value.clone() for value in batch))
            found = answer(*(value.clone() for value in batch))
        compared = student.compared(expected, found)
        if compared.boxes is not None:
            boxes, alone = max(boxes or 0, compared.boxes), max(alone, compared.alone)
        for name, one, other in compared.pairs:
            largest = max(largest, _gap(name, one, other, tolerance))
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
