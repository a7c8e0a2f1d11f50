"""Whether weights fit: renaming, what is listed, what pretraining may leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from safetensors.torch import load_file, save_file

from kdcli.errors import RunError, SpecError
from kdcli.models.network import Network, build_network
from kdcli.models.weights import check_weights, fit_weights, load_weights, misfit
from kdcli.spec.schema import ModuleSpec

from .fakes import network

SMALL = {"block": "basic", "layers": [1, 1, 1, 1], "width": 4}
BACKBONE = {"name": "backbone", "type": "resnet_custom", "kwargs": SMALL}


def small(classes: int = 5, **kwargs: Any) -> Network:
    head = {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": classes}}
    return network({**BACKBONE, "kwargs": {**SMALL, **kwargs}}, head)


def saved(net: torch.nn.Module, folder: Path, drop: str = "-", **extra: torch.Tensor) -> Path:
    state = {key: value for key, value in net.state_dict().items() if not key.startswith(drop)}
    torch.save({**state, **extra}, folder / "w.pt")
    return folder / "w.pt"


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_what_fits_is_loaded(tmp_path: Path) -> None:
    one, other = small(), small()
    assert load_weights(other, saved(one, tmp_path)) == []
    assert equal(one, other)


def test_united_perceptions_doubled_stem_is_one(tmp_path: Path) -> None:
    one, other = small(), small()
    state = one.state_dict()
    doubled = {
        k.replace("layer0.0", "conv1").replace("layer0.1", "bn1"): v
        for k, v in state.items()
        if "layer0" in k
    }
    torch.save({"model": {**doubled, **state}}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert equal(one, other)
    other = small()
    bare = {k: v for k, v in state.items() if "layer0" not in k}
    torch.save({"model": {**doubled, **bare}}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert equal(one, other)


def test_a_whole_models_own_names_fit(tmp_path: Path) -> None:
    theirs = torchvision.models.squeezenet1_1(num_classes=3)
    net = network({"name": "model", "type": "torchvision.squeezenet1_1", "kwargs": {"num_classes": 3}})
    load_weights(net, saved(theirs, tmp_path))
    assert equal(theirs, net.model)
    zoo = network({"name": "model", "type": "cifar_resnet8"})
    again = network({"name": "student", "type": "cifar_resnet8"})
    load_weights(again, saved(zoo.model, tmp_path))
    assert equal(zoo.model, again.student)


def test_a_whole_models_file_has_its_own_names_and_those_with_the_modules_still_fit(tmp_path: Path) -> None:
    def whole() -> Network:
        return network({"name": "model", "type": "torchvision.resnet18", "kwargs": {"num_classes": 4}})

    net = whole()
    save_file(net.exported_state(), tmp_path / "own.safetensors")
    plain = torchvision.models.resnet18(num_classes=4)
    plain.load_state_dict(load_file(tmp_path / "own.safetensors"))  # strict
    save_file({key: value.clone() for key, value in net.state_dict().items()}, tmp_path / "old.safetensors")
    for name in ("own", "old"):
        again = whole()
        assert load_weights(again, tmp_path / f"{name}.safetensors") == []
        assert equal(net, again)
    listed = small()
    assert set(listed.exported_state()) == set(listed.state_dict())  # a list keeps the names of its modules


class Doubled(torch.nn.Module):
    """A network whose own names, without `model.`, would be read as other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
        self.model = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2)})


def test_names_that_would_be_read_as_others_keep_the_modules(tmp_path: Path) -> None:
    net, again = Network({"model": Doubled()}), Network({"model": Doubled()})
    assert set(net.exported_state()) == set(net.state_dict())
    save_file(net.exported_state(), tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    assert equal(net, again)


def test_old_densenet_files_fit(tmp_path: Path) -> None:
    theirs = torchvision.models.densenet121(num_classes=2)
    old = {
        k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.") if "denselayer" in k else k: v
        for k, v in theirs.state_dict().items()
    }
    net = network({"name": "model", "type": "torchvision.densenet121", "kwargs": {"num_classes": 2}})
    fit_weights(net, old, "old")
    assert equal(theirs, net.model)


def test_a_backbone_of_torchvision_takes_torchvisions_file(tmp_path: Path) -> None:
    theirs = torchvision.models.mobilenet_v2(num_classes=3).eval()
    net = network(
        {"name": "backbone", "type": "mobilenet_v2"},
        {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 3}},
    ).eval()
    load_weights(net, saved(theirs, tmp_path))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net({"image": image})["logits"], theirs(image), atol=1e-5)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    net, other = small(), small(7)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    path = saved(other, tmp_path, drop="backbone.layer4.0.bn", odd=torch.ones(1))
    with pytest.raises(SpecError) as caught:
        load_weights(net, path, where=("mimic", "w"))
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KD531", ("mimic", "w"))
    assert "8 missing: backbone.layer4.0.bn1.weight, " in found.message
    assert (
        "and 3 more; 1 unexpected: odd; 2 mis-shaped: head.classifier.weight [7, 32] instead of [5, 32]"
        in found.message
    )
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    with pytest.raises(RunError):
        load_weights(net, path)


