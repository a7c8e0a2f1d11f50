"""Non-maximum suppression of many groups in ONNX's own operation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from kdcli.models.detection.deploy.suppression import ABSENT

NO_LIMIT = 2**31 - 1
LEAST_SCORE = ABSENT / 2
BOOL = 9
"""ONNX's number for the type."""


def translations() -> dict[Any, Any]:
    """How `kdcli::suppress` is written in ONNX, for torch's exporter."""
    return {torch.ops.kdcli.suppress.default: _suppress}


def _suppress(boxes: Any, scores: Any, labels: Any = None, classes: int = 1, threshold: float = 0.5) -> Any:
    """boxes [G, m, 4], scores [G, m], labels [G, m] or nothing: bool [G, m]."""
    op: Any = import_module("onnxscript").opset18
    by_class = op.Unsqueeze(scores, [1])
    if labels is not None:
        each = op.Reshape(op.Constant(value_ints=list(range(classes))), [1, -1, 1])
        own = op.Equal(op.Unsqueeze(labels, [1]), each)
        by_class = op.Where(own, by_class, op.Constant(value_float=ABSENT))
    chosen = op.NonMaxSuppression(
        boxes,
        by_class,
        op.Constant(value_ints=[NO_LIMIT]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[LEAST_SCORE]),
    )  # rows of group, class, place
    where = op.Gather(chosen, [0, 2], axis=1)
    nothing = op.Expand(op.Constant(value_int=0), op.Shape(scores))
    ones = op.Expand(op.Constant(value_int=1), op.Slice(op.Shape(where), [0], [1]))
    return op.Cast(op.ScatterND(nothing, where, ones), to=BOOL)
