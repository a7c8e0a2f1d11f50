"""A pyramid's parameter names, and weight files that hold its older ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.models.detection.fpn import FPN
from kdcli.models.network import Network
from kdcli.models.weights import check_weights, load_weights, misfit, save_safetensors
from tests.models.fakes import network

KWARGS: dict[str, Any] = {
    "outplanes": 8,
    "start_level": 2,
    "num_level": 4,
    "out_strides": [4, 8, 16, 32],
    "downsample": "pool",
    "upsample": "nearest",
}
GROUPS = {"type": "gn", "kwargs": {"num_groups": 4}}
NORMS = [
    ({"type": "solo_bn"}, "bn"),
    ({"type": "sync_bn"}, "bn"),
    ({"type": "freeze_bn"}, "bn"),
    (GROUPS, "gn"),
    ({"type": "ln"}, "ln"),
]


def pyramid(**kwargs: Any) -> FPN:
    return FPN([4, 6], **{**KWARGS, "num_level": 2, "out_strides": [4, 8], **kwargs})


def detector(seed: int, normalize: dict[str, Any] | None) -> Network:
    torch.manual_seed(seed)
    backbone = {
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "width": 4,
        "out_layers": [1, 2, 3, 4],
        "out_strides": [4, 8, 16, 32],
    }
    return network(
        {"name": "backbone", "type": "resnet_custom", "kwargs": backbone},
        {"name": "neck", "type": "FPN", "kwargs": {**KWARGS, "normalize": normalize}, "prev": "backbone"},
    )


def numbered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As kdcli wrote it before the layers had names."""
    places = {"conv": "0", "bn": "1", "gn": "1", "ln": "1"}
    result = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "neck" and len(parts) == 4:
            parts[2] = places[parts[2]]
        result[".".join(parts)] = value
    return result


@pytest.mark.parametrize(("normalize", "norm"), NORMS, ids=lambda value: str(value)[:18])
def test_a_norm_has_united_perceptions_name(normalize: dict[str, Any], norm: str) -> None:
    names = {name for name, _ in pyramid(normalize=normalize).named_parameters()}
    blocks = ("c2_lateral", "p2_conv", "c3_lateral", "p3_conv")
    layers = ("conv.weight", f"{norm}.weight", f"{norm}.bias")
    assert names == {f"{block}.{layer}" for block in blocks for layer in layers}


def test_without_a_norm_a_level_is_its_convolution() -> None:
    names = {name for name, _ in pyramid().named_parameters()}
    blocks = ("c2_lateral", "p2_conv", "c3_lateral", "p3_conv")
    assert names == {f"{block}.{kind}" for block in blocks for kind in ("weight", "bias")}


@pytest.mark.parametrize("mode", ["strict", "pretrain"])
@pytest.mark.parametrize("normalize", [{"type": "solo_bn"}, GROUPS], ids=["bn", "gn"])
def test_files_that_number_the_layers_of_a_level_still_fit(
    normalize: dict[str, Any], mode: Any, tmp_path: Path
) -> None:
    one, other = detector(0, normalize), detector(1, normalize)
    old = numbered(one.state_dict())
    assert "neck.c2_lateral.0.weight" in old and "neck.p5_conv.1.bias" in old
    save_safetensors(old, tmp_path / "old.safetensors")
    assert not misfit(other, {key: tuple(value.shape) for key, value in old.items()})
    assert check_weights(other, tmp_path / "old.safetensors", mode=mode) == []
    assert load_weights(other, tmp_path / "old.safetensors", mode=mode) == []
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_a_number_past_the_last_layer_is_unexpected() -> None:
    net = detector(0, {"type": "solo_bn"})
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    strange = ("neck.c2_lateral.2.weight", "neck.c2_lateral.-1.weight", "neck.c2_lateral." + "9" * 5000)
    found = misfit(net, {**shapes, **dict.fromkeys(strange, (8,))})
    assert found.unexpected == strange and not found.missing


def test_a_name_goes_before_a_number() -> None:
    net = detector(0, {"type": "solo_bn"})
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert not misfit(net, {"neck.c2_lateral.0.weight": (1,), **shapes})
