"""Which feature of a network is probed, and how it becomes one vector."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import Tensor, nn

from kdcli.errors import SpecError
from kdcli.models.feature_layouts import FeatureLayout
from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks.probe.data import PROBE
from kdcli.tasks.probe.features import PooledFeature

IMAGES = {"image": torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
BACKBONE = (
    "{name: backbone, type: resnet_custom, kwargs: {block: basic, layers: [1, 1, 1, 1], width: 4, stem: cifar,"
    " out_layers: [2, 4], out_strides: [2, 8], input_channel: 1}}"
)


def network(*modules: str) -> Network:
    net = build_network([ModuleSpec(**yaml.safe_load(one)) for one in modules], path=("net",))
    return net.eval()


def feature(net: nn.Module, tap: str | None = None) -> PooledFeature:
    return PooledFeature(net, tap, IMAGES, where=PROBE, name="the student")


def test_the_input_of_the_classifier() -> None:
    net = network(
        "{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 6]}}"
    )
    found = feature(net)
    assert found.tap == "model.fc:in" and found.text == "`model.fc:in` (6 numbers)"
    classifier = net.get_submodule("model.fc")
    assert torch.allclose(classifier(found(IMAGES)), net(IMAGES)["logits"])


def test_of_a_list_without_a_head_the_last_map_is_averaged() -> None:
    net = network(BACKBONE)
    found = feature(net)
    assert found.tap == "features[1]" and "mean of the map" in found.text
    assert torch.equal(found(IMAGES), net(IMAGES)["features"][1].mean((2, 3)))


def test_the_named_layer() -> None:
    net = network(BACKBONE, "{name: head, type: base_cls_head, kwargs: {num_classes: 4}}")
    assert feature(net).tap == "head.classifier:in"
    named = feature(net, "backbone.layer1")
    assert named.width == 4 and named(IMAGES).shape == (3, 4)


class Tokens(nn.Module):
    """Two prefix tokens and 4x4 patches, or what `layout` says."""

    def __init__(self, prefix: int, class_token: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 5, 2, stride=2)
        self.prefix = nn.Parameter(torch.randn(prefix, 5))
        self.blocks = nn.Linear(5, 5)
        self.feature_layout = FeatureLayout(prefix=prefix, class_token=class_token, grid=(4, 4))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.embed(image).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.prefix.expand(len(image), -1, -1), patches], 1))


@pytest.mark.parametrize(("prefix", "class_token"), [(2, True), (2, False), (0, False)])
def test_of_tokens_the_class_token_else_the_mean_of_the_patches(prefix: int, class_token: bool) -> None:
    net = Network({"model": Tokens(prefix, class_token)}).eval()
    found = feature(net, "model.blocks")
    tokens = net.get_submodule("model")(IMAGES["image"])
    expected = tokens[:, 0] if class_token else tokens[:, prefix:].mean(1)
    assert torch.allclose(found(IMAGES), expected)
    assert ("class token" if class_token else "mean of the patches") in found.text


def test_a_network_whose_classifier_was_taken_off() -> None:
    net = Network({"model": nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())}).eval()
    found = feature(net)
    assert found.tap == "logits" and torch.equal(found(IMAGES), net(IMAGES)["logits"])


def test_nothing_is_changed_by_looking() -> None:
    net = network(BACKBONE, "{name: head, type: base_cls_head, kwargs: {num_classes: 4}}").train()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    feature(net)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_feature_that_is_none() -> None:
    net = network(BACKBONE)
    for tap, code in (("features", "KD265"), ("backbone.layer9", "KD422")):
        with pytest.raises(SpecError) as error:
            feature(net, tap)
        assert error.value.diagnostics[0].code == code
