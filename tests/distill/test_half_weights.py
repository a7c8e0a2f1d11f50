"""Teachers' weights held in half precision: the same bits as autocast's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.distill.half_weights import hold_half
from kdcli.distill.taps import Taps
from kdcli.distill.teacher import Teacher
from kdcli.models.network import build_network
from kdcli.parallel.devices import autocast_for
from kdcli.spec.schema import ModuleSpec

CPU = torch.device("cpu")


class Standardized(nn.Module):
    """A layer that reads its convolution's weights itself, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        weight = self.conv.weight
        return nn.functional.conv2d(image, (weight - weight.mean()) * 1000)


def teacher_of(net: nn.Module, taps: Taps, precision: str) -> Teacher:
    return Teacher("teacher0", taps, precision=precision, autocast=autocast_for(precision, CPU))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_answers_stay_the_same_bits(precision: str) -> None:
    torch.manual_seed(0)
    modules = [
        ModuleSpec(name="model", type="cifar_resnet8", kwargs={"num_classes": 5, "widths": [4, 4, 8, 8]})
    ]
    net = build_network(modules, path=("teachers", "teacher0"))
    batch: dict[str, Any] = {"image": torch.randn(4, 3, 16, 16)}
    with Taps(net, ["model.layer2"]) as taps:
        teacher = teacher_of(net, taps, precision)
        teacher.learn(batch)
        before = teacher.view(batch)
        assert hold_half(teacher, batch)
        after = teacher.view(batch)
    assert all(torch.equal(before.outputs[name], after.outputs[name]) for name in before.outputs)
    assert torch.equal(before.features["model.layer2"], after.features["model.layer2"])  # type: ignore[arg-type]
    held = {type(m): p.dtype for m in net.modules() for p in m._parameters.values() if p is not None}
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    assert (held[nn.Conv2d], held[nn.Linear], held[nn.BatchNorm2d]) == (half, half, torch.float32)


def test_weights_that_are_read_in_another_way_stay() -> None:
    net = Standardized()
    batch = {"image": torch.randn(2, 3, 8, 8)}

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net

        def forward(self, outputs: dict[str, Any]) -> dict[str, Any]:
            return {"logits": self.model(outputs["image"]).mean((2, 3))}

    with Taps(Whole(), ["model"]) as taps:
        teacher = teacher_of(net, taps, "bf16")
        before = teacher.learn(batch)
        assert not hold_half(teacher, batch)
        assert net.conv.weight.dtype == torch.float32
        assert torch.equal(before.outputs["logits"], teacher.view(batch).outputs["logits"])


def test_fp32_teachers_are_left_alone() -> None:
    net = nn.Linear(2, 2)
    with Taps(net, ()) as taps:
        assert hold_half(Teacher("teacher0", taps), {"image": torch.ones(1, 2)})
    assert net.weight.dtype == torch.float32
