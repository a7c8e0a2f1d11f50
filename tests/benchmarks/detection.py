"""A training step of kdcli's Faster R-CNN to one of torchvision's own, of the same size and settings.

    python -m tests.benchmarks.detection [ROUNDS]

ResNet-50 with FPN, 91 classes, two images of 256x256, the first two stages frozen on both sides.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kdcli.models.network import build_network
from kdcli.spec.schema import ModuleSpec
from tests.benchmarks.measure import THREADS, Row, machine, median_ratio, table
from tests.models.detection.nets import batch, build, faster_rcnn

SIDE = 256


def ours() -> nn.Module:
    """Of kdcli's modules, with what torchvision proposes and samples."""
    modules = faster_rcnn(91, 256, 50)
    places = {module.name: place for place, module in enumerate(modules)}

    def change(name: str, alter: Callable[[dict[str, Any]], None]) -> None:
        kwargs = copy.deepcopy(modules[places[name]].kwargs)
        alter(kwargs)
        modules[places[name]] = modules[places[name]].model_copy(update={"kwargs": kwargs})

    def proposals(kwargs: dict[str, Any]) -> None:
        predictor = kwargs["cfg"]["train"]["roi_predictor"]["kwargs"]
        predictor.update(pre_nms_top_n=2000, post_nms_top_n=2000)
        predictor["merger"]["kwargs"]["top_n"] = 2000
        kwargs["cfg"]["roi_supervisor"]["kwargs"]["sampler"]["kwargs"]["batch_size"] = 256

    def rois(kwargs: dict[str, Any]) -> None:
        kwargs["cfg"]["bbox_supervisor"]["kwargs"]["sampler"]["kwargs"]["batch_size"] = 512
        kwargs["cfg"]["roipooling"]["sampling_ratio"] = 2

    change(modules[3].name, proposals)
    change(modules[4].name, rois)
    change(modules[5].name, lambda kwargs: kwargs.update(feat_planes=1024))
    net = build(modules, True)
    for name, parameter in net.backbone.named_parameters():  # type: ignore[union-attr]
        if name.startswith(("layer0", "layer1")):
            parameter.requires_grad_(False)
    return net


def theirs() -> nn.Module:
    """torchvision's whole detector, frozen like the one above."""
    net = build_network([ModuleSpec(name="model", type=WHOLE, kwargs={"num_classes": 91})], path=("net",))
    for name, parameter in net.named_parameters():
        if ".backbone.body." in name and not any(f"layer{n}" in name for n in (2, 3, 4)):
            parameter.requires_grad_(False)
    return net


WHOLE = "torchvision.fasterrcnn_resnet50_fpn"


def step(net: nn.Module, images: Mapping[str, Any]) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    losses = [value for name, value in net(images).items() if name.endswith("_loss")]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    net.zero_grad()
    return time.perf_counter() - start


def rows(rounds: int) -> list[Row]:
    """The ratio of images/s."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    images = batch(SIDE)
    images["image_info"] = [(float(SIDE), float(SIDE), 1.0, 1.0, float(SIDE), float(SIDE))] * 2
    nets = {"kdcli": ours(), "torchvision": theirs()}
    sides = {name: (lambda net=net: step(net, images)) for name, net in nets.items()}
    ratio, seconds = median_ratio(sides, rounds, "torchvision", "kdcli")  # type: ignore[arg-type]
    what = "Faster R-CNN R50-FPN, a training step: images/s to torchvision's"
    return [Row(what, f"{2 / seconds:.1f}", ratio, 1.0)]


if __name__ == "__main__":
    print(machine())
    print(table("Detection", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
