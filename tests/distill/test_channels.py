"""Where a network keeps its channels, beside what two images of unlike sizes show."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as vision
from torch import Tensor, nn

from kdcli.distill.channels import ChannelTrace
from kdcli.distill.layouts import layout_of
from kdcli.distill.taps import Taps
from kdcli.models.network import Network


def swin(**more: Any) -> nn.Module:
    sizes: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2]}
    return vision.SwinTransformer(**sizes, window_size=[2, 2], num_classes=4, **more)


def swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    return swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    return vision.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=4)


def of_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=4)  # type: ignore[no-any-return]


class Opaque(nn.Module):
    """Nothing but products: no operation tells where the channels are."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.end = last, nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        patches = torch.einsum("bchw,cd->bhwd" if self.last else "bchw,cd->bdhw", image, torch.ones(3, 5))
        return self.end(patches).flatten(1)  # type: ignore[no-any-return]


def features(net: nn.Module, image: Tensor) -> tuple[dict[str, Tensor], ChannelTrace]:
    """What every layer gives that gives one tensor, and what was seen of it."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad(), ChannelTrace() as trace:
        for name, module in net.named_modules():

            def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    found[name] = output

            stack.callback(module.register_forward_hook(keep).remove)
        net.eval()(image)
    return found, trace


@pytest.mark.parametrize(
    "make",
    [
        *(swin, swin_v2, convnext, vision.shufflenet_v2_x0_5, vision.squeezenet1_1),
        *(of_timm(name) for name in ("convnext_atto", "mambaout_femto", "edgenext_xx_small", "pvt_v2_b0")),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_the_axes_that_grow_with_the_image_are_its_places(
    make: Callable[[], nn.Module], size: tuple[int, int]
) -> None:
    net, other = make(), (128, 192)
    one, trace = features(net, torch.rand(1, 3, *size))
    two, _ = features(net, torch.rand(1, 3, *other))
    compared = 0
    for name, feature in one.items():
        if feature.dim() == two[name].dim() == 4:
            grown = [axis for axis in (1, 2, 3) if feature.shape[axis] != two[name].shape[axis]]
            if grown in ([1, 2], [2, 3]):
                compared += 1
                assert layout_of(feature, None, trace, size).channels_last == (grown == [1, 2]), name
    assert compared > 5


@pytest.mark.parametrize(
    ("name", "path", "last"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.1", True),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj", False),
        ("swinv2_cr_tiny_224", "stages.1.blocks.0", True),
        ("swinv2_cr_tiny_224", "stages.1", False),
    ],
)
def test_timms_swins_of_one_size(name: str, path: str, last: bool) -> None:
    net = of_timm(name)()
    with Taps(Network({"model": net.eval()}), [f"model.{path}"]) as taps:
        view = taps.learn({"image": torch.rand(1, 3, 224, 224)})
    (layout,) = view.layouts[f"model.{path}"]
    assert (layout.kind, layout.channels_last) == ("map", last)
    assert view.features[f"model.{path}"].shape[2:] == layout.grid  # type: ignore[union-attr]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (12, 6), (1, 1)])
def test_where_no_operation_tells_the_proportions_of_the_image_do(last: bool, size: tuple[int, int]) -> None:
    found, trace = features(Opaque(last), torch.rand(2, 3, *size))
    assert trace.axis(found["end"]) is None
    assert layout_of(found["end"], None, trace, size).channels_last == last
    assert not layout_of(found["end"], None, trace, None).channels_last


def test_a_feature_between_two_turns_is_known_by_what_reads_it() -> None:
    """A sum that only a later norm reads, through windows, a roll, a pad and movedim."""
    with torch.no_grad(), ChannelTrace() as trace:
        image = torch.rand(2, 3, 6, 6)
        turned = image.movedim(1, -1)
        summed = turned * 2 + 1
        rolled = torch.nn.functional.pad(summed, (0, 0, 0, 2)).roll(1, 1)[:, :6, :6, :]
        windows = rolled.reshape(2, 3, 2, 3, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 3)
        torch.nn.functional.layer_norm(windows, (3,))
    assert trace.axis(summed) == "last" and trace.axis(image) == "first"


def test_a_mixer_turns_its_tokens_for_a_linear_layer() -> None:
    """The norm is sure, so the linear layer over positions, [B, C, H, W], makes no map channels last."""
    with torch.no_grad(), ChannelTrace() as trace:
        image = torch.rand(2, 3, 5, 4)
        mixed = torch.nn.functional.linear(image, torch.rand(4, 4))
        torch.nn.functional.conv2d(mixed, torch.rand(3, 3, 1, 1))
    assert trace.axis(mixed) == trace.axis(image) == "first"


class Turns(nn.Module):
    """Moves its axes in ways that torch takes and Python's ints are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.back = nn.Conv2d(4, 5, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.conv(image)
        last = first.permute(tuple(np.argsort([0, 3, 1, 2])))
        swapped = first.transpose(np.int64(1), np.int64(3))
        moved = torch.movedim(first, destination=3, source=1)
        lettered = first.transpose(torch.tensor(1), torch.tensor(3))
        return [last, swapped, moved, lettered, self.back(last.permute(0, 3, 1, 2))]


def test_axes_named_by_other_kinds_of_numbers() -> None:
    with torch.no_grad(), ChannelTrace() as trace:
        last, swapped, moved, lettered, back = Turns()(torch.zeros(1, 3, 6, 8))
    assert [trace.axis(x) for x in (last, swapped, moved, lettered)] == ["last"] * 4
    assert trace.axis(back) == "first"


def test_a_norm_over_the_width_is_no_word_on_channels() -> None:
    """As spectrogram networks have it: the convolutions around it say where the channels are."""
    first, norm, second = nn.Conv2d(1, 16, 3, padding=1), nn.LayerNorm(16), nn.Conv2d(16, 8, 3)
    with torch.no_grad(), ChannelTrace() as trace:
        made = first(torch.zeros(2, 1, 16, 16))
        normed = norm(made)
        second(normed.relu())
    assert trace.axis(made) == trace.axis(normed) == "first"
