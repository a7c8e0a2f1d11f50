"""What a spec alone tells of its data: the size of a batch of detection data, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kdcli.data.facts import padded_size
from tests.data.conftest import make_part


@pytest.mark.parametrize(
    ("transformer", "size"),
    [
        # United-Perception's own: the shorter side 800 at most, the longer one 1333, a multiple of 32.
        ([("flip", {}), ("keep_ar_resize", {"scales": [640, 800], "max_size": 1333})], (800, 1344)),
        ([("keep_ar_resize", {"scales": [600]})], None),
        ([("keep_ar_resize", {"scales": [0]})], None),
        (
            [("stitch_expand", {}), ("crop", {}), ("fix_output_resize", {"scales": [1000, 1024]})],
            (1024, 1024),
        ),
        ([("keep_ar_resize_max", {"random_size": [25, 40], "scale_step": 32})], (1280, 1280)),
        ([("keep_ar_resize_max", {"max_size": 640, "padding_type": "left_top"})], (640, 640)),
        (
            [("fix_output_resize", {"scales": [100, 200]}), ("stitch_expand", {"expand_ratios": 1.5})],
            (160, 320),
        ),
        ([("fix_output_resize", {"scales": [100, 200]}), ("keep_ar_resize", {"scales": [50]})], (64, 128)),
        ([("flip", {}), ("to_tensor", {})], None),
    ],
)
def test_the_largest_batch_that_transforms_give(
    transformer: list[tuple[str, dict[str, Any]]], size: tuple[int, int] | None
) -> None:
    components = [{"type": name, "kwargs": kwargs} for name, kwargs in transformer]
    part = make_part(
        "coco",
        meta_file="a.json",
        transformer=components,
        dataloader={"alignment": 32},
    )
    assert padded_size(part) == size
