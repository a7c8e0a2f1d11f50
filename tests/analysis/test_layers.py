"""inspect-features: rows of layers, from any file that names a network; how alike two networks' layers are."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
import torchvision.models
import yaml
from torch import Tensor

from kdcli.analysis import layers as features
from kdcli.analysis.layers import (
    Layer,
    LayerSimilarity,
    filtered,
    gram,
    input_size,
    inspect,
    layers_of,
    stage_layers,
)
from kdcli.commands.inspect import inspect_features
from kdcli.commands.options import InspectOptions
from kdcli.distill.taps import Taps
from kdcli.errors import SpecError, UsageError
from kdcli.models.network import Network, build_network
from kdcli.models.torch_modes import fake_mode
from kdcli.spec.networks import parse_networks
from kdcli.tasks.detection.task import detection_sample
from tests.check.test_check import MODULE
from tests.training.detectors import DATA, network
from tests.training.runs import SPEC

CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
QUICK = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")


def layers(text: str, name: str = "net", **options: object) -> dict[str, Layer]:
    """One network's layers by path."""
    parsed = parse_networks(text, "n.yaml")
    return {layer.path: layer for layer in inspect(parsed, **options)[name]}  # type: ignore[arg-type]


def test_a_resnet_row_by_row() -> None:
    text = (
        "[{name: backbone, type: resnet18, kwargs: {out_layers: [2, 4]}},"
        " {name: head, type: base_cls_head, kwargs: {num_classes: 7}}]"
    )
    rows = layers(text)
    stage = rows["backbone.layer2"]
    assert (stage.shape, stage.stride, stage.status, stage.depth) == ("[B, 128, 28, 28]", 8, "once", 1)
    assert stage.parameters == sum(p.numel() for p in torchvision.models.resnet18().layer2.parameters())
    whole = rows["backbone"]
    assert whole.shape == ("[B, 128, 28, 28]", "[B, 512, 7, 7]")
    assert (whole.stride, whole.status) == ("8, 32", "several")
    assert rows["head.classifier"].shape == "[B, 7]" and rows["head.classifier"].stride is None
    shares = [rows[f"backbone.layer{i}"].flops_share or 0 for i in range(5)]
    assert shares == sorted(shares) and 0 < shares[0] < shares[4] < 1
    assert rows["head.classifier"].flops_share == 1.0
    # relu(out + identity) is a new tensor here, while torchvision's adds in place
    assert rows["backbone.layer2.0.bn1"].status in ("once", "changed in place")


def shapeless(layer: Layer) -> Layer:
    """A row without what differs by the number of images."""
    return replace(layer, sizes=tuple(size[1:] for size in layer.sizes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_a_costly_network_is_shown_on_fake_images_and_looks_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"num_classes": 3, **({"image_size": 64} if name.startswith("vit") else {})}
    text = json.dumps({"teacher0": [{"name": "model", "type": f"torchvision.{name}", "kwargs": arguments}]})
    real = layers(text, "teacher0", size=(3, 64, 64))
    modes = []
    monkeypatch.setattr(features, "QUICK", 1)
    monkeypatch.setattr(features, "fake_mode", lambda: modes.append(fake_mode()) or modes[-1])
    fake = layers(text, "teacher0", size=(3, 64, 64))
    assert len(modes) == 1
    assert {k: shapeless(v) for k, v in fake.items()} == {k: shapeless(v) for k, v in real.items()}


@pytest.mark.slow
def test_inspection_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    spec = tmp_path / "teacher.yaml"
    spec.write_text("teacher0: [{name: backbone, type: resnet18, kwargs: {out_layers: [4]}}]")
    code = (
        "import sys; from kdcli.commands.inspect import *; from kdcli.commands.options import *; "
        f"inspect_features(InspectOptions(spec={str(spec)!r})); "
        "print([n for n in ('torch._dynamo', 'torchvision', 'sympy') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_what_cannot_be_tapped_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_rows.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_rows", raising=False)
    rows = layers("{name: m, type: 'odd_rows:Odd'}", size=(1, 8, 8), plugins=["odd_rows"])
    assert {
        path: rows[path].status for path in ("m.blocks", "m.blocks.0", "m.shared", "m.unused", "m.bn")
    } == {
        "m.blocks": "container",
        "m.blocks.0": "once",
        "m.shared": "several",
        "m.unused": "never runs",
        "m.bn": "changed in place",
    }
    assert rows["m.unused"].shape is None
    real = layers("{name: m, type: 'odd_rows:Reads'}", size=(1, 8, 8), plugins=["odd_rows"])
    assert {path: row.status for path, row in real.items()} == {
        path: row.status for path, row in rows.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        SPEC,
        "net: {name: model, type: cifar_resnet8}",
        "teacher0: {name: model, type: cifar_resnet8}",
        "[{name: model, type: cifar_resnet8}]",
        "{type: cifar_resnet8}",
    ],
)
def test_any_file_with_a_network(text: str) -> None:
    found = inspect(parse_networks(text, "n.yaml"), size=(1 if text == SPEC else 3, 16, 16))
    assert found and all(rows for rows in found.values())


