"""How a dense head's channels become rows, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from kdcli.models.detection.dense_post import RetinaPost
from tests.models.detection.nets import retinanet


def post(class_first: bool) -> RetinaPost:
    """Two anchors, four foreground classes."""
    cfg = dict(retinanet(5)[3].kwargs["cfg"])
    cfg["anchor_generator"] = {
        "type": "hand_craft",
        "kwargs": {"anchor_ratios": [1], "anchor_scales": [4, 8]},
    }
    return RetinaPost(num_classes=5, cfg=cfg, class_first=class_first)


@pytest.mark.parametrize(
    ("class_first", "expected"),
    [(True, [[0, 2, 4, 6], [1, 3, 5, 7]]), (False, [[0, 1, 2, 3], [4, 5, 6, 7]])],
)
def test_four_classes_are_no_deltas(class_first: bool, expected: list[list[int]]) -> None:
    channels = torch.arange(8.0).view(1, 8, 1, 1)
    _, (scores,), (deltas,) = post(class_first).scored({"preds": [(channels, channels)], "strides": [8]})
    torch.testing.assert_close(scores, torch.tensor([expected], dtype=torch.float32).sigmoid())
    # Deltas have the anchors outermost, whatever the logits have.
    assert deltas.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
