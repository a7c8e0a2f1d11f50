"""ATSS and SimOTA on a few boxes, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import tensor

from kdcli.models.detection.assigners import Atss, SimOta
from kdcli.models.detection.targets import Answers

FINE = tensor(
    [[0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 20.0, 10.0], [20.0, 0.0, 30.0, 10.0], [30.0, 0.0, 40.0, 10.0]]
)
COARSE = tensor([[0.0, 0.0, 20.0, 20.0], [20.0, 0.0, 40.0, 20.0]])
OBJECTS = tensor([[0.0, 0.0, 10.0, 10.0, 1.0], [20.0, 0.0, 40.0, 20.0, 2.0], [1.0, 0.0, 11.0, 10.0, 3.0]])
NO_ANSWERS = Answers(torch.zeros(1, 6, 3), torch.zeros(1, 6, 4))


def batch(**more: Any) -> dict[str, Any]:
    return {"boxes": [OBJECTS], "image_info": [(20.0, 40.0)], "strides": [8, 16], **more}


def test_atss_of_three_objects() -> None:
    # Two candidates a level. First object: IoUs 1, 0, 1/4, 0, mean + deviation 0.786: its own anchor. Second: 1/4,
    # 1/4, 1, 0: 0.808: the coarse one. Third: 9/11, 1/19, 1/4, 0: 0.655: the first anchor again, which the
    # first object overlaps more.
    found = Atss(top_n=2, offset=0).targets([FINE, COARSE], batch(), NO_ANSWERS)
    assert found.classes.tolist() == [[1, 0, 0, 0, 0, 2]]
    assert found.positive.tolist() == [[True, False, False, False, False, True]]
    assert found.deltas.abs().max() == 0 and found.quality is None
    alone = Atss(top_n=2, offset=0).targets([FINE, COARSE], batch(boxes=[OBJECTS[2:]]), NO_ANSWERS)
    assert alone.classes.tolist() == [[3, 0, 0, 0, 0, 0]]
    # Its centre is 1 right of the anchor's, which is 10 wide.
    torch.testing.assert_close(alone.deltas[0, 0], tensor([0.1, 0.0, 0.0, 0.0]))
    # IoUs 1/2, 1/2, 1/2, 0: three are above the mean, 3/8, and none above mean plus deviation, 5/8.
    between = batch(boxes=[tensor([[0.0, 0.0, 20.0, 10.0, 1.0]])])
    assert not Atss(top_n=2, offset=0).targets([FINE, COARSE], between, NO_ANSWERS).positive.any()


@pytest.mark.parametrize(("left", "expected"), [(4.0, 1), (4.995, 0), (6.0, 0)])
def test_the_centre_of_a_positive_lies_inside_its_object(left: float, expected: int) -> None:
    # Three candidates with IoUs x, 0, 0: x is above mean plus deviation, 0.91 x. The anchor's centre is at 5.
    objects = tensor([[left, 0.0, 12.0, 10.0, 1.0]])
    far = tensor([[60.0, 0.0, 70.0, 10.0], [80.0, 0.0, 90.0, 10.0]])
    found = Atss(top_n=9, offset=0).targets([torch.cat([FINE[:1], far])], batch(boxes=[objects]), NO_ANSWERS)
    assert found.classes.tolist() == [[expected, 0, 0]]


def test_ignored_regions_and_images_without_objects() -> None:
    ignores = [tensor([[20.0, 0.0, 30.0, 10.0], [4.0, 4.0, 6.0, 6.0]])]
    found = Atss(top_n=2, offset=0).targets([FINE, COARSE], batch(ignores=ignores), NO_ANSWERS)
    # The centres of the third and of the first anchor.
    assert found.classes.tolist() == [[-1, 0, -1, 0, 0, 2]]
    assert found.positive.tolist() == [[False] * 5 + [True]]
    empty = batch(ignores=ignores, boxes=[torch.zeros(0, 5)])
    found = Atss(top_n=2, use_iou=True, offset=0).targets([FINE, COARSE], empty, NO_ANSWERS)
    assert found.classes.tolist() == [[0] * 6] and not found.positive.any()
    assert found.quality is not None and found.quality.shape == (0,)


def test_qualities_of_the_positives() -> None:
    # The first object's predicted box is half as wide, the second's as it should be.
    deltas = torch.zeros(1, 6, 4)
    deltas[0, 0, 2] = tensor(0.5).log()
    answers = Answers(torch.zeros(1, 6, 3), deltas)
    found = Atss(top_n=2, use_iou=True, offset=0).targets([FINE, COARSE], batch(), answers)
    torch.testing.assert_close(found.quality, tensor([0.5, 1.0]))
    # The anchor's centre is 4 and 6 from the sides of the third object, halfway between the others: √(4/6).
    near = Atss(top_n=2, use_centerness=True, offset=0)
    found = near.targets([FINE, COARSE], batch(boxes=[OBJECTS[2:]]), answers)
    torch.testing.assert_close(found.quality, tensor([4 / 6]).sqrt())


def test_simota_takes_as_many_as_the_overlaps_sum_up_to() -> None:
    def sim_ota(**kwargs: Any) -> SimOta:
        return SimOta(4, {"type": "retina_ota", "kwargs": {"num_classes": 4, **kwargs}}, offset=0)

    # Places are the centres plus half a stride of 8. Overlaps 1, 0.83, 0.82, 0 sum up to 2. The second's
    # place (14, 10) lies on the object's edge, so that it costs 100000 more than the first and the third.
    anchors = tensor(
        [[0.0, 0.0, 20.0, 10.0], [0.0, 0.0, 20.0, 12.0], [2.0, 0.0, 22.0, 10.0], [90.0, 0.0, 110.0, 10.0]]
    )
    objects = tensor([[0.0, 0.0, 20.0, 10.0, 3.0]])
    answers = Answers(torch.zeros(1, 4, 3), torch.zeros(1, 4, 4))
    given = batch(boxes=[objects], image_info=[(20.0, 120.0)])
    found = sim_ota().targets([anchors], given, answers)
    assert found.classes.tolist() == [[3, 0, 3, 0]]
    torch.testing.assert_close(found.deltas[0, 2], tensor([-0.1, 0.0, 0.0, 0.0]))
    # One candidate: the overlap of the best alone is 1.
    found = sim_ota(candidate_k=1).targets([anchors], given, answers)
    assert found.classes.tolist() == [[3, 0, 0, 0]]
    # Two objects in one place: both take both anchors, which go to the one whose class scores better.
    twice = torch.cat([objects, tensor([[0.0, 0.0, 20.0, 10.0, 1.0]])])
    logits = tensor([2.0, 0.0, -2.0]).expand(1, 4, 3)
    found = sim_ota().targets([anchors], {**given, "boxes": [twice]}, Answers(logits, answers.deltas))
    assert found.classes.tolist() == [[1, 0, 1, 0]]
    # Nothing near, nothing taken.
    found = sim_ota().targets([anchors + 500], given, answers)
    assert not found.positive.any() and not found.classes.any()
    with pytest.raises(ValueError, match="Sinkhorn"):
        sim_ota(use_SimOTA=False)
