"""Taps: what a layer returned is what is captured, and a network runs no further than it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.distill.taps import Tap, Taps, elements_of
from kdcli.errors import SpecError
from kdcli.models.network import Network


class Block(nn.Module):
    """Conv, norm, then a ReLU that works in place on the norm's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.bn(self.conv(x)))
        return result


class Net(nn.Module):
    """Two blocks in a ModuleList, a head that two levels share, and a branch that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Conv2d(2, 3, 1)
        self.unused = nn.Conv2d(2, 2, 1)
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> dict[str, Any]:
        levels = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            self.ran.append(f"block{index}")
            levels.append(x)
        scores = [self.head(level) for level in levels]
        self.ran.append("head")
        return {"levels": levels, "logits": scores[-1].mean((2, 3))}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {"image": torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))}


def network() -> Network:
    torch.manual_seed(0)
    return Network({"net": Net()}).eval()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b", ("a.b", False, None)),
        ("a.b:in", ("a.b", True, None)),
        ("a.b[2]", ("a.b", False, 2)),
        ("a.b:in[1]", ("a.b", True, 1)),
    ],
)
def test_reading_a_tap(text: str, expected: tuple[str, bool, int | None]) -> None:
    tap = Tap.parse(text)
    assert (tap.path, tap.at_input, tap.index) == expected


@pytest.mark.parametrize("text", ["", "a b", "a[", "a[x]", "a:out", "[1]"])
def test_what_is_no_tap(text: str) -> None:
    with pytest.raises(SpecError, match="not a layer path"):
        Tap.parse(text)


def test_a_feature_changed_in_place_is_captured_as_it_was_returned(batch: dict[str, Tensor]) -> None:
    net = network()
    block = net.net.blocks[0]
    with torch.no_grad():
        before = block.bn(block.conv(batch["image"]))
    with Taps(net, ["net.blocks.0.bn", "net.blocks.0.relu"]) as taps:
        taps.learn(batch)
        assert taps.changed_in_place == {"net.blocks.0.bn"}
        features = taps.view(batch).features
    assert torch.equal(features["net.blocks.0.bn"], before)
    assert (features["net.blocks.0.bn"] < 0).any()
    assert torch.equal(features["net.blocks.0.relu"], before.clamp(min=0))


def test_an_input_is_tapped_before_the_layer_changes_it(batch: dict[str, Tensor]) -> None:
    net = network()
    with Taps(net, ["net.blocks.0.relu:in", "net.blocks.0.bn"]) as taps:
        taps.learn(batch)
        features = taps.view(batch).features
    assert torch.equal(features["net.blocks.0.relu:in"], features["net.blocks.0.bn"])


def test_a_layer_that_runs_twice_gives_a_list_and_an_index_picks(batch: dict[str, Tensor]) -> None:
    net = network()
    with Taps(net, ["net.head", "net.head[1]"]) as taps:
        taps.learn(batch)
        features = taps.view(batch).features
    assert isinstance(features["net.head"], list) and len(features["net.head"]) == 2
    assert torch.equal(features["net.head[1]"], features["net.head"][1])


def test_an_output_is_tapped_by_its_name(batch: dict[str, Tensor]) -> None:
    with Taps(network(), ["logits", "levels[0]"]) as taps:
        taps.learn(batch)
        view = taps.view(batch)
    assert view.features["logits"].shape == (2, 3) and view.features["levels[0]"].shape == (2, 2, 4, 4)


def test_a_network_stops_after_the_deepest_layer_that_is_needed(batch: dict[str, Tensor]) -> None:
    net = network()
    with Taps(net, ["net.blocks.0", "net.blocks.1"], outputs=()) as taps:
        taps.learn(batch)
        net.net.ran.clear()
        taps.view(batch)
        assert net.net.ran == ["block0"]
        taps.require(["net.blocks.0"], ())
        net.net.ran.clear()
        assert set(taps.view(batch).features) == {"net.blocks.0"}
        assert net.net.ran == []
        taps.require(["net.blocks.0"], None)
        assert "logits" in taps.view(batch).outputs


def test_a_stopped_view_equals_the_whole_one_and_carries_gradient(batch: dict[str, Tensor]) -> None:
    net = network().train()
    with Taps(net, ["net.blocks.0"], outputs=()) as short, Taps(net, ["net.blocks.0"]) as whole:
        short.learn(batch)
        whole.learn(batch)
        one = short.view(batch).features["net.blocks.0"]
        other = whole.view(batch).features["net.blocks.0"]
    assert torch.equal(one, other)
    one.sum().backward()
    assert net.net.blocks[0].conv.weight.grad is not None
    assert net.net.blocks[1].conv.weight.grad is None


def test_hooks_are_gone_after_the_block_even_after_an_error(batch: dict[str, Tensor]) -> None:
    net = network()
    with pytest.raises(ZeroDivisionError), Taps(net, ["net.head"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_hooks_are_silent_outside_a_view(batch: dict[str, Tensor]) -> None:
    net = network()
    with Taps(net, ["net.blocks.0"], outputs=()) as taps:
        taps.learn(batch)
        assert "logits" in net(batch)


def test_a_number_beyond_a_sequential_is_no_feature() -> None:
    net = Network({"net": nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())})
    with pytest.raises(SpecError) as caught:
        Taps(net, ["net.7"])
    assert "[7]" not in (caught.value.diagnostics[0].help or "")


def test_how_several_features_are_named() -> None:
    assert elements_of("a.b", 2) == "`a.b[0]`, `a.b[1]`"
    assert elements_of("a.b:in", 5) == "`a.b:in[0]` ... `a.b:in[4]`"


@pytest.mark.parametrize(
    ("tap", "code", "said"),
    [
        ("net.blocks", "KD421", "net.blocks.0"),
        ("net.block", "KD422", "net.blocks"),
        ("net.blocks.0.bm", "KD422", "net.blocks.0.bn"),
        ("net.unused", "KD424", ""),
        ("logit", "KD422", "logits"),
        ("net.head.1", "KD422", "did you mean `net.head[1]`?"),
        ("net.head.1:in", "KD422", "did you mean `net.head:in[1]`?"),
        ("net.blocks.2", "KD422", "did you mean `net.blocks.1`"),
        ("net.head[5]", "KD423", "0 to 1"),
    ],
)
def test_a_wrong_tap_is_told_with_what_is_right(
    tap: str, code: str, said: str, batch: dict[str, Tensor]
) -> None:
    with pytest.raises(SpecError) as caught, Taps(network(), [tap], where={tap: ("here",)}) as taps:
        taps.learn(batch)
    found = caught.value.diagnostics[0]
    assert found.code == code and found.path == ("here",)
    assert said in (found.help or "") + found.message