def test_the_size_comes_from_the_data() -> None:
    assert layers(SPEC)["model.layer1"].shape == "[B, 2, 8, 8]"
    assert layers(SPEC, size=(1, 32, 32))["model.layer1"].shape == "[B, 2, 32, 32]"
    assert layers("{type: cifar_resnet8}")["model.layer1"].shape == "[B, 16, 224, 224]"


def test_an_input_that_does_not_fit_is_told() -> None:
    with pytest.raises(SpecError) as error:
        layers("{type: torchvision.vit_b_16}", size=(3, 32, 32))
    assert error.value.diagnostics[0].code == "KD418"
    assert "VisionTransformer" in error.value.diagnostics[0].message


def test_filters() -> None:
    rows = list(layers("{type: cifar_resnet8}", size=(3, 16, 16)).values())
    assert {row.path for row in filtered(rows, "layer3*", "Conv2d")} == {
        "model.layer3.0.conv1",
        "model.layer3.0.conv2",
        "model.layer3.0.downsample.0",
    }
    assert [row.path for row in filtered(rows, "model.layer3", None)] == ["model.layer3"]


def test_input_sizes() -> None:
    assert input_size("3x224x192") == (3, 224, 192)
    for wrong in ("224", "3x0x4", "axbxc", "3x4"):
        with pytest.raises(UsageError):
            input_size(wrong)


def test_the_command_prints_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text(SPEC)
    inspect_features(InspectOptions(spec="n.yaml"))
    text = capsys.readouterr().out
    assert "teacher0\n" in text and "model.layer3.0.downsample.0" in text and "…" not in text
    inspect_features(InspectOptions(spec="n.yaml", net="teacher0", format="json", depth=1))
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert max(row["depth"] for row in rows) == 1 and rows[0]["path"] == "model"
    inspect_features(InspectOptions(spec="n.yaml", format="json", depth=0))
    assert set(json.loads(capsys.readouterr().out)) == {"net", "teacher0"}
    with pytest.raises(UsageError):
        inspect_features(InspectOptions(spec="n.yaml", net="teacher1"))


DETECTOR = (
    "net: {name: model, type: torchvision.fasterrcnn_mobilenet_v3_large_320_fpn, kwargs: {num_classes: 3}}\n"
    f"{DATA}"
)


