"""Which parameter gets which learning rate and weight decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdcli.errors import SpecError
from kdcli.optimizers.parameter_groups import parameter_groups
from kdcli.spec.schema import OptimizerSpec, ParameterGroups
from kdcli.training.optim import build_optimizer


class Small(nn.Module):
    """A student as the trainee holds it, with a norm of each kind and a table that is no norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Module()
        self.student.conv = nn.Conv2d(3, 4, 3)
        self.student.bn = nn.BatchNorm2d(4)
        self.student.ln = nn.LayerNorm(4)
        self.student.fc = nn.Linear(4, 2, bias=False)
        self.student.bias_table = nn.Parameter(torch.zeros(2, 2))


def settings(pconfig: dict[str, Any], net: nn.Module) -> dict[str, dict[str, float]]:
    """The settings of each parameter by its name."""
    chosen = ParameterGroups.model_validate(pconfig)
    groups = parameter_groups(chosen, net, net.parameters(), ("trainer", "optimizer", "pconfig"))
    names = {id(p): name for name, p in net.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {
        names[id(p)]: {k: v for k, v in group.items() if k != "params"}
        for group in groups
        for p in group["params"]
    }


def test_norms_and_biases_by_their_layer_and_tables_by_their_name() -> None:
    none = {"weight_decay": 0.0}
    pconfig = {
        "bn_b": {"type": "bias", "kwargs": none},
        "bn_w": {"type": "weight", "kwargs": {"lr": 0.5}},
        "ln_w": {"type": "weight", "kwargs": none},
        "linear_b": {"type": "bias", "kwargs": none},
        "nodecay": ["bias_table"],
    }
    assert settings(pconfig, Small()) == {
        "student.conv.weight": {},
        "student.conv.bias": {},
        "student.bn.weight": {"lr": 0.5},
        "student.bn.bias": none,
        "student.ln.weight": none,
        "student.ln.bias": {},
        "student.fc.weight": {},
        "student.bias_table": none,
    }


def test_one_dimension_and_the_kind_of_layer_that_wins() -> None:
    pconfig = {"nodecay": ["ndim_is1"], "bn_w": {"type": "weight", "kwargs": {"weight_decay": 0.3}}}
    given = settings(pconfig, Small())
    assert given["student.conv.bias"] == given["student.ln.weight"] == {"weight_decay": 0.0}
    assert given["student.bn.weight"] == {"weight_decay": 0.3}
    assert given["student.conv.weight"] == {}


def test_a_learning_rate_falls_from_the_head_to_the_embedding() -> None:
    net = nn.Module()
    net.backbone = nn.Module()
    net.backbone.cls_token = nn.Parameter(torch.zeros(1))
    net.backbone.layers = nn.ModuleDict({f"encoder_{i}": nn.Linear(1, 1, bias=False) for i in range(2)})
    net.head = nn.Linear(1, 1, bias=False)
    given = settings({"layer_decay": {"type": "vit_base", "value": 0.5, "base_lr": 0.8}}, net)
    # Two layers: 0.8 * 0.5 ** (2 - layer), the embedding being layer 0, encoder_i layer i + 1, the head 2.
    assert {name: own["lr"] for name, own in given.items()} == {
        "backbone.cls_token": pytest.approx(0.2),
        "backbone.layers.encoder_0.weight": pytest.approx(0.4),
        "backbone.layers.encoder_1.weight": pytest.approx(0.8),
        "head.weight": pytest.approx(0.8),
    }


def test_layers_that_are_not_there() -> None:
    with pytest.raises(SpecError, match="KD231"):
        settings({"layer_decay": {"type": "vit_base", "value": 0.5, "base_lr": 0.8}}, Small())


def test_an_optimizer_decays_what_it_is_told_to() -> None:
    net = Small()
    pconfig = ParameterGroups.model_validate({"bn_w": {"type": "weight", "kwargs": {"weight_decay": 0.0}}})
    spec = OptimizerSpec(type="SGD", kwargs={"lr": 0.1, "weight_decay": 0.5}, pconfig=pconfig)
    optimizer = build_optimizer(spec, list(net.parameters()), ("trainer", "optimizer"), net)
    net.student.ln.weight.grad = torch.zeros(4)  # type: ignore[union-attr]
    net.student.bn.weight.grad = torch.zeros(4)  # type: ignore[union-attr]
    optimizer.step()
    # Without a gradient a weight of 1 becomes 1 - 0.1 * 0.5.
    assert net.student.ln.weight.tolist() == pytest.approx([0.95] * 4)  # type: ignore[union-attr]
    assert net.student.bn.weight.tolist() == [1.0] * 4  # type: ignore[union-attr]
