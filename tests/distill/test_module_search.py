"""A teacher's classifier, and the BatchNorm behind a feature, in networks of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdcli.distill.module_search import find_classifier, find_norm, maker_of
from kdcli.errors import RunError
from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec


def network(type: str, channels: int = 3, **kwargs: Any) -> tuple[Network, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = build_network([ModuleSpec(name="model", type=type, kwargs=kwargs)], path=("net",))
    return net, {"image": torch.rand(2, channels, 32, 32)}


CLASSIFIERS = [
    ("cifar_resnet20", {"num_classes": 5}, "model.fc"),
    ("cifar_resnet8x4", {"num_classes": 5}, "model.fc"),
    ("wrn_16_1", {"num_classes": 5}, "model.fc"),
    ("vgg8", {"num_classes": 5}, "model.classifier"),
    ("torchvision.resnet18", {"num_classes": 5}, "model.fc"),
    ("torchvision.mobilenet_v2", {"num_classes": 5}, "model.classifier.1"),
    ("torchvision.efficientnet_b0", {"num_classes": 5}, "model.classifier.1"),
    ("torchvision.densenet121", {"num_classes": 5}, "model.classifier"),
]


@pytest.mark.parametrize(("type", "kwargs", "path"), CLASSIFIERS)
def test_the_classifier_makes_the_logits(type: str, kwargs: dict[str, Any], path: str) -> None:
    net, batch = network(type, **kwargs)
    assert find_classifier(net, batch) is net.get_submodule(path)


def test_a_head_has_the_classifier_of_its_backbone() -> None:
    modules = [
        ModuleSpec(name="backbone", type="resnet18", kwargs={"out_layers": [4], "out_strides": [32]}),
        ModuleSpec(name="head", type="base_cls_head", kwargs={"num_classes": 5, "in_plane": 512}),
    ]
    net = build_network(modules, path=("net",))
    assert find_classifier(net, {"image": torch.rand(2, 3, 32, 32)}) is net.get_submodule("head.classifier")


def test_logits_of_a_sum_have_no_classifier() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = image.mean((2, 3))
            total: torch.Tensor = self.one(x) + self.two(x)
            return total

    with pytest.raises(RunError, match="no single layer"):
        find_classifier(Network({"model": Twice()}), {"image": torch.rand(2, 3, 4, 4)})


NORMS = [
    ("cifar_resnet20", "model.layer2.2.relu:in", "model.layer2.2.bn2"),
    ("wrn_16_1", "model.block2.layer.0.relu1:in", "model.block2.layer.0.bn1"),
    ("wrn_16_1", "model.relu:in", "model.bn1"),
    ("torchvision.resnet18", "model.layer1.1.relu:in[1]", "model.layer1.1.bn2"),
    ("torchvision.resnet18", "model.layer1.1.relu:in[0]", "model.layer1.1.bn1"),
    ("torchvision.resnet50", "model.layer4.2.relu:in[2]", "model.layer4.2.bn3"),
    ("torchvision.vgg11_bn", "model.features.6:in", "model.features.5"),
]


@pytest.mark.parametrize(("type", "tap", "path"), NORMS)
def test_the_norm_is_the_one_before_the_feature(type: str, tap: str, path: str) -> None:
    net, batch = network(type, num_classes=5)
    assert find_norm(net, batch, tap) is net.get_submodule(path)


def test_the_vgg_of_cifar_has_its_norm_before_each_relu() -> None:
    net, batch = network("vgg8", num_classes=5)
    for stage in range(5):
        norm = find_norm(net, batch, f"model.relu{stage}:in")
        last = [
            m for m in net.get_submodule(f"model.block{stage}").modules() if isinstance(m, nn.BatchNorm2d)
        ][-1]
        assert norm is last


def test_the_maker_of_a_feature_is_found_by_the_tensor_itself() -> None:
    net, batch = network("cifar_resnet8", num_classes=5)
    before = [module.training for module in net.modules()]
    assert maker_of(net, batch, "model.layer1", (nn.ReLU,)) == "model.layer1.0.relu"
    assert maker_of(net, batch, "model.layer1.0.relu:in", (nn.ReLU,)) is None
    assert maker_of(net, batch, "logits", (nn.Linear,)) == "model.fc"
    assert [module.training for module in net.modules()] == before
