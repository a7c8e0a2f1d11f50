"""torchvision's detectors with few waits compute what torchvision's own classes compute, bit for bit on the CPU."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList

from kdcli.distill.taps import Taps
from kdcli.models.detection.few_waits.faster_rcnn import best_proposals
from kdcli.models.detection.few_waits.running import running
from kdcli.models.detection.few_waits.steps import detections_of, losses_of, steps_of
from kdcli.models.detection.whole import Batching, build_detector
from tests.models.detection.nets import batch
from tests.models.detection.test_whole import build
from tests.parallel.pretend_cuda import pretend_cuda

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
FEW = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32}
"""What makes a step of the small one short."""

SIZES = [(96, 160), (128, 72), (80, 80)]
"""Height and width of the images of a case."""


def made(name: str = SMALL, **kwargs: Any) -> Any:
    """torchvision's own detector with random weights, in training."""
    torch.manual_seed(0)
    return build_detector(name, {"num_classes": 5, **kwargs}, None).detector.train()


def case(seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Three images of different sizes and their boxes; one image has none."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, height, width, generator=generator) for height, width in SIZES]
    targets = []
    for number, (height, width) in zip((4, 0, 2 + seed), SIZES, strict=True):
        sides = torch.tensor([width, height])
        low = torch.rand(number, 2, generator=generator) * sides * 0.6
        high = low + torch.rand(number, 2, generator=generator) * sides * 0.4 + 2
        labels = torch.randint(1, 5, (number,), generator=generator)
        targets.append({"boxes": torch.cat([low, high], dim=1), "labels": labels})
    return images, targets


def step(detector: Any, losses: Any, seed: int) -> dict[str, Tensor]:
    """The losses, every gradient and buffer, and the generator's state after a step."""
    torch.manual_seed(seed)
    found = losses(*case(seed))
    torch.stack(list(found.values())).sum().backward()
    gradients = {f"{name}.grad": p.grad for name, p in detector.named_parameters() if p.grad is not None}
    return {**found, **gradients, **dict(detector.named_buffers()), "generator": torch.get_rng_state()}


SEEDS = [
    pytest.param(SMALL, [1], id="faster-rcnn"),
    pytest.param("fasterrcnn_mobilenet_v3_large_fpn", [0, 1, 2], marks=pytest.mark.slow, id="many-anchors"),
    pytest.param("retinanet_resnet50_fpn", [0, 1, 2], marks=pytest.mark.slow, id="retinanet"),
    pytest.param("fcos_resnet50_fpn", [0, 1, 2], marks=pytest.mark.slow, id="fcos"),
    pytest.param("ssdlite320_mobilenet_v3_large", [0, 1, 2], marks=pytest.mark.slow, id="ssdlite"),
]


@pytest.mark.parametrize(("name", "seeds"), SEEDS)
def test_losses_and_gradients_are_torchvisions(name: str, seeds: list[int]) -> None:
    theirs = made(name, **FEW if name == SMALL else {})
    ours = copy.deepcopy(theirs)
    for seed in seeds:
        expected = step(theirs, theirs, seed)
        found = step(ours, lambda images, targets: losses_of(ours, images, targets), seed)
        assert list(found) == list(expected)
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    # Nothing of ours stays on the modules.
    assert not any("forward" in vars(module) for module in ours.modules())


def test_another_part_is_left_to_torchvision() -> None:
    detector, calls = made(**FEW), 0

    class Own(Matcher):  # type: ignore[misc]
        def __call__(self, overlaps: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().__call__(overlaps)  # type: ignore[no-any-return]

    detector.roi_heads.proposal_matcher = Own(0.5, 0.5)
    assert set(losses_of(detector, *case(0))) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    assert calls == 2  # for each image that has boxes


def test_a_box_without_a_side_is_refused_as_by_torchvision() -> None:
    images, targets = case(0)
    targets[2]["boxes"][0, 2] = targets[2]["boxes"][0, 0]
    with pytest.raises(AssertionError, match="positive height and width"):
        losses_of(made(), images, targets)


def test_modules_are_tapped_and_saved_as_before() -> None:
    net = build(SMALL, **FEW).train()
    paths = [f"model.{path}" for path in ("rpn.head", "roi_heads.box_roi_pool", "roi_heads.box_head")]
    with Taps(net, paths) as taps:
        view = taps.learn(batch())
        assert set(view.features) == set(paths)
        # A view stops within the second stage, and leaves nothing behind.
        taps.require(paths[1:2], ())
        taps.view(batch())
    assert not any("forward" in vars(module) for module in net.modules())
    file = io.BytesIO()
    torch.save(net.get_submodule("model").detector, file)  # type: ignore[operator]
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert set(again.state_dict()) == {name.removeprefix("model.") for name in net.state_dict()}


@torch.no_grad()
def test_proposals_of_all_images_at_once_are_torchvisions() -> None:
    rpn = made(rpn_post_nms_top_n_train=60, rpn_nms_thresh=0.5).rpn
    generator = torch.Generator().manual_seed(2)
    maps = [torch.zeros(3, 256, side, side) for side in (12, 6, 3)]
    padded = ImageList(torch.zeros(3, 3, 160, 160), SIZES)
    anchors = rpn.anchor_generator(padded, maps)
    boxes = torch.stack(anchors) + 8 * torch.randn(3, len(anchors[0]), 4, generator=generator)
    logits = torch.randn(3, len(anchors[0]), generator=generator)
    levels = [15 * side * side for side in (12, 6, 3)]
    expected, _ = rpn.filter_proposals(boxes, logits, SIZES, levels)
    found = best_proposals(rpn, boxes, logits, SIZES, levels)
    assert [len(own) for own in found] == [60, 60, 60]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


FOUND = [
    pytest.param(SMALL, {"box_score_thresh": 0.25}, id="faster-rcnn"),
    pytest.param("retinanet_resnet50_fpn", {"score_thresh": 0.7}, marks=pytest.mark.slow, id="retinanet"),
    pytest.param("fcos_resnet50_fpn", {"score_thresh": 0.6}, marks=pytest.mark.slow, id="fcos"),
    pytest.param(
        "ssdlite320_mobilenet_v3_large", {"score_thresh": 0.2}, marks=pytest.mark.slow, id="ssdlite"
    ),
]


def at_random(module: Any, *inputs: Any) -> Any:
    """What a head would give, of random numbers that are the same at each call."""
    generator = torch.Generator().manual_seed(4)
    answer = type(module).forward(module, *inputs)
    return tree_map(lambda one: 0.5 * torch.randn(one.shape, generator=generator).abs(), answer)


@torch.no_grad()
@pytest.mark.parametrize(("name", "kwargs"), FOUND)
def test_detections_of_all_images_at_once_are_torchvisions(name: str, kwargs: dict[str, Any]) -> None:
    detector = made(name, **kwargs).eval()
    images, _ = case(0)
    steps = steps_of(detector)
    assert steps is not None
    head = detector.roi_heads.box_predictor if hasattr(detector, "roi_heads") else detector.head
    with running(head, partial(at_random, head)):
        expected = detector(images)
        with running(detector, partial(steps.found, detector)):
            found = detector(images)
    assert min(len(one["scores"]) for one in expected) > 20
    assert [len(one["scores"]) for one in found] == [len(one["scores"]) for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@torch.no_grad()
def test_a_teacher_waits_as_often_whatever_the_number_of_images() -> None:
    detector = made().eval()
    detector.transform = Batching()
    images, _ = case(0)
    counts = []
    with pretend_cuda() as watched:
        detector.cuda()
        there = [image.cuda() for image in images]
        detections_of(detector, there)  # copies the first places' anchors
        for number in (2, 4):
            with watched.during(f"{number} images"):
                detections_of(detector, [*there, there[0]][:number])
            counts.append(sum(watched.of("wait", phase=f"{number} images").values()))
        assert watched.of("mix", "pageable") == {}
    assert counts == [6, 6]
