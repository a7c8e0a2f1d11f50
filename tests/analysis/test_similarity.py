"""Linear CKA from small batches, and which layers are compared."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import Tensor

from kdcli.analysis.layers import layers_of
from kdcli.analysis.similarity import LayerSimilarity, gram, stage_layers
from kdcli.models.network import Network


def similarity(left: Tensor, right: Tensor, batch: int = 32) -> float:
    sums = LayerSimilarity(1, 1)
    for start in range(0, len(left), batch):
        sums.update([gram(left[start : start + batch])], [gram(right[start : start + batch])])
    return float(sums.values()[0, 0])


def unbiased(left: Tensor, right: Tensor) -> float:
    """CKA by the textbook's HSIC_1, one matrix at a time."""

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        n = len(a)
        a, b = a @ a.T, b @ b.T
        a, b = a - torch.diag(a.diag()), b - torch.diag(b.diag())
        ones = torch.ones(n, dtype=a.dtype)
        trace = (a @ b).trace()
        product = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        return (trace + product - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3))

    return float(hsic(left, right) / (hsic(left, left) * hsic(right, right)).sqrt())


def test_a_layer_is_like_itself_turned_and_scaled() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(64, 6, 2, 2, generator=draw)
    turn, _ = torch.linalg.qr(torch.randn(24, 24, generator=draw))
    turned = 3.0 * features.flatten(1) @ turn
    assert similarity(features, features) == pytest.approx(1.0)
    assert similarity(features, turned) == pytest.approx(1.0, abs=1e-5)


def test_one_batch_gives_the_unbiased_estimate() -> None:
    draw = torch.Generator().manual_seed(1)
    left = torch.randn(16, 5, generator=draw)
    right = left @ torch.randn(5, 7, generator=draw) + torch.randn(16, 7, generator=draw)
    assert similarity(left, right) == pytest.approx(unbiased(left.double(), right.double()), abs=1e-5)


def test_strangers_are_unlike_and_a_constant_is_like_nothing() -> None:
    draw = torch.Generator().manual_seed(2)
    left, right = torch.randn(512, 8, generator=draw), torch.randn(512, 8, generator=draw)
    assert similarity(left, right) < 0.1
    assert similarity(left, torch.ones(512, 3)) == 0.0


def chosen(net: torch.nn.Module, size: int = 64) -> list[str]:
    network = Network({"model": net}).eval()
    return stage_layers(layers_of(network, {"image": torch.rand(2, 3, size, size)}))


def test_stages_of_a_residual_network() -> None:
    names = ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert chosen(torchvision.models.resnet18()) == [f"model.{name}" for name in names]


def test_a_plain_sequence_is_opened_and_thinned() -> None:
    layers = chosen(torchvision.models.mobilenet_v3_small())
    assert 4 <= len(layers) <= 12
    assert layers[0] == "model.features.0" and layers[-1] == "model.classifier.3"
