"""Networks: order, names, freezing, errors at the module, nothing written into others' tensors."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.errors import SpecError
from kdcli.models.module import Outputs, ViewModule
from kdcli.models.network import Network, matches

from .fakes import batch_of, network, run_fake

BACKBONE = {
    "name": "backbone",
    "type": "resnet_custom",
    "kwargs": {"block": "basic", "layers": [1, 1, 1, 1], "width": 4, "normalize": {"type": "solo_bn"}},
}
HEAD = {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 10}}
POST = {"name": "post_process", "type": "base_cls_postprocess"}


class Plain(nn.Module):
    """A whole model that returns whatever it is told to."""

    def __init__(self, result: Any = None) -> None:
        super().__init__()
        self.result = result

    def forward(self, image: Tensor) -> Any:
        return image.mean((2, 3)) if self.result is None else self.result


class Writer(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.sub_(1.0).mean((2, 3))


class FeatureWriter(ViewModule):
    def forward(self, outputs: Outputs) -> dict[str, Any]:
        outputs["features"][0].relu_()
        return {}


class BatchWriter(ViewModule):
    def forward(self, outputs: Outputs) -> dict[str, Any]:
        outputs["image"] = 0  # type: ignore[index]
        return {}


class NeedsWidths(ViewModule):
    def __init__(self, inplanes: int | list[int], *, aligned: bool) -> None:
        super().__init__()
        self.inplanes, self.aligned = inplanes, aligned
        self.outplanes = 7


def broken(*, size: int) -> nn.Module:
    raise RuntimeError(f"size {size} is odd")


@pytest.fixture
def plugin() -> Iterator[str]:
    module = types.ModuleType("kd_plugin")
    vars(module).update(
        Plain=Plain, Writer=Writer, FeatureWriter=FeatureWriter, BatchWriter=BatchWriter,
        NeedsWidths=NeedsWidths, broken=broken, number=3, not_a_module=lambda: {},
    )  # fmt: skip
    sys.modules["kd_plugin"] = module
    yield "kd_plugin"
    del sys.modules["kd_plugin"]


def finding(*modules: Any, **options: Any) -> tuple[str, tuple[str | int, ...], str, str]:
    with pytest.raises(SpecError) as caught:
        network(*modules, **options)
    (found,) = caught.value.diagnostics
    assert found.path is not None
    return found.code, found.path, found.message, found.help or ""


def test_outputs_come_by_name_and_the_batch_stays_as_it_was() -> None:
    net = network(BACKBONE, HEAD, POST)
    batch = batch_of(32)
    image = batch["image"].clone()
    outputs = net(batch)
    assert list(outputs) == ["features", "strides", "logits", "loss", "accuracy"]
    assert set(batch) == {"image", "labels"}
    assert torch.equal(batch["image"], image)
    assert set(net.eval()(batch)) == {"features", "strides", "logits", "preds", "scores"}


def test_an_exception_inside_passes_through() -> None:
    class Stop(BaseException):
        pass

    net = network(BACKBONE, HEAD, POST)

    def stop(*_: Any) -> None:
        raise Stop

    net.get_submodule("backbone.layer2").register_forward_hook(stop)
    with pytest.raises(Stop):
        net(batch_of(32))


def test_whole_models_give_logits(plugin: str) -> None:
    whole = {"name": "model", "type": "kd_plugin:Plain"}
    assert network(whole, plugins=[plugin])(batch_of(8))["logits"].shape == (2, 3)
    net = Network({"model": Plain({"logits": torch.ones(2, 4), "extra": 1})})
    assert net(batch_of(8))["extra"] == 1
    with pytest.raises(SpecError, match="KD411: module `model` returned a tuple of 2"):
        Network({"model": Plain((torch.ones(1), torch.ones(1)))})(batch_of(8))


@pytest.mark.parametrize(
    ("name", "field"), [("Writer", "image"), ("FeatureWriter", "features")], ids=["batch", "features"]
)
def test_a_module_that_writes_into_what_others_read_is_refused(plugin: str, name: str, field: str) -> None:
    net = network(BACKBONE, {"name": "bad", "type": f"kd_plugin:{name}"}, plugins=[plugin])
    with pytest.raises(SpecError) as caught:
        net(batch_of(32))
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KD410", ("net", 1))
    assert found.message == f"module `bad` changed `{field}` in place"
    with pytest.raises(SpecError, match="KD410"):
        run_fake(net, batch_of(32))


def test_the_outputs_are_read_only(plugin: str) -> None:
    with pytest.raises(TypeError):
        network({"name": "bad", "type": "kd_plugin:BatchWriter"}, plugins=[plugin])(batch_of(8))


def test_facts_reach_the_constructors_that_ask(plugin: str) -> None:
    asks = {"name": "neck", "type": "kd_plugin:NeedsWidths"}
    net = network(BACKBONE, asks, plugins=[plugin], aligned=True)
    assert net.neck.inplanes == [32]
    assert net.neck.aligned is True
    again = network(BACKBONE, asks, {**asks, "name": "b"}, plugins=[plugin])
    assert again.b.inplanes == 7
    named = network(BACKBONE, asks, {**asks, "name": "b", "prev": "backbone"}, plugins=[plugin])
    assert named.b.inplanes == [32]


def test_every_module_that_can_be_built_without_the_failed_one_is_told(plugin: str) -> None:
    asks = {"name": "asks", "type": "kd_plugin:NeedsWidths", "prev": "backbone"}
    with pytest.raises(SpecError) as caught:
        network(
            BACKBONE,
            {**asks, "name": "first", "kwargs": {"widht": 3}},
            {**asks, "name": "beside", "kwargs": {"hight": 3}},
            {**asks, "name": "behind", "prev": "first", "kwargs": {"untold": 3}},
            {"name": "last", "type": "kd_plugin:NeedsWidths", "kwargs": {"untold": 3}},
            {**asks, "name": "again", "prev": "last"},
            plugins=[plugin],
        )
    assert [(one.code, one.path) for one in caught.value.diagnostics] == [
        ("KD404", ("net", 1, "kwargs", "widht")),
        ("KD404", ("net", 2, "kwargs", "hight")),
    ]


def test_findings_stand_at_their_module(plugin: str) -> None:
    def at(*modules: Any) -> tuple[str, tuple[str | int, ...], str, str]:
        return finding(*modules, plugins=[plugin])

    def kind(name: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": "m", "type": name, "kwargs": kwargs}

    code, path, message, help = at(BACKBONE, kind("resnet1"))
    assert (code, path, message) == ("KD401", ("net", 1, "type"), "there is no module type `resnet1`")
    assert "did you mean `resnet" in help
    code, path, message, help = at(kind("resnet18", dept=3, frozen_layer=[]))
    assert (code, path) == ("KD404", ("net", 0, "kwargs", "dept"))
    assert message == "`resnet18` has no argument `dept`"
    assert at(kind("resnet18", depth=34))[0] == "KD404"
    assert at(kind("base_cls_head"))[0::2] == ("KD405", "`base_cls_head` needs `num_classes`")
    assert at(kind("resnet18", out_layers=[7]))[:2] == ("KD402", ("net", 0, "kwargs", "out_layers"))
    code, path, message, help = at(kind("base_cls_postprocess", cls_loss={"type": "c"}))
    assert (code, path) == ("KD402", ("net", 0, "kwargs", "cls_loss"))
    assert message.startswith("`base_cls_postprocess` can't be built: cls_loss is {type, kwargs}")
    assert at(BACKBONE, {**HEAD, "kwargs": {"num_classes": 10, "in_plane": 31}})[2].endswith(
        "in_plane is 31, but the module before gives 32 channels"
    )
    assert at(kind("ADAP", outplanes=3))[0] == "KD403"
    assert at(BACKBONE, {**HEAD, "prev": "backbon"})[:2] == ("KD407", ("net", 1, "prev"))
    assert at(BACKBONE, BACKBONE)[:2] == ("KD409", ("net", 1, "name"))
    for name in ("a.b", "forward", "train", "training", "_paths", ""):
        assert at({"name": name, "type": "resnet18"})[:2] == ("KD409", ("net", 0, "name"))
    assert at()[:2] == ("KD409", ("net",))
    assert (
        f"RuntimeError: size 3 is odd ({__file__}:65, in broken)" in at(kind("kd_plugin:broken", size=3))[2]
    )
    assert at(kind("kd_plugin:missing"))[0] == "KD414"
    assert at(kind("kd_plugin:number"))[0] == "KD406"
    assert at(kind("kd_plugin:not_a_module"))[0] == "KD406"
    assert "kd_plugin:Plain" in at(kind("kd_plugin.Plain"))[3]


def test_code_outside_kdcli_is_imported_only_when_allowed(plugin: str) -> None:
    code, path, message, _ = finding({"name": "m", "type": "os.path:join"}, plugins=[plugin])
    assert (code, path) == ("KD413", ("net", 0, "type"))
    assert message == "`os` is not a plugin of this run: add `--plugin os` for `os.path:join`"
    assert finding({"name": "m", "type": "kd_plugin:Plain"})[0] == "KD413"
    assert finding({"name": "m", "type": "kd_pluginish:Plain"}, plugins=[plugin])[0] == "KD413"
    assert finding({"name": "m", "type": "no_such:Plain"}, plugins=["no_such"])[0] == "KD414"


def test_the_pseudo_module_self_freezes_by_prefix_and_regex() -> None:
    def frozen(*patterns: str) -> Network:
        return network(
            BACKBONE, HEAD, {"name": "f", "type": "self", "kwargs": {"freeze_patterns": [*patterns]}}
        )

    net = frozen("backbone.layer1", r"r:head\.classifier\.bias").train()
    assert not any(p.requires_grad for p in net.backbone.layer1.parameters())
    assert all(p.requires_grad for p in net.backbone.layer2.parameters())
    assert not net.head.classifier.bias.requires_grad
    assert net.head.classifier.weight.requires_grad
    assert not net.backbone.layer1[0].bn1.training
    assert net.backbone.layer2[0].bn1.training
    # conv1 and bn1 are layer0's other names.
    net = frozen("backbone.conv1", "backbone.bn1")
    assert not any(p.requires_grad for p in net.backbone.layer0.parameters())
    assert not net.backbone.layer0[1].training
    for patterns in ([3], "backbone"):
        bad = {"name": "f", "type": "self", "kwargs": {"freeze_patterns": patterns}}
        assert finding(BACKBONE, bad)[0] == "KD404"
    assert finding(BACKBONE, {"name": "f", "type": "self", "kwargs": {"freeze": []}})[0] == "KD404"
    for pattern in ("backbone.layer9", "r:^layer1", "r:("):
        bad = {"name": "f", "type": "self", "kwargs": {"freeze_patterns": [pattern]}}
        assert finding(BACKBONE, bad)[:2] == ("KD408", ("net", 1, "kwargs", "freeze_patterns", 0))


def test_patterns() -> None:
    assert matches("backbone", "backbone.layer1")
    assert not matches("layer1", "backbone.layer1")
    assert matches(r"r:.*\.bn\d", "backbone.layer1.bn1")
    assert matches(r"r:bn\d$", "backbone.layer1.bn1")
    assert not matches(r"r:bn\d$", "backbone.layer1.bn1.weight")


def test_what_serves_training_alone_is_not_exported() -> None:
    net = network(
        BACKBONE, {"name": "adapt", "type": "ADAP", "kwargs": {"outplanes": 8, "out_layers": [0]}}, HEAD
    )
    assert net.training_only() == {"adapt"}
    assert {key.split(".")[0] for key in net.exported_state()} == {"backbone", "head"}


@pytest.mark.slow
def test_a_network_compiles_whole() -> None:
    net = network(BACKBONE, HEAD, POST)
    batch = batch_of(32)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(batch)["loss"], net(batch)["loss"])


def test_a_wrong_key_inside_an_argument_is_told_at_that_key() -> None:
    from kdcli.models.construct import _named_inside

    kwargs = {"cfg": {"matcher": {"kwargs": {"thres": 1}}, "thres": 2}}
    message = "a key of `cfg.matcher.kwargs` can't be `thres`; did you mean `thresh`?"
    assert _named_inside(kwargs, message) == ("cfg", "matcher", "kwargs", "thres")
    assert _named_inside(kwargs, "`cfg.matcher` needs `type`") == ("cfg", "matcher")
    assert _named_inside(kwargs, "`x` is wrong") == ()
