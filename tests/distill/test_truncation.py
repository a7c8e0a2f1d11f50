"""A network that stops early: the same features, and nothing after the deepest tap runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kdcli.distill.taps import Taps
from kdcli.models.cifar.resnet import CifarResNet
from kdcli.models.network import Network

SIZE = 32
vision = torchvision.models


class Stages(nn.Module):
    """Stages in an nn.ModuleList, blocks in another: no container ever runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)) for _ in range(3)
        )
        self.head = nn.Linear(3, 5)

    def forward(self, image: Tensor) -> Tensor:
        for stage in self.stages:
            for block in stage.children():
                image = block(image)
        return self.head(image.mean((2, 3)))  # type: ignore[no-any-return]


def small_vit() -> nn.Module:
    net: nn.Module = vision.VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=5
    )
    return net


def small_swin() -> nn.Module:
    net: nn.Module = vision.SwinTransformer(
        patch_size=[2, 2],
        embed_dim=8,
        depths=[1, 2, 1],
        num_heads=[1, 2, 4],
        window_size=[4, 4],
        num_classes=5,
    )
    return net


def timm_resnet() -> nn.Module:
    timm = pytest.importorskip("timm")
    net: nn.Module = timm.create_model("resnet10t", num_classes=5)
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "module lists": (Stages, ["stages.1.0"]),
    "two taps": (Stages, ["stages.0.2", "stages.2.1"]),
    "cifar_resnet8": (partial(CifarResNet, depth=8, num_classes=5), ["layer2"]),
    "inside a stage": (partial(CifarResNet, depth=20, num_classes=5), ["layer2.1"]),
    "torchvision resnet18": (partial(vision.resnet18, num_classes=5), ["layer2"]),
    "torchvision mobilenet_v3_small": (partial(vision.mobilenet_v3_small, num_classes=5), ["features.4"]),
    "torchvision shufflenet_v2": (partial(vision.shufflenet_v2_x0_5, num_classes=5), ["stage3"]),
    "torchvision regnet": (partial(vision.regnet_y_400mf, num_classes=5), ["trunk_output.block2"]),
    "torchvision vit": (small_vit, ["encoder.layers.encoder_layer_1"]),
    "torchvision swin": (small_swin, ["features.3.0"]),
    "an input": (partial(vision.resnet18, num_classes=5), ["layer3.0.conv2:in"]),
    "timm resnet": (timm_resnet, ["layer2"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_after_the_deepest_tap_runs(name: str) -> None:
    build, paths = NETWORKS[name]
    torch.manual_seed(0)
    net = Network({"model": build()}).eval()
    ran: list[nn.Module] = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, _args, _out: ran.append(m))
    batch = {"image": torch.rand(2, 3, SIZE, SIZE)}
    texts = [f"model.{path}" for path in paths]
    with torch.no_grad(), Taps(net, texts, outputs=()) as taps:
        taps.learn(batch)
        ran.clear()
        cut = taps.view(batch)
        prefix = list(ran)
        taps.require(texts, None)
        ran.clear()
        full = taps.view(batch)
    assert 0 < len(prefix) < len(ran)
    assert all(one is other for one, other in zip(prefix, ran, strict=False))
    deepest = net.get_submodule(taps.taps[texts[-1]].path)
    at_input = taps.taps[texts[-1]].at_input
    inside = set(map(id, deepest.modules()))
    # The last thing that ran belongs to the deepest tap; of a tapped input, it stands just before.
    assert (id(prefix[-1]) in inside) is not at_input
    assert all(id(module) not in inside for module in ran[len(prefix) :]) is not at_input
    for text in texts:
        one, other = cut.features[text], full.features[text]
        assert isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