def teacher(*modules: Any) -> Network:
    return build_network([ModuleSpec(**module) for module in modules], path=("teachers", "teacher0"))


def test_a_teachers_list_may_end_before_its_weights_do(tmp_path: Path) -> None:
    whole = small()
    path = saved(whole, tmp_path, **{"bbox.fc.weight": torch.ones(1)})
    cut = teacher(BACKBONE)
    told = ["3 tensors of `head`, `bbox` are not used: the teacher's list has no such module"]
    assert check_weights(cut, path) == told
    assert load_weights(cut, path) == told
    assert equal(whole.backbone, cut.backbone)
    full = teacher(BACKBONE, {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 5}})
    assert check_weights(full, saved(whole, tmp_path)) == []
    with pytest.raises(RunError, match="2 unexpected: head"):
        load_weights(network(BACKBONE), path)  # a student is not cut
    other = teacher({**BACKBONE, "kwargs": {**SMALL, "layers": [1, 1, 1, 2]}})
    with pytest.raises(RunError, match=r"missing: backbone\.layer4\.1.* unexpected: head"):
        load_weights(other, path)
    wide = teacher({**BACKBONE, "kwargs": {**SMALL, "width": 8}})
    with pytest.raises(RunError, match="KD531") as caught:
        load_weights(wide, path)
    assert "mis-shaped" in str(caught.value) and "unexpected" not in str(caught.value)


def test_a_cut_teacher_refuses_what_lies_inside_its_modules(tmp_path: Path) -> None:
    cut = teacher(BACKBONE)
    longer = network({**BACKBONE, "kwargs": {**SMALL, "layers": [1, 1, 1, 2]}})
    head = {"head.classifier.bias": torch.ones(5)}
    with pytest.raises(RunError, match=r"unexpected: backbone\.layer4\.1") as caught:
        load_weights(cut, saved(longer, tmp_path, **head))
    assert "head" not in str(caught.value)
    bare = saved(longer.backbone, tmp_path, **{"fc.bias": torch.ones(5)})
    with pytest.raises(RunError, match=r"unexpected: layer4\.1"):
        load_weights(cut, bare)
    bare = saved(teacher(BACKBONE).backbone, tmp_path, **{"fc.bias": torch.ones(5)})
    told = ["1 tensor of `fc` is not used: the teacher's list has no such module"]
    assert load_weights(cut, bare) == told


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    cut = teacher(BACKBONE)
    state = {f"head.{number}": torch.ones(1) for number in range(200)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RunError, match=r"missing: .* unexpected: head\.0"):
        load_weights(cut, tmp_path / "w.pt")
    empty = teacher({"name": "post", "type": "base_cls_postprocess"})
    with pytest.raises(RunError, match="unexpected"):
        load_weights(empty, tmp_path / "w.pt")


@pytest.mark.parametrize(
    "model",
    [
        {"name": "model", "type": "cifar_resnet8"},
        {"name": "model", "type": "torchvision.ssdlite320_mobilenet_v3_large", "kwargs": {"num_classes": 2}},
    ],
    ids=["classifier", "detector"],
)
def test_whole_models_are_not_cut(model: dict[str, Any], tmp_path: Path) -> None:
    net = teacher(model)
    with pytest.raises(RunError, match=r"1 unexpected: (model\.)?extra"):
        load_weights(net, saved(net, tmp_path, **{"model.extra.weight": torch.ones(1)}))
    (notice,) = load_weights(net, saved(net, tmp_path, **{"criterion.weight": torch.ones(1)}))
    assert notice.endswith(
        "`model.` is taken off the names of its tensors; 1 other is not used: criterion.weight"
    )


