"""Small-image models: the published sizes, and maps before and after every stage's last ReLU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.models import SMALL_IMAGE_MODELS
from kdcli.models.cifar.shufflenet import SplitBlock

from .fakes import network

PARAMETERS = {
    "cifar_resnet8": 83_892,
    "cifar_resnet14": 181_108,
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet44": 667_188,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2_half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "resnet18_cifar": 11_220_132,
    "resnet34_cifar": 21_328_292,
    "resnet50_cifar": 23_705_252,
}

LAST_RELUS = {
    "cifar_resnet20": ["relu", "layer1.2.relu", "layer2.2.relu", "layer3.2.relu"],
    "wrn_16_2": ["block1.layer.1.relu1", "block2.layer.0.relu1", "block3.layer.0.relu1", "relu"],
    "vgg13": ["relu0", "relu1", "relu2", "relu3", "relu4"],
    "shufflenetv1": ["relu", "layer1.3.relu", "layer2.7.relu", "layer3.3.relu"],
    "shufflenetv2": ["relu", "layer1.3.relu", "layer2.7.relu", "layer3.3.relu", "relu2"],
    "mobilenetv2_half": ["conv1.2", "conv2.2"],
    "resnet50_cifar": ["relu", "layer1.2.relu", "layer2.3.relu", "layer3.5.relu", "layer4.2.relu"],
}


def build(name: str, **kwargs: Any) -> nn.Module:
    target = SMALL_IMAGE_MODELS[name]
    model = target.load()(**kwargs, **target.preset)
    assert isinstance(model, nn.Module)
    return model


def test_every_model_has_the_published_size_at_100_classes() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build(name).parameters()) for name in SMALL_IMAGE_MODELS}
    assert counts == PARAMETERS


@pytest.mark.parametrize("name", sorted(LAST_RELUS))
def test_maps_are_whole_before_and_after_each_last_relu(name: str) -> None:
    model = build(name, num_classes=3).eval()
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for path in LAST_RELUS[name]:
        relu = model.get_submodule(path)
        assert isinstance(relu, nn.ReLU)
        relu.register_forward_hook(
            lambda _m, args, out, path=path: seen.update({path: (args[0], args[0].clone(), out)})
        )
    model(torch.randn(2, 3, 32, 32))
    assert list(seen) == LAST_RELUS[name]
    for path, (before, then, after) in seen.items():
        assert torch.equal(before, then), path
        assert (before < 0).any(), path
        assert torch.equal(after, before.relu()), path


@pytest.mark.parametrize("name", ["cifar_resnet20", "vgg8", "shufflenetv1", "resnet18_cifar"])
def test_a_stage_gives_what_its_last_relu_gives(name: str) -> None:
    model = build(name).eval()
    stage, relu = ("relu1", "relu1") if name == "vgg8" else ("layer2", f"layer2.{len(model.layer2) - 1}.relu")
    seen: dict[str, Tensor] = {}
    for key, path in (("stage", stage), ("relu", relu)):
        model.get_submodule(path).register_forward_hook(lambda _m, _a, out, key=key: seen.update({key: out}))
    model(torch.randn(1, 3, 32, 32))
    assert torch.equal(seen["stage"], seen["relu"])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cifar_resnet8", {"widths": [4, 4, 8, 8]}),
        ("vgg8", {"widths": [4, 4, 8, 8, 8]}),
        ("mobilenetv2_half", {"width": 0.125, "last_width": 16}),
        ("shufflenetv1", {"widths": [36, 48, 60]}),
        ("shufflenetv2", {"widths": [8, 16, 16, 32]}),
        ("resnet50_cifar", {"width": 4}),
        ("wrn_16_1", {"dropout": 0.3}),
    ],
)
def test_tiny_ones_learn(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, num_classes=3, in_channels=1, **kwargs)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 1, 16, 16)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cifar_resnet8", {"widths": [4, 4]}),
        ("vgg8", {"widths": [4, 4, 8, 8, 0]}),
        ("mobilenetv2_half", {"width": 0.01}),
        ("shufflenetv1", {"widths": [16, 48, 60]}),
        ("shufflenetv2", {"widths": [7, 16, 16, 32]}),
    ],
)
def test_impossible_widths_are_told(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="width"):
        build(name, **kwargs)


def test_shufflenetv2s_one_relu_is_a_relu_on_the_worked_half() -> None:
    block = SplitBlock(8).eval()
    x = torch.randn(2, 8, 4, 4).relu().requires_grad_()
    kept, worked = x.chunk(2, 1)
    half = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(worked)))))
    apart = torch.cat([kept, block.bn3(block.conv3(half)).relu()], 1)
    apart = apart[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    assert torch.allclose(block(x), apart)


def test_the_zoo_starts_with_gradients_of_a_sane_size() -> None:
    torch.manual_seed(0)
    net = network(
        {"name": "model", "type": "cifar_resnet20"}, {"name": "post", "type": "base_cls_postprocess"}
    )
    loss = net({"image": torch.randn(8, 3, 32, 32), "labels": torch.arange(8)})["loss"]
    assert 3 < loss.item() < 8
