"""Layouts, proved by coordinates as features: each position holds its own place in the image, and keeps it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
import torchvision.models as vision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kdcli.distill.adapters import AutoAdapter, ResizeAdapter
from kdcli.distill.build_terms import _form, _in_form
from kdcli.distill.layouts import Layout, fits, grids, in_order, layout_of, part_of, read_as
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.distill.taps import Tap, Taps
from kdcli.distill.terms import TapSide
from kdcli.errors import KdError, RunError, SpecError
from kdcli.models.feature_layouts import FeatureLayout, sizes_that_fit, stated_layout
from kdcli.models.network import Network
from kdcli.spec.schema import LayoutSpec

Size = tuple[int, int]
MAIN = re.compile(
    r"model\.(blocks\.\d+|stages\.\d+|layers\.\d+|features\.\d+|norm|encoder\.layers\.encoder_layer_\d+"
    r"|stages\.\d+\.blocks\.\d+|layers\.\d+\.blocks\.\d+|blocks\.\d+\.layers\.\d+)"
)
"""The layers that people name."""


def network(name: str, size: Size) -> nn.Module:
    """A model of timm, or of torchvision (`tv:`), on the meta device, for images of this size."""
    with torch.device("meta"):
        if name.startswith("tv:"):
            more = {"vit": {"image_size": size[0]}, "max": {"input_size": size}}.get(name[3:6], {})
            return vision.get_model(name[3:], weights=None, num_classes=4, **more)
        timm = pytest.importorskip("timm")
        for more in ({"img_size": size}, {"input_size": size}, {}):
            try:
                made = timm.create_model(name, num_classes=4, **more)
                assert isinstance(made, nn.Module)
                return made
            except TypeError:
                continue
    raise AssertionError(name)


def shapes(name: str, size: Size) -> tuple[Network, dict[str, torch.Size]]:
    """The network, and what each of its layers gives that people name."""
    net = Network({"model": network(name, size)}).eval()
    seen: dict[str, torch.Size] = {}
    for path, module in net.named_modules():
        if MAIN.fullmatch(path):

            def note(_module: nn.Module, _args: Any, output: Any, path: str = path) -> None:
                if isinstance(output, Tensor) and output.dim() in (3, 4):
                    seen[path] = output.shape

            module.register_forward_hook(note)
    with torch.no_grad():
        net({"image": torch.zeros(2, 3, *size, device="meta")})
    for module in net.modules():
        module._forward_hooks.clear()
    return net, seen


def centres(rows: int, columns: int) -> Tensor:
    """[rows, columns, 2]: the centre (y, x) of each position, of an image from 0 to 1."""
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def coordinates(net: Network, path: str, sizes: Mapping[Size, torch.Size], size: Size) -> Tensor:
    """A feature as the layer gives it, with two channels: where each position lies, told by how shapes grow.

    Tokens before the patches hold -9. sizes: the shape by the images' size: as they are, and twice as wide.
    """
    shape, wide = sizes[size], sizes[size[0], 2 * size[1]]
    if len(shape) == 4:
        (across,) = [axis for axis in (1, 2, 3) if shape[axis] != wide[axis]]
        places = centres(shape[across - 1], shape[across])
        return places[None] if across == 2 else places.permute(2, 0, 1)[None]
    patches = int(wide[1] - shape[1])
    rows = round(math.sqrt(patches * size[0] / size[1]))
    places = centres(rows, patches // rows).reshape(1, patches, 2)
    model: Any = net.get_submodule("model")
    if type(model).__name__ == "Hiera" and path != "model.norm":
        rows, columns = model.tokens_spatial_shape
        with torch.device("cpu"):
            places = model.unroll(centres(rows, columns).reshape(1, -1, 2))
        while (
            places.shape[1] > patches
        ):  # as its attention pools: over the first of the axes that were rolled
            places = places.reshape(1, 4, -1, 2).mean(1)
    return torch.cat((torch.full((1, shape[1] - patches, 2), -9.0), places), 1)


def _twice_as_wide(shape: torch.Size) -> torch.Size:
    if len(shape) == 3:
        return torch.Size((shape[0], 1 + 2 * 14 * 14, shape[2]))
    return torch.Size((*shape[:3], 2 * shape[3]))


def compared(feature: Tensor, layout: Layout) -> Tensor:
    """The feature as a map, as it is compared with another map."""
    return read_as(in_order(feature, layout), layout.handed_on, "grid")


def worst(made: Tensor, grid: Size, coarse: Size) -> float:
    """The largest error of a position in cells of the coarser grid."""
    error = (made[0].permute(1, 2, 0) - centres(*grid)).abs()
    return float((error * torch.tensor(coarse)).max())


FAMILIES = (
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"),
    *("beit_base_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"),
    *("eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"),
    *("vit_medium_patch16_reg4_gap_256", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("swinv2_cr_tiny_224", "maxvit_rmlp_nano_rw_256", "hiera_tiny_224", "convnext_atto", "convnextv2_atto"),
    *("xcit_nano_12_p16_224", "cait_xxs24_224", "pvt_v2_b0", "twins_pcpvt_small"),
    *("tv:vit_b_16", "tv:swin_t", "tv:swin_v2_t", "tv:maxvit_t", "tv:convnext_tiny"),
)
QUICK = (("hiera_tiny_224", True), ("tv:swin_t", True))
PATCH_14 = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224")


@pytest.mark.parametrize(
    ("name", "wide"),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
        for case in product(FAMILIES, (False, True))
    ],
)
def test_through_any_adapter_each_position_keeps_its_place(name: str, wide: bool) -> None:
    side = 112 if name in PATCH_14 else 256 if "256" in name else 224
    size = (side, 2 * side if wide else side)
    if name in ("tv:vit_b_16", "tv:maxvit_t"):
        if wide:
            pytest.skip("torchvision's ViT and MaxViT take square images only")
        net, one = shapes(name, size)
        # Twice as wide they can't be; as their papers have it the one has 14x14 tokens and a class token, the
        # other maps channels first.
        every = {path: {size: shape, (side, 2 * side): _twice_as_wide(shape)} for path, shape in one.items()}
    else:
        net, one = shapes(name, size)
        _, other = shapes(name, (size[0], 2 * size[1]))
        every = {path: {size: one[path], (size[0], 2 * size[1]): other[path]} for path in one}
    with Taps(net, one) as taps:
        layouts = taps.learn({"image": torch.zeros(2, 3, *size, device="meta")}).layouts
    looked_at = set()
    for path in one:
        if len(one[path]) == 3 and one[path][1] == 1:
            continue  # a class token alone
        (layout,) = layouts[path]
        if name == "hiera_tiny_224" and path == "model.norm":
            continue
        assert layout.kind == "map" or layout.in_grid, (path, one[path], layout)
        feature = coordinates(net, path, every[path], size)
        if (feature.shape, layout.grid) in looked_at:
            continue
        looked_at.add((feature.shape, layout.grid))
        made = compared(feature, layout)
        grid = (made.shape[2], made.shape[3])
        assert torch.allclose(made, centres(*grid).permute(2, 0, 1)[None], atol=1e-6), path
        for partner in product((5, 7, 16), (7, 16, 32)):
            coarse = (min(grid[0], partner[0]), min(grid[1], partner[1]))
            there, back = (2, 2, *grid), (2, 2, *partner)
            assert worst(ResizeAdapter(there, back)(made), partner, coarse) < 0.5
            auto = AutoAdapter(there, back, norm="none")
            conv: Any = auto.adapter
            with torch.no_grad():
                conv.conv.weight.copy_(torch.eye(2)[:, :, None, None])
                conv.conv.bias.zero_()
                assert worst(auto(made), partner, coarse) < 0.5
    assert looked_at


def tokens(prefix: int, grid: Size, **more: Any) -> Layout:
    return Layout(kind="tokens", channel_axis=2, prefix=prefix, grid=grid, **more)


def side(layout: Layout, shape: tuple[int, ...]) -> TapSide:
    return TapSide(name="x", tap="x", number=0, shape=torch.Size(shape), layout=layout)


MAP = side(Layout(kind="map", channel_axis=1), (2, 8, 7, 7))
VECTOR = side(Layout(kind="vector", channel_axis=1), (2, 8))
VIT = side(tokens(1, (4, 4)), (2, 17, 8))


@pytest.mark.parametrize(
    ("own", "other", "form"),
    [
        (VIT, VIT, "all"),
        (VIT, side(tokens(5, (4, 4)), (2, 21, 8)), "patches"),
        (VIT, side(tokens(0, (4, 4)), (2, 16, 8)), "patches"),
        (VIT, side(tokens(1, (7, 7)), (2, 50, 8)), "grid"),
        # As many tokens, in another order or with another prefix: by number they would be mixed up.
        (VIT, side(tokens(1, (4, 4), order=tuple(range(15, -1, -1))), (2, 17, 8)), "grid"),
        (side(tokens(4, (4, 4)), (2, 20, 8)), side(tokens(0, (4, 5)), (2, 20, 8)), "grid"),
        (VIT, MAP, "grid"),
        (VIT, VECTOR, "patches"),
        (MAP, VIT, "all"),
        (VIT, None, "all"),
        # Nothing is known of the other side: as many tokens are compared by number, as the user says.
        (VIT, side(Layout(kind="tokens", channel_axis=2), (2, 17, 8)), "all"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_what_of_tokens_is_compared_with_what(
    own: TapSide, other: TapSide | None, form: str, before: bool
) -> None:
    class Job:
        context = type("Context", (), {"before_layouts": before})
        assert MimicContext is not None

    expected = "all" if before and other is VECTOR else form
    read = _form(Job, own, other)  # type: ignore[arg-type]
    assert read == expected
    made = _in_form(own, read)
    if form == "grid":
        assert made.shape == (2, 8, *(own.layout.grid or ()))
    assert made.read(torch.zeros(own.shape)).shape == made.shape


def test_patches_in_another_order_are_read_in_that_of_the_image() -> None:
    order = (3, 1, 2, 0)
    feature = torch.tensor(
        [[[9.0], [3.0], [1.0], [2.0], [0.0]]]
    )  # a class token, then token i holds its place
    layout = tokens(1, (2, 2), order=order)
    assert read_as(feature, layout, "grid").tolist() == [[[[0.0, 1.0], [2.0, 3.0]]]]
    assert read_as(feature, layout, "patches").flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_grid_grows_with_the_image_and_no_other_number_fits() -> None:
    layout = tokens(1, (2, 4))
    assert read_as(torch.zeros(1, 33, 3), layout, "grid").shape == (1, 3, 4, 8)
    with pytest.raises(RunError, match="KD667"):
        read_as(torch.zeros(1, 10, 3), layout, "grid")


@pytest.mark.parametrize(
    ("count", "image", "found"),
    [
        (197, (224, 224), [(1, (14, 14))]),
        (196, (224, 224), [(0, (14, 14))]),
        (201, (224, 224), [(5, (14, 14))]),
        (393, (224, 448), [(1, (14, 28))]),
        (261, (224, 224), [(5, (16, 16))]),
        (1, (224, 224), []),
        (20, (64, 64), [(4, (4, 4)), (16, (2, 2))]),
        (58, (8, 8), []),
    ],
)
def test_grids_that_so_many_tokens_may_have(count: int, image: Size, found: list[Any]) -> None:
    assert sorted(grids(count, image)) == found


@pytest.mark.parametrize(
    ("size", "image", "fit"),
    [
        ((7, 7), (224, 224), True),
        ((56, 112), (224, 448), True),
        ((9, 9), (70, 70), True),
        ((12, 197), (224, 224), False),
        ((4, 5), (64, 64), False),
        ((8, 3), (64, 64), False),
        ((1, 1), (64, 64), True),
    ],
)
def test_sizes_of_maps(size: Size, image: Size, fit: bool) -> None:
    assert fits(size, image) == fit


class Latents(nn.Module):
    """As many tokens for every image: no grid, though 16 of them would fit one."""

    def __init__(self, grid: bool) -> None:
        super().__init__()
        self.grid, self.patch, self.end = grid, nn.Conv2d(3, 5, 16, 16), nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        patches = torch.einsum("bchw->bhwc", self.patch(image)).flatten(1, 2)
        return self.end(patches if self.grid else patches[:, :16] * 2).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("grid", [True, False])
def test_evidence_is_held_against_an_image_of_another_size(grid: bool) -> None:
    net = Network({"model": Latents(grid)}).eval()
    with Taps(net, ["model.end"]) as taps:
        (layout,) = taps.learn({"image": torch.rand(2, 3, 64, 64)}).layouts["model.end"]
        assert taps.counts == {"model.end": 1}
    assert (layout.grid, layout.known_from) == (((4, 4), "evidence") if grid else (None, None))


class Registers(nn.Module):
    """Patch tokens behind three others, which no number shows; it may say so itself."""

    def __init__(self, said: FeatureLayout | None = None) -> None:
        super().__init__()
        self.patch, self.end = nn.Conv2d(3, 5, 16, 16), nn.Identity()
        if said is not None:
            self.feature_layout = lambda image: said

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch(image).flatten(2).transpose(1, 2)
        return self.end(torch.cat((patches[:, :3] * 0, patches), 1)).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("said", "stated", "source"),
    [
        (FeatureLayout(prefix=3, class_token=True, grid=(4, 8)), None, "module"),
        (None, LayoutSpec(prefix=3, grid=(4, 8)), "spec"),
        (FeatureLayout(prefix=0, grid=(5, 7)), LayoutSpec(prefix=3, grid=(4, 8)), "spec"),
    ],
)
def test_parts_of_tokens_whose_layout_is_said(
    said: FeatureLayout | None, stated: LayoutSpec | None, source: str
) -> None:
    net = Network({"model": Registers(said)}).eval()
    names = ["end", "end:patches", "model.end:class", "end:prefix"]
    batch = {"image": torch.rand(2, 3, 64, 128)}
    with Taps(net, names, stated=dict.fromkeys(names, stated) if stated else None) as taps:
        learnt = taps.learn(batch)
        view = taps.view(batch)
    assert {name: tuple(f.shape[1:]) for name, f in view.features.items()} == {  # type: ignore[union-attr]
        "end": (35, 5),
        "end:patches": (32, 5),
        "model.end:class": (5,),
        "end:prefix": (3, 5),
    }
    assert learnt.names["end:patches"] == "model.end:patches"
    assert learnt.layouts["end"][0].known_from == source
    assert learnt.layouts["end:patches"][0].prefix == 0 and learnt.layouts["end:patches"][0].grid == (4, 8)
    assert learnt.layouts["model.end:class"][0].kind == "vector"
    whole = view.features["end"]
    assert isinstance(whole, Tensor)
    for name, part in (("end:patches", whole[:, 3:]), ("model.end:class", whole[:, 0])):
        assert torch.equal(view.features[name], part)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["patches", "class"])
def test_a_part_that_is_not_known_is_told(part: str) -> None:
    net = Network({"model": Registers()}).eval()
    with (
        pytest.raises(SpecError, match=r"KD666.*neither prefix nor grid is known"),
        Taps(net, [f"end:{part}"]) as taps,
    ):
        taps.learn({"image": torch.rand(2, 3, 64, 64)})


def test_a_tap_names_input_part_and_number_in_this_order() -> None:
    tap = Tap.parse("blocks.1:in:patches[2]")
    assert (tap.path, tap.at_input, tap.part, tap.index) == ("blocks.1", True, "patches", 2)
    assert tap.canonical == "blocks.1:in:patches[2]"
    with pytest.raises(KdError, match="KD420"):
        Tap.parse("blocks.1:token")


def test_a_path_may_begin_in_the_only_module_with_weights() -> None:
    one = Network({"model": Registers(), "post": nn.Identity()})
    assert Tap.parse("patch").in_network(one).path == "model.patch"
    assert Tap.parse("model.patch").in_network(one).path == "model.patch"
    assert Tap.parse("logits").in_network(one).path == "logits"
    assert Tap.parse("nothing").in_network(one).path == "nothing"
    two = Network({"backbone": Registers(), "neck": nn.Conv2d(3, 3, 1)})
    assert Tap.parse("patch").in_network(two).path == "patch"


def test_a_map_channels_last_is_handed_on_channels_first_also_where_two_axes_are_alike() -> None:
    feature = torch.rand(2, 4, 4, 4)
    spec = LayoutSpec(channels="last")
    assert layout_of(feature, None, None, (16, 16)).kind == "unknown"
    layout = layout_of(feature, None, None, (16, 16), spec=spec)
    assert torch.equal(in_order(feature, layout), feature.permute(0, 3, 1, 2))
    assert part_of(torch.rand(2, 3, 5), tokens(1, (1, 2)), "prefix").shape == (2, 1, 5)


def test_sizes_that_patches_cut_evenly() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        fixed = timm.create_model("vit_tiny_patch16_224")
        free = timm.create_model("vit_small_patch14_reg4_dinov2", dynamic_img_size=True)
    assert "takes 224x224 only" in str(sizes_that_fit(fixed, (225, 225)))
    assert str(sizes_that_fit(free, (224, 230))).endswith("fit are 224x224 and 224x238")
    assert sizes_that_fit(free, (224, 238)) is None
    assert sizes_that_fit(nn.Conv2d(3, 4, 3), (7, 7)) is None


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (4, 4)), ((224, 448), (4, 7)), ((256, 512), (4, 8))])
def test_the_grid_of_levit_is_halved_from_stage_to_stage(size: Size, grid: Size) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = Network({"model": timm.create_model("levit_128s", img_size=size)}).eval()
        feature = torch.zeros(1, grid[0] * grid[1], 384)
    said = stated_layout(net, "model.stages.2.blocks.1", size, feature.shape[1])
    layout = layout_of(feature, image=size, samples=1, said=said)
    assert layout.in_grid and layout.text == f"tokens 0+{grid[0]}x{grid[1]}"
    # Its first stage has that of the image; what no stage gives isn't known.
    assert stated_layout(net, "model.stages.0", size, size[0] * size[1] // 256) == FeatureLayout(
        prefix=0, grid=(size[0] // 16, size[1] // 16)
    )
    assert stated_layout(net, "model.stages.0", size, 5) == FeatureLayout(prefix=0)


def test_an_order_is_copied_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(kind="tokens", channel_axis=2, prefix=0, grid=(2, 2), order=(3, 1, 2, 0))
    feature = torch.arange(4.0).reshape(1, 4, 1)
    first = read_as(feature, layout, "patches")
    assert first.flatten().tolist() == [3.0, 1.0, 2.0, 0.0]
    with FakeTensorMode() as mode:  # as `validate` reads it, before or after
        assert isinstance(read_as(mode.from_tensor(feature), layout, "patches"), FakeTensor)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("copied again"))
    assert torch.equal(read_as(feature, layout, "grid").flatten(), first.flatten())


class Tokens(nn.Module):
    """A map as [B, N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("end", [nn.Flatten(2), Tokens()])
def test_tokens_are_handed_on_behind_their_number_however_they_lie(end: nn.Module) -> None:
    """A map flattened to [B, C, N] is shown like its transpose: losses read the last axis as channels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    batch = {"image": torch.rand(4, 3, 8, 8)}
    with Taps(Network({"model": nn.Sequential(conv, end)}).eval(), ["model.1"]) as taps:
        learnt = taps.learn(batch)
        shown = (learnt.features["model.1"], taps.view(batch).features["model.1"])
    for feature in shown:
        assert isinstance(feature, Tensor) and torch.equal(
            feature, conv(batch["image"]).flatten(2).transpose(1, 2)
        )
    (layout,) = learnt.layouts["model.1"]
    assert (layout.channel_axis, layout.prefix, layout.grid) == (2, 0, (8, 8))
    whole = read_as(shown[0], layout, "grid") if isinstance(shown[0], Tensor) else None
    assert whole is not None and torch.equal(whole, conv(batch["image"]))
