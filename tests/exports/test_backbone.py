"""A student whose head nothing trained, exported as a backbone: what is in the file, and that it computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kdcli.exports.export import export
from kdcli.models.network import Network, build_network
from kdcli.models.weights import load_weights
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks.classification.backbone import Backbone
from kdcli.training.run import RunOptions
from tests.training.runs import spec_of, train_all
from tests.training.test_without_labels import FEATURES_ALONE

NET = ModuleSpec(
    name="model", type="cifar_resnet8", kwargs={"num_classes": 4, "in_channels": 1, "widths": [2, 2, 4, 4]}
)
HEAD = ("model.fc.weight", "model.fc.bias")


def net() -> Network:
    torch.manual_seed(0)
    return build_network((NET,), path=("net",)).eval()


IMAGE = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_pooled_is_what_the_head_reads() -> None:
    whole = net()
    read: list[torch.Tensor] = []
    whole.get_submodule("model.fc").register_forward_hook(lambda _m, given, _o: read.append(given[0]))
    whole({"image": IMAGE})
    found = Backbone(net(), ["model.layer3"], HEAD)
    features, pooled = found.eager(IMAGE)
    assert features.shape == (3, 4, 2, 2)
    assert torch.equal(pooled, read[0])
    assert not any(key.startswith("fc.") for key in found.state()) and "conv1.weight" in found.state()


def test_pooled_is_the_mean_of_the_last_layer_where_more_than_the_head_is_untrained() -> None:
    untrained = [
        name for name, _ in net().named_parameters() if name.startswith(("model.layer3", "model.fc"))
    ]
    found = Backbone(net(), ["model.layer1", "model.layer2"], untrained)
    first, second, pooled = found.eager(IMAGE)
    assert found.outputs == ("features0", "features1", "pooled")
    assert torch.equal(pooled, second.mean((2, 3))) and first.shape[2:] == (8, 8)
    layout = json.loads(found.says["layout"])
    assert layout["features1"] == {
        "kind": "map",
        "axes": ["batch", "channels", "height", "width"],
        "grid": [4, 4],
        "stride": [2.0, 2.0],
    }
    assert json.loads(found.says["layers"]) == {"features0": "model.layer1", "features1": "model.layer2"}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "torch-export", "onnx"])
def test_each_format_is_proved_and_begins_a_finetuning(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    parsed = spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path / 'run'}", "trainer.max_epoch=1")
    train_all(parsed)
    done = export(parsed, RunOptions(), format, tmp_path / "backbone")
    assert done.proof.difference < 1e-4
    assert json.loads(done.metadata["outputs"]) == ["features", "pooled"]
    assert done.metadata["kind"] == "backbone" and done.metadata["class_names"] == "null"
    if format != "safetensors":
        return
    with safe_open(done.path, framework="pt") as file:
        assert not any(name.startswith("fc") for name in file.keys())
    start = net()
    load_weights(start, done.path, mode="pretrain")
    with safe_open(done.path, framework="pt") as file:
        for name in file.keys():
            assert torch.equal(file.get_tensor(name), start.state_dict()[f"model.{name}"]), name
