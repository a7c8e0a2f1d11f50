"""ResNet: United-Perception's arguments, parameters and shapes; torchvision's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.backbones.resnet import DEPTHS, ResNet
from kdcli.models.weights import load_weights

from .fakes import network

SMALL: dict[str, Any] = {"block": "basic", "layers": [1, 1, 1, 1], "width": 8}
SOLO = {"type": "solo_bn"}


def head(classes: int = 7) -> dict[str, Any]:
    return {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": classes}}


@pytest.mark.parametrize(
    "depth",
    [18, 34, 50, pytest.param(101, marks=pytest.mark.slow), pytest.param(152, marks=pytest.mark.slow)],
)
def test_torchvision_weights_give_torchvision_logits(depth: int, tmp_path: Path) -> None:
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=7).eval()
    for buffer in theirs.buffers():
        if buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = network({"name": "backbone", "type": f"resnet{depth}"}, head()).eval()
    assert load_weights(ours, tmp_path / "resnet.pth") == []
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs(image)
        # Relative to their size: a random ResNet's logits may be thousands.
        assert (ours({"image": image})["logits"] - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(
            min=1
        )


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_deep_stem_and_avg_down_are_the_formula(block: Any) -> None:
    net = ResNet(
        block=block, layers=[2, 1, 1, 1], width=8, deep_stem=True, avg_down=True, normalize=SOLO
    ).eval()
    for buffer in net.buffers():
        if buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 1.5)
    state = net.state_dict()
    image = torch.randn(2, 3, 64, 64)
    (ours,) = net({"image": image})["features"]
    assert torch.allclose(ours, by_hand(state, image, block), atol=1e-4)


def by_hand(state: dict[str, Tensor], x: Tensor, block: str) -> Tensor:
    """The same network from functional operations."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.relu(norm(conv(x, "layer0.0.0", 2), "layer0.0.1"))
    x = F.relu(norm(conv(x, "layer0.0.3"), "layer0.0.4"))
    x = F.relu(norm(conv(x, "layer0.0.6"), "layer0.1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, blocks in enumerate([2, 1, 1, 1], 1):
        for index in range(blocks):
            name = f"layer{layer}.{index}"
            stride = 2 if layer > 1 and index == 0 else 1
            if block == "basic":
                out = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
            else:
                out = F.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
                out = F.relu(norm(conv(out, f"{name}.conv2", stride), f"{name}.bn2"))
                out = norm(conv(out, f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.1.weight" in state:
                x = norm(
                    conv(F.avg_pool2d(x, stride) if stride > 1 else x, f"{name}.downsample.1"),
                    f"{name}.downsample.2",
                )
            x = F.relu(out + x)
    return x


def test_parameters_have_united_perceptions_names() -> None:
    names = set(ResNet(depth=50, normalize=SOLO).state_dict())
    assert {
        "layer0.0.weight", "layer0.1.running_mean", "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.bias",
        "layer4.2.conv3.weight", "layer4.2.bn3.num_batches_tracked",
    } <= names  # fmt: skip
    deep = set(ResNet(**SMALL, deep_stem=True, avg_down=True).state_dict())
    assert {"layer0.0.0.weight", "layer0.0.4.running_var", "layer0.0.6.weight"} <= deep
    assert {"layer2.0.downsample.1.weight", "layer2.0.downsample.2.bias"} <= deep
    grouped = set(ResNet(**SMALL, normalize={"type": "gn", "kwargs": {"num_groups": 4}}).state_dict())
    assert {"layer1.0.gn1.weight", "layer1.0.gn2.bias", "layer0.1.weight"} <= grouped
    assert "layer1.0.ln1.weight" in ResNet(**SMALL, normalize={"type": "ln"}).state_dict()


@pytest.mark.parametrize("depth", sorted(DEPTHS))
def test_as_many_parameters_as_torchvision(depth: int) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"resnet{depth}")
        ours = ResNet(depth=depth)
    count = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("fc."))
    assert sum(p.numel() for p in ours.parameters()) == count


def test_layers_and_strides() -> None:
    net = ResNet(**SMALL, out_layers=[0, 2, 3, 4], out_strides=[4, 8, 16, 32])
    outputs = net({"image": torch.randn(1, 3, 64, 64)})
    assert net.outplanes == [8, 16, 32, 64]
    assert [64 // f.shape[2] for f in outputs["features"]] == outputs["strides"] == [4, 8, 16, 32]
    dilated = ResNet(**SMALL, out_layers=[3, 4], out_strides=[16, 16])
    assert [f.shape[2] for f in dilated({"image": torch.randn(1, 3, 64, 64)})["features"]] == [4, 4]
    assert dilated.layer4 is not None
    assert dilated.layer4[0].conv1.dilation == (2, 2)
    assert ResNet(**SMALL, out_layers=[3]).layer4 is None
    assert ResNet(**SMALL, multiplier=0.5).outplanes == [32]
    small = ResNet(**SMALL, stem="cifar", input_channel=1, out_layers=[1, 2, 3, 4])
    maps = small({"image": torch.randn(1, 1, 32, 32)})["features"]
    assert [32 // f.shape[2] for f in maps] == small.out_strides == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"out_layers": [5]}, {"out_layers": []},
        {"frozen_layers": [-1]}, {"out_layers": [4], "out_strides": [8]},
        {"out_layers": [3, 4], "out_strides": [16]}, {"normalize": {"type": "bn"}}, {"style": "tf"},
        {"initializer": {"method": "he"}}, {"initializer": {"method": "msra", "mode": 1}}, {"block": "wide"},
        {"layers": [1, 1]}, {"stem": "none"},
    ],
)  # fmt: skip
def test_wrong_arguments_are_told(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ResNet(**{**SMALL, **kwargs})


def test_frozen_layers_stay_in_eval_mode_without_gradient() -> None:
    net = ResNet(**SMALL, frozen_layers=[0, 1], normalize=SOLO).train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net({"image": torch.randn(2, 3, 64, 64)})["features"][0].sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith(("layer0", "layer1")), name
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]) == name.startswith(("layer0", "layer1")), name


def test_freeze_bn_is_the_default_and_trains_weight_and_bias() -> None:
    net = ResNet(**SMALL).train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net({"image": torch.randn(2, 3, 64, 64)})["features"][0].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert all(p.grad is not None for p in net.parameters())


def test_caffe_style_strides_in_the_first_convolution() -> None:
    def strides(style: Any) -> list[int]:
        net = ResNet(block="bottleneck", layers=[1, 1, 1, 1], width=8, style=style)
        block = net.layer2[0]
        return [block.conv1.stride[0], block.conv2.stride[0]]

    assert strides("caffe") == [2, 1]
    assert strides("pytorch") == [1, 2]


def test_initializers() -> None:
    torch.manual_seed(0)
    weight = ResNet(depth=18, initializer={"method": "msra"}).layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx((1 / (256 * 9)) ** 0.5, rel=0.01)
    weight = ResNet(depth=18, initializer={"method": "xavier"}).layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    weight = ResNet(depth=18, initializer={"method": "normal", "std": 0.05}).layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx(0.05, rel=0.01)
    net = ResNet(**SMALL, initializer={"method": "constant", "val": 0.25})
    assert all((m.weight == 0.25).all() for m in net.modules() if isinstance(m, nn.Conv2d))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    net = ResNet(**SMALL, drop_path_rate=0.5)
    rates = [
        getattr(layer[0].drop_path, "rate", 0.0) for layer in (net.layer1, net.layer2, net.layer3, net.layer4)
    ]
    assert rates == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2])
    torch.manual_seed(0)
    drop = net.layer4[0].drop_path.train()
    out = drop(torch.ones(4000, 2, 1, 1))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(out), out)


def test_the_map_before_the_last_relu_is_that_relus_input() -> None:
    net = ResNet(**SMALL).eval()
    seen: list[Tensor] = []
    net.layer2[0].relu.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    (after,) = ResNet.forward(net, {"image": torch.randn(1, 3, 64, 64)})["features"][:1]
    assert (seen[0] < 0).any()
    assert (after >= 0).all()


def test_second_names_of_the_stem_lead_to_the_same_layers() -> None:
    net = network({"name": "backbone", "type": "resnet18"})
    assert net.get_submodule("backbone.conv1") is net.backbone.layer0[0]
    assert net.get_submodule("backbone.bn1") is net.backbone.layer0[1]
    assert net.get_submodule("backbone.maxpool") is net.backbone.layer0[3]