@pytest.mark.slow
def test_the_levels_of_a_detector_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = layers(DETECTOR)
    fpn = rows["model.backbone.fpn"]
    assert fpn.status == "several"
    assert fpn.taps == tuple(f"model.backbone.fpn[{level}]" for level in range(len(fpn.sizes)))
    assert rows["model.backbone.body"].taps[-1] == "model.backbone.body[1]"
    layer = rows["model.backbone.fpn.layer_blocks.0"]
    assert layer.taps == ("model.backbone.fpn.layer_blocks.0",) and layer.status == "once"
    assert rows["model.backbone.fpn.layer_blocks"].taps == ()
    net = build_network(parse_networks(DETECTOR, "n.yaml").networks["net"], path=("net",))
    with Taps(net, [fpn.path, *fpn.taps], where={}) as taps:  # what is told can be tapped
        view = taps.learn(detection_sample())
    several = view.features[fpn.path]
    assert isinstance(several, list) and len(several) == len(fpn.taps)
    Path("n.yaml").write_text(DETECTOR)
    inspect_features(InspectOptions(spec="n.yaml", filter="backbone.fpn"))
    assert "several\n" in (text := capsys.readouterr().out)
    assert f"model.backbone.fpn[0] ... model.backbone.fpn[{len(fpn.taps) - 1}]" in text
    inspect_features(InspectOptions(spec="n.yaml", filter="backbone.body", format="json"))
    (row,) = json.loads(capsys.readouterr().out)["layers"]
    assert row["taps"] == ["model.backbone.body[0]", "model.backbone.body[1]"]
    inspect_features(InspectOptions(spec="n.yaml", filter="backbone.body"))
    assert "model.backbone.body[0], model.backbone.body[1]" in capsys.readouterr().out
    inspect_features(InspectOptions(spec="n.yaml", filter="bakbone", type="Conv", format="json"))
    told = capsys.readouterr()
    assert json.loads(told.out)["layers"] == []
    assert (
        "matches --filter bakbone and --type Conv; did you mean `backbone`" in told.err
        and "`Conv2d`" in told.err
    )


@pytest.mark.parametrize("name", QUICK)
def test_torchvision(name: str) -> None:
    rows = layers(f"{{type: torchvision.{name}, kwargs: {{num_classes: 5}}}}", size=(3, 64, 64))
    assert rows["model"].shape == "[B, 5]"
    assert any(row.status == "once" for row in rows.values())


@pytest.mark.slow
def test_vit_and_swin_can_be_tapped() -> None:
    vit = layers("{type: torchvision.vit_b_32}")
    block = vit["model.encoder.layers.encoder_layer_5"]
    assert (block.shape, block.status) == ("[B, 50, 768]", "once")
    assert 0.4 < (block.flops_share or 0) < 0.6
    swin = layers("{type: torchvision.swin_t}")
    assert swin["model.features.3"].shape == "[B, 28, 28, 192]"
    assert swin["model.permute"].shape == "[B, 768, 7, 7]"


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_torchvision_classifier(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    rows = layers(f"{{type: torchvision.{name}}}", size=(3, size, size))
    assert [row.shape for row in rows.values() if row.path == "model"] == ["[B, 1000]"] or "model" in rows
    assert sum(row.status == "once" for row in rows.values()) > 5


def test_flops_agree_with_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from kdcli.models.torch_modes import flops_of

    net = torchvision.models.mobilenet_v3_small().eval()
    image = torch.zeros(2, 3, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(image)

    class Reading(torch.nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            result: torch.Tensor = net(batch["image"])
            return result

    assert flops_of(Reading(), {"image": image}) == counter.get_total_flops() // 2


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


def test_a_detector_has_its_shapes_at_the_specs_own_size() -> None:
    parsed = parse_networks(yaml.safe_dump({"net": network()}) + DATA, "n.yaml")
    said: list[str] = []
    rows = {layer.path: layer for layer in inspect(parsed, say=said.append)["net"]}
    assert rows["neck.p2_conv"].shape == "[B, 8, 168, 336]"  # 672 x 1344, padded from 1333
    assert rows["neck.p6_pool"].stride == 64 and rows["neck.p6_pool"].shape == "[B, 8, 11, 21]"
    assert rows["bbox_head.fc6"].shape and rows["bbox_head.fc6"].flops_share == 1.0
    assert said == [
        "net: on images of 3x672x1344; what computes with boxes on tiny ones, and not in the FLOPs: "
        "post_process, bbox_head_pre_process, bbox_head, bbox_head_post_process"
    ]
    inspect(parsed, size=(3, 64, 96), say=said.append)
    assert said[1].startswith("net: on images of 3x64x96; ")


def test_torch_logs_nothing_of_an_operation_that_fails_on_fake_tensors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fake_mode(), pytest.raises(RuntimeError):
        torch.ones(2, 3) @ torch.ones(4, 5)
    assert caplog.records == [] and not logging.getLogger("torch._subclasses.fake_tensor").disabled
