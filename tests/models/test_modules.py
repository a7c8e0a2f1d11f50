"""Every name of the table builds and runs, in training and in evaluation, on fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli.models import BACKBONES, CLASSIFICATION, MODULES, SMALL_IMAGE_MODELS

from .fakes import batch_of, network, run_fake

BIG = {
    "vit_l_16", "vit_l_32", "vit_b_32", "cifar_resnet110", "resnet101", "resnet152", "efficientnet_v2_s",
    *(f"efficientnet_b{size}" for size in range(1, 8)), "efficientnet_v2_m", "efficientnet_v2_l",
    *(f"regnet_x_{size}" for size in ("800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    *(f"regnet_y_{size}" for size in ("800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    # United-Perception's own: small ones of each family are in test_backbones.py.
    *(name for name in BACKBONES if name.endswith(("m", "_D")) or name.startswith(("convnext", "swin", "CSWin"))),
    *(name for name in BACKBONES if "_patch" in name),
}  # fmt: skip

POST = {"name": "post_process", "type": "base_cls_postprocess"}


def rows(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in BIG else []) for name in sorted(table)]


def test_the_tables_hold_no_name_twice() -> None:
    assert {*BACKBONES, *SMALL_IMAGE_MODELS, *CLASSIFICATION} <= set(MODULES)
    assert len(BACKBONES) + len(SMALL_IMAGE_MODELS) + len(CLASSIFICATION) == len(
        {*BACKBONES, *SMALL_IMAGE_MODELS, *CLASSIFICATION}
    )


@pytest.mark.parametrize("name", rows(SMALL_IMAGE_MODELS))
def test_a_small_image_model_gives_logits_and_a_loss(name: str) -> None:
    net = network({"name": "model", "type": name, "kwargs": {"num_classes": 10}}, POST)
    outputs = run_fake(net, batch_of(32))
    assert outputs["logits"].shape == (2, 10)
    assert outputs["loss"].shape == outputs["accuracy"].shape == ()
    outputs = run_fake(net.eval(), batch_of(32))
    assert outputs["preds"].shape == (2,)
    assert outputs["scores"].shape == (2, 10)


@pytest.mark.parametrize("name", rows(BACKBONES))
def test_a_backbone_carries_a_head(name: str) -> None:
    kwargs: dict[str, Any] = {}
    if name == "resnet_custom":
        kwargs = {"block": "basic", "layers": [1, 1, 1, 1]}
    if name == "resnet_custom_D":
        kwargs = {"block": "basic", "layers": [1, 1, 1, 1]}
    size = 56 if name.endswith("patch14_224") else 64
    if name.startswith(("vit", "deit")):
        kwargs = {"image_size": size}
    head = "vit_head" if "_patch" in name else "base_cls_head"
    net = network(
        {"name": "backbone", "type": name, "kwargs": kwargs},
        {"name": "head", "type": head, "kwargs": {"num_classes": 10}},
        POST,
    )
    outputs = run_fake(net, batch_of(size))
    assert outputs["logits"].shape == (2, 10)
    assert outputs["loss"].shape == ()
    features = run_fake(net.eval(), batch_of(size))["features"]
    features = [one[0] if isinstance(one, list) else one for one in features]
    assert [feature.shape[1] for feature in features] == net.backbone.outplanes
    if not name.startswith(("vit", "deit", "mobilenetv3")):
        assert [64 // feature.shape[2] for feature in features] == net.backbone.out_strides


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf"])
def test_a_backbone_gives_the_levels_it_is_asked_for(name: str) -> None:
    net = network({"name": "backbone", "type": name, "kwargs": {"out_layers": [1, 2, 3, 4]}})
    features = run_fake(net.eval(), batch_of(64))["features"]
    assert [feature.shape[1] for feature in features] == net.backbone.outplanes
    assert [64 // feature.shape[2] for feature in features] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", sorted(SMALL_IMAGE_MODELS))
def test_a_small_image_model_runs_on_small_images(name: str) -> None:
    net = network({"name": "model", "type": name, "kwargs": {"in_channels": 1, "num_classes": 4}})
    net.eval()
    with torch.no_grad():
        for size in (8, 28):
            assert net({"image": torch.randn(2, 1, size, size)})["logits"].shape == (2, 4)