def test_counters_and_training_helpers_may_be_absent(tmp_path: Path) -> None:
    one = small()
    state = {k: v for k, v in one.state_dict().items() if not k.endswith("num_batches_tracked")}
    adapt = {"name": "adapt", "type": "ADAP", "kwargs": {"outplanes": 8, "out_layers": [0]}}
    head = {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 5}}
    net = network(BACKBONE, adapt, head)
    fit_weights(net, state, "exported")
    assert equal(one.backbone, net.backbone)


def test_pretraining_may_leave_the_classifier(tmp_path: Path) -> None:
    net, other = small(), small(7)
    classifier = net.head.classifier.weight.clone()
    notices = load_weights(net, saved(other, tmp_path), mode="pretrain")
    assert equal(other.backbone, net.backbone)
    assert torch.equal(net.head.classifier.weight, classifier)
    assert len(notices) == 1
    assert "head.classifier.weight, head.classifier.bias: random" in notices[0]
    net = small()
    notices = load_weights(net, saved(other, tmp_path, drop="head"), mode="pretrain")
    assert equal(other.backbone, net.backbone)
    assert "head.classifier.weight" in notices[0]


def test_pretraining_takes_a_bare_imagenet_file(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18()
    net = network({"name": "backbone", "type": "resnet18"})
    notices = load_weights(net, saved(theirs, tmp_path), mode="pretrain")
    assert torch.equal(net.backbone.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert "holds fc.weight, fc.bias, which the network has not" in notices[0]


def test_pretraining_never_loads_a_module_by_half(tmp_path: Path) -> None:
    net = small()
    for path in (
        saved(small(), tmp_path, drop="backbone.layer3"),
        saved(small(width=8), tmp_path),
        saved(torch.nn.Linear(2, 2), tmp_path),
    ):
        with pytest.raises(RunError, match="KD531"):
            load_weights(net, path, mode="pretrain")


def test_the_comparison_needs_shapes_alone() -> None:
    net = small()
    shapes = {key: tuple(value.shape) for key, value in small().state_dict().items()}
    assert not misfit(net, shapes)
    assert misfit(net, {**shapes, "more": (1,)}).unexpected == ("more",)


def test_checking_says_what_loading_would(tmp_path: Path) -> None:
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    path = saved(small(7), tmp_path)
    with pytest.raises(SpecError, match="KD531"):
        check_weights(net, path, where=("mimic",))
    notices = check_weights(net, path, mode="pretrain")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert notices == load_weights(net, path, mode="pretrain") != []
    assert check_weights(small(7), path) == []


def test_names_from_a_file_cannot_command_a_terminal() -> None:
    with pytest.raises(RunError) as caught:
        fit_weights(small(), {"\x1b[2Jodd\n": torch.ones(1)}, "w")
    assert "?[2Jodd?" in str(caught.value)


def refused_kinds(state: dict[str, torch.Tensor], folder: Path, suffix: str) -> str:
    """What `train` and `validate` say, which is the same."""
    path = folder / f"w.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    said = []
    for use in (load_weights, check_weights):
        with pytest.raises(RunError, match="KD538") as caught:
            use(net, path)
        said.append(caught.value.diagnostics[0].message)
    assert said[0] == said[1]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return said[0]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "dtype, word", [(torch.int32, "integer"), (torch.int8, "integer"), (torch.complex64, "complex")]
)
def test_numbers_of_another_kind_are_refused(
    dtype: torch.dtype, word: str, suffix: str, tmp_path: Path
) -> None:
    state = dict(small().state_dict())
    key = next(k for k in state if k.endswith("conv1.weight") or "layer0" in k)
    state[key] = (10 * state[key]).to(dtype)
    said = refused_kinds(state, tmp_path, suffix)
    assert f"are {word} numbers where the network has floating ones: {key}" in said


def test_floating_numbers_of_other_widths_are_read_unless_they_become_infinite(tmp_path: Path) -> None:
    one = small()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        state = {k: v.to(dtype) if v.is_floating_point() else v.int() for k, v in one.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        other = small()
        assert load_weights(other, tmp_path / "w.pt") == []
        tolerance = {"atol": 0.0, "rtol": 0.0} if dtype == torch.float64 else {"atol": 1e-2, "rtol": 1e-2}
        for key, value in other.state_dict().items():
            assert torch.allclose(value, one.state_dict()[key], **tolerance)
    key = "head.classifier.weight" if "head.classifier.weight" in state else next(iter(state))
    state = {k: v.double() if v.is_floating_point() else v for k, v in one.state_dict().items()}
    state[key] = torch.full_like(state[key], 1e300)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RunError, match=f"too large for the network's numbers: {key}"):
        load_weights(small(), tmp_path / "w.pt")
