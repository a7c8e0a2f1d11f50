"""Whole classifiers of torchvision and timm."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import torchvision.models
from torch import nn

from kdcli.errors import SpecError
from kdcli.models.network import build_network
from kdcli.spec.schema import ModuleSpec

from .fakes import batch_of, network, run_fake

QUICK = [
    "alexnet",
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "googlenet",
    "inception_v3",
    "resnet18",
]
NAMES = torchvision.models.list_models(module=torchvision.models)
SIZES = {"inception_v3": 299, "maxvit_t": 224, **{name: 224 for name in NAMES if name.startswith("vit")}}


def whole(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": "model", "type": kind, "kwargs": kwargs}


def finding(kind: str, **kwargs: Any) -> tuple[str, tuple[str | int, ...] | None, str, str]:
    with pytest.raises(SpecError) as caught:
        network(whole(kind, **kwargs))
    (found,) = caught.value.diagnostics
    return found.code, found.path, found.message, found.help or ""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NAMES]
)
def test_every_classifier_of_torchvision_gives_logits(name: str) -> None:
    net = network(
        whole(f"torchvision.{name}", num_classes=10), {"name": "post", "type": "base_cls_postprocess"}
    )
    size = SIZES.get(name, 64)
    outputs = run_fake(net, batch_of(size))
    assert outputs["logits"].shape == (2, 10)
    assert outputs["loss"].shape == ()
    assert run_fake(net.eval(), batch_of(size))["preds"].shape == (2,)


@pytest.mark.parametrize(
    ("name", "said", "near"),
    [
        ("maskrcnn_resnet50_fpn", "leaves out torchvision's models with masks and key points", "fasterrcnn"),
        ("keypointrcnn_resnet50_fpn", "masks and key points", "fasterrcnn"),
        ("deeplabv3_resnet50", "leaves out torchvision's `deeplabv3_resnet50`", ""),
        ("maskrcnn", "torchvision has no model `maskrcnn`", ""),
    ],
)
def test_models_that_are_left_out_are_told_apart_from_slips(name: str, said: str, near: str) -> None:
    code, path, message, help = finding(f"torchvision.{name}")
    assert (code, path) == ("KD401", ("net", 0, "type"))
    assert said in message and near in help


def test_arguments_are_checked() -> None:
    assert finding("torchvision.resnet1")[:2] == ("KD401", ("net", 0, "type"))
    code, path, message, help = finding("torchvision.mobilenet_v2", num_clases=3)
    assert (code, path) == ("KD404", ("net", 0, "kwargs", "num_clases"))
    assert message == "`torchvision.mobilenet_v2` has no argument `num_clases`"
    assert help.startswith("did you mean `num_classes`")
    assert finding("torchvision.resnet18", num_clases=3)[3].startswith("did you mean `num_classes`")
    code, path, message, help = finding("torchvision.resnet18", weights="IMAGENET1K_V2")
    assert (code, path) == ("KD412", ("net", 0, "kwargs", "weights"))
    assert "IMAGENET1K_V1" in help
    assert finding("torchvision.resnet18", num_classes=3.5)[0] == "KD402"


@pytest.mark.parametrize(
    ("kind", "kwargs", "line"),
    [
        (
            "torchvision.squeezenet1_1",
            {"weights": "DEFAULT"},
            "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1}`",
        ),
        (
            "torchvision.resnet50",
            {"weights": "IMAGENET1K_V1"},
            "torchvision:ResNet50_Weights.IMAGENET1K_V1}`",
        ),
        ("mobilenet_v2", {"weights": "DEFAULT"}, "torchvision:MobileNet_V2_Weights.IMAGENET1K_V2}`"),
        pytest.param(
            "torchvision.ssd300_vgg16",
            {"weights_backbone": "DEFAULT"},
            "torchvision:SSD300_VGG16_Weights.COCO_V1}`, the whole detector's",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_to_build_a_network_fetches_nothing(
    kind: str, kwargs: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What asks for it is answered with the line to write, for a student and for a teacher."""

    def fetched(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fetched)
    key = next(iter(kwargs))
    network(whole(kind))
    network(whole(kind, **{key: None}))
    code, path, _, help = finding(kind, **kwargs)
    assert (code, path) == ("KD558", ("net", 0, "kwargs", key))
    assert f"say `saver: {{pretrain_model: {line}" in help
    with pytest.raises(SpecError) as caught:
        build_network([ModuleSpec(**whole(kind, **kwargs))], path=("teachers", "teacher0"))
    assert f"say `teacher0: {{mimic_name: [...], teacher_weight: {line}" in str(
        caught.value.diagnostics[0].help
    )


def test_another_number_of_classes_beside_weights_is_told() -> None:
    _, _, _, help = finding("torchvision.resnet18", weights="DEFAULT", num_classes=10)
    assert help.endswith("; the last layer is made anew for `num_classes: 10`")
    with pytest.raises(SpecError) as caught:
        kwargs = {"weights": "DEFAULT", "num_classes": 10}
        build_network([ModuleSpec(**whole("torchvision.resnet18", **kwargs))], path=("teachers", "teacher0"))
    assert "with `num_classes: 10` the network isn't the one that was trained" in str(
        caught.value.diagnostics[0].help
    )


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    code, path, message, help = finding("timm.resnet18")
    assert (code, path, message) == ("KD415", ("net", 0, "type"), "timm is not installed")
    assert "kdcli[timm]" in help


def test_timm_builds_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
        if pretrained:
            raise AssertionError("something was fetched")
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

    timm = types.ModuleType("timm")
    vars(timm).update(
        create_model=create_model, is_model=lambda name: name == "tiny", list_models=lambda: ["tiny"]
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    net = network(whole("timm.tiny", num_classes=4))
    assert net({"image": torch.randn(2, 3, 8, 8)})["logits"].shape == (2, 4)
    assert network(whole("timm.tiny.some_tag", num_classes=4)) is not None
    assert finding("timm.tinny")[::3] == ("KD401", "did you mean `tiny`?")
    assert finding("timm.tiny", num_clases=4)[::3] == ("KD404", "did you mean `num_classes`?")
    assert network(whole("timm.tiny", pretrained=False)) is not None
    code, path, _, help = finding("timm.tiny.some_tag", pretrained=True)
    assert (code, path) == ("KD558", ("net", 0, "kwargs", "pretrained"))
    assert "saver: {pretrain_model: timm:tiny.some_tag}" in help
    assert finding("timm.tiny", checkpoint_path="x.pth")[0] == "KD558"
    code, path, _, help = finding("timm.hf-hub:timm/tiny")
    assert (code, path) == ("KD557", ("net", 0, "type")) and "`hf:`" in help


@pytest.mark.slow
def test_a_vit_backbone_with_a_head_is_torchvisions_vit() -> None:
    net = network(
        {"name": "backbone", "type": "vit_b_32", "kwargs": {"image_size": 64}},
        {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 5}},
    ).eval()
    theirs = torchvision.models.vit_b_32(image_size=64, num_classes=5).eval()
    state = {k.replace("heads.head", "head.classifier"): v for k, v in theirs.state_dict().items()}
    net.load_state_dict({k if k.startswith("head.") else f"backbone.{k}": v for k, v in state.items()})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs = net({"image": image})
        assert torch.allclose(outputs["logits"], theirs(image), atol=1e-5)
    assert outputs["tokens"].shape == (1, 5, 768)
    with pytest.raises(Exception, match="KD416"):
        net({"image": torch.randn(1, 3, 32, 32)})
