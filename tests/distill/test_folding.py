"""A folded teacher shows what it showed before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.distill.folding import fold
from kdcli.distill.taps import Taps
from kdcli.distill.teacher import Teacher
from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec


def learned(net: nn.Module) -> None:
    """BatchNorms with statistics and weights of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -0.5),
            ):
                assert tensor is not None
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))


@pytest.mark.parametrize(
    ("kind", "kwargs", "tap", "norms"),
    [
        ("cifar_resnet8", {"num_classes": 5}, "model.layer2", 9),
        (
            "resnet_custom",
            {
                "block": "bottleneck",
                "layers": [1, 1, 1, 1],
                "multiplier": 0.125,
                "deep_stem": True,
                "avg_down": True,
            },
            "model.layer3",
            19,
        ),
        ("torchvision.mobilenet_v2", {"num_classes": 5, "width_mult": 0.25}, "model.features.5", 52),
    ],
)
def test_outputs_are_equal_and_names_stay(kind: str, kwargs: dict[str, object], tap: str, norms: int) -> None:
    torch.manual_seed(0)
    net = build_network([ModuleSpec(name="model", type=kind, kwargs=kwargs)], path=("teachers", "teacher0"))
    learned(net)
    layers = [name for name, _ in net.named_modules()]
    batch = {"image": torch.randn(2, 3, 32, 32)}
    with Taps(net, [tap], outputs=()) as taps:
        teacher = Teacher("teacher0", taps)
        before = teacher.learn(batch).features[tap]
        whole = net(batch)
        assert fold(teacher, batch) == norms
        after = teacher.view(batch).features[tap]
        again = net(batch)
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    assert torch.allclose(before, after, atol=1e-5, rtol=1e-5)
    for name, value in whole.items():
        for one, other in zip(
            *([x] if isinstance(x, Tensor) else list(x) for x in (value, again[name])), strict=True
        ):
            if isinstance(one, Tensor):
                assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)
    assert [name for name, _ in net.named_modules()] == layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_under_autocast_is_folded_as_one_in_float32(dtype: torch.dtype) -> None:
    """Its own precision rounds by more than the folding may move a feature: that decides nothing."""
    torch.manual_seed(0)
    net = build_network(
        [ModuleSpec(name="model", type="cifar_resnet8", kwargs={"num_classes": 5})],
        path=("teachers", "teacher0"),
    )
    learned(net)
    batch = {"image": torch.randn(2, 3, 32, 32)}
    with Taps(net, ["model.layer2"], outputs=("logits",)) as taps:
        teacher = Teacher("teacher0", taps, autocast=torch.autocast("cpu", dtype=dtype))
        before = teacher.learn(batch)
        assert fold(teacher, batch) == 9
        after = teacher.view(batch)
    feature = after.features["model.layer2"]
    assert isinstance(feature, Tensor) and feature.dtype == before.outputs["logits"].dtype == dtype
    assert torch.allclose(before.outputs["logits"], after.outputs["logits"], rtol=0.1, atol=0.05)


def test_nothing_is_folded_where_a_tap_reads_between() -> None:
    net = Network(
        {
            "model": nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            )
        }
    )
    learned(net)
    batch = {"image": torch.randn(2, 3, 8, 8)}
    with Taps(net, ["model.0", "model.4:in"], outputs=()) as taps:
        teacher = Teacher("teacher0", taps)
        teacher.learn(batch)
        assert fold(teacher, batch) == 0


class Twice(nn.Module):
    """A convolution whose output is read beside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> Tensor:
        out = self.conv(image)
        return torch.flatten(self.norm(out) + out, 1)


def test_what_would_change_is_undone() -> None:
    net = Network({"model": Twice()})
    learned(net)
    before = copy.deepcopy(net.state_dict())
    batch = {"image": torch.randn(2, 3, 8, 8)}
    with Taps(net, ["logits"], outputs=()) as taps:
        teacher = Teacher("teacher0", taps)
        teacher.learn(batch)
        assert fold(teacher, batch) == 0
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
