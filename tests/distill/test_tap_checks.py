"""A feature that a loss does not take is told at its name, with the layer that gives one that is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcli.check.check import CheckOptions, check
from kdcli.distill.layouts import Layout
from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.terms import TapSide
from kdcli.errors import Diagnostic, SpecError
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, network, spec_with
from tests.training.runs import run_of

STUDENT = ("mimic", "jobs", "mimic_job0", "student", "mimic_name", 0)
THEIRS = ("mimic", "jobs", "mimic_job0", "teachers", "teacher0", "mimic_name", 0)

CASES = [
    ("ab", "model.layer2", "comes out of one", "name `model.layer2.0.relu:in`"),
    ("ofd", "model.layer1", "comes out of one", "name `model.layer1.0.relu:in`"),
    ("crd", "model.layer3", "takes a pooled vector [B, D]", "`model.fc:in`"),
    ("cc", "model.layer3", "takes a pooled vector [B, D]", "`model.fc:in`"),
    ("ft", "model.fc:in", "takes maps [B, C, H, W]", "`model.avgpool:in`"),
    ("simkd", "model.fc:in", "takes maps [B, C, H, W]", "`model.avgpool:in`"),
    ("dkd", "model.layer3", "compares logits [B, K]", "name `logits`"),
]


def found(name: str, tap: str, **more: Any) -> list[Diagnostic]:
    mimic = mimic_of(name, TEACHER)
    mimic["student"]["mimic_name"] = mimic["teacher0"]["mimic_name"] = [tap]
    parsed = spec_with(mimic, **more)
    with pytest.raises(SpecError) as caught, run_of(parsed):
        pass
    told = [f for f in check(parsed, CheckOptions()).findings if f.severity == "error"]
    assert {(f.code, f.message) for f in told} >= {(d.code, d.message) for d in caught.value.diagnostics}
    return list(caught.value.diagnostics)


@pytest.mark.parametrize(("name", "tap", "message", "help"), CASES)
def test_both_networks_layers_are_told(name: str, tap: str, message: str, help: str) -> None:
    diagnostics = found(name, tap)
    assert [d.path for d in diagnostics] == [STUDENT, THEIRS]
    for diagnostic in diagnostics:
        assert diagnostic.code == "KD451"
        assert message in diagnostic.message and f"`{tap}`" in diagnostic.message
        assert help in (diagnostic.help or "")


def test_a_relu_that_runs_twice_is_named_with_its_call() -> None:
    resnet = {"name": "model", "type": "torchvision.resnet18", "kwargs": {"num_classes": 4}}
    data = {"type": "fake", "kwargs": {"num_samples": 8, "num_classes": 4, "shape": [3, 32, 32]}}
    data["kwargs"]["transformer"] = [{"type": "to_tensor"}]
    sides = {side: {"dataset": data} for side in ("train", "test")}
    sampler = {"type": "base", "kwargs": {"batch_size": 4}}
    dataset = {**sides, "batch_sampler": sampler}
    diagnostics = found("ab", "model.layer1", net=resnet, teacher0=resnet, dataset=dataset)
    assert "name `model.layer1.1.relu:in[1]`" in (diagnostics[0].help or "")


def test_what_a_loss_refuses_when_it_is_made_is_told_at_the_layer() -> None:
    mimic = mimic_of("mgd", TEACHER)
    mimic["teacher0"]["mimic_name"] = ["model.layer2"]
    with pytest.raises(SpecError, match="maps of one size") as caught, run_of(spec_with(mimic)):
        pass
    assert caught.value.diagnostics[0].path == STUDENT


def test_a_pooled_map_is_a_vector() -> None:
    mimic = mimic_of("crd", TEACHER)
    mimic["student"]["mimic_name"] = mimic["teacher0"]["mimic_name"] = ["model.avgpool"]
    with run_of(spec_with(mimic, net=network([2, 2, 4, 6]))) as run:
        assert run.joined.pairs[0].student_shape == "[B, 6, 1, 1]"


@pytest.mark.parametrize("method", ["FGD", "FRS", "DeFeat"])
def test_tokens_under_a_mask_are_refused(method: str) -> None:
    shapes = {"map": torch.Size((2, 8, 4, 4)), "tokens": torch.Size((2, 17, 8))}
    made: dict[str, Any] = {
        kind: TapSide(name=kind, tap=kind, number=3, shape=shape, layout=Layout(kind=kind, channel_axis=1))  # type: ignore[arg-type]
        for kind, shape in shapes.items()
    }
    context: Any = SimpleNamespace(
        job=SimpleNamespace(mimic_ins_type=method), path=("mimic",), nearest_map=lambda *_: "name the neck"
    )
    mimicker = object.__new__(MIMICKERS[method].load())
    with pytest.raises(SpecError) as caught:
        mimicker.add(context, "loss", "teacher0", [made["map"]], [made["tokens"]], masked=True)
    (told,) = caught.value.diagnostics
    assert told.code == "KD451" and told.path == ("mimic", "teachers", "teacher0", "mimic_name", 3)
    assert f"`{method}` marks places of maps" in told.message and "[B, 17, 8]" in told.message
