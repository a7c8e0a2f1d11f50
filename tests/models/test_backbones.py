"""United-Perception's classification networks: its names and shapes, and numbers from torchvision, papers and by hand.

names/all.txt holds, as United-Perception's own modules gave them: type, kwargs, number of tensors in the state dict,
number of parameters, SHA-256 of the lines `name shape` in their order. The other files of names/ are such lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as vision
from torch import Tensor, nn

from kdcli.errors import RunError, SpecError
from kdcli.models.backbones.cswin import StripeAttention
from kdcli.models.backbones.efficientnet import stage_design
from kdcli.models.backbones.regnet import DESIGNS, stages
from kdcli.models.backbones.swin import joined, relative_positions, shift_mask, windows_of
from kdcli.models.construct import construct
from kdcli.models.heads import NormedLinear
from kdcli.models.layers import DropPath, drop_rates, rounded_width
from kdcli.models.network import Network

from .fakes import batch_of, network

NAMES = Path(__file__).with_name("names")
ROWS = [line.split("\t") for line in (NAMES / "all.txt").read_text(encoding="utf-8").splitlines()]
QUICK = {
    *(
        "mobilenetv2",
        "mobilenetv3",
        "regnetx_200m",
        "regnety_200m",
        "efficientnet_b0",
        "convnext_tiny",
        "swin_tiny",
    ),
    *(
        "CSWin_64_12211_tiny_224",
        "deit_tiny_patch16_224",
        "resnet18_D",
        "base_cls_head",
        "convnext_head",
        "vit_head",
    ),
}
SOLO = {"type": "solo_bn"}
POST = {"name": "post_process", "type": "base_cls_postprocess"}

TINY: dict[str, dict[str, Any]] = {
    "mobilenetv2": {"width_mult": 0.1, "normalize": SOLO},
    "mobilenetv3": {"width_mult": 0.1, "normalize": SOLO},
    "regnety_200m": {"normalize": SOLO},
    "efficientnet_b0": {
        "out_stages": [3, 8],
        "override_params": {"width_coefficient": 0.1, "depth_coefficient": 0.3},
        "normalize": SOLO,
    },
    "convnext_tiny": {"depths": [1, 1, 2, 1], "dims": [4, 8, 12, 16], "drop_path_rate": 0.2,
                      "layer_scale_init_value": 0.5},
    "swin_tiny": {"pretrain_img_size": 64, "embed_dim": 8, "num_heads": [1, 2, 2, 2], "window_size": 2},
    "CSWin_64_12211_tiny_224": {
        "embed_dim": 8, "depth": [1, 1, 2, 1], "split_size": [1, 2, 2, 2], "num_heads": [2, 2, 2, 2],
        "drop_path_rate": 0.2,
    },
    "vit_base_patch16_224": {"image_size": 64, "hidden_dim": 12, "depth": 2, "mlp_dim": 16, "heads": 2},
    "resnet_custom_D": {"block": "basic", "layers": [1, 1, 1, 1], "multiplier": 0.125, "normalize": SOLO},
}  # fmt: skip
"""Of each family a network of few parameters."""


def lines_of(module: nn.Module) -> str:
    shapes = {key: "x".join(map(str, value.shape)) or "-" for key, value in module.state_dict().items()}
    return "".join(f"{key} {shape}\n" for key, shape in shapes.items())


@pytest.mark.parametrize(
    ("name", "kwargs", "tensors", "parameters", "digest"),
    [pytest.param(*row, marks=[] if row[0] in QUICK else [pytest.mark.slow]) for row in ROWS],
)
def test_names_and_shapes_are_united_perceptions(
    name: str, kwargs: str, tensors: str, parameters: str, digest: str
) -> None:
    with torch.device("meta"):
        made = construct(name, json.loads(kwargs), {}, path=())
    assert len(made.state_dict()) == int(tensors)
    assert sum(p.numel() for p in made.parameters()) == int(parameters)
    assert hashlib.sha256(lines_of(made).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("file", sorted(p.stem for p in NAMES.glob("*.txt") if p.stem != "all"))
def test_the_readable_lists_are_those_of_the_table(file: str) -> None:
    text = (NAMES / f"{file}.txt").read_text(encoding="utf-8")
    first = next(row for row in ROWS if row[0] == file)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == first[4]


def tiny(name: str, **kwargs: Any) -> Network:
    head = {"vit": "vit_head", "con": "convnext_head"}.get(name[:3], "base_cls_head")
    return network(
        {"name": "backbone", "type": name, "kwargs": {**TINY[name], **kwargs}},
        {"name": "head", "type": head, "kwargs": {"num_classes": 10}},
        POST,
    )


@pytest.mark.parametrize("name", TINY)
def test_outputs_have_the_widths_and_strides_that_are_told(name: str) -> None:
    net = tiny(name).eval()
    with torch.no_grad():
        outputs = net(batch_of(64))
    assert outputs["logits"].shape == (2, 10)
    maps = [one if isinstance(one, Tensor) else one[0] for one in outputs["features"]]
    assert [one.shape[1] for one in maps] == net.backbone.outplanes
    if name != "mobilenetv3":
        assert [64 // one.shape[2] for one in maps] == net.backbone.out_strides == outputs["strides"]


@pytest.mark.parametrize("name", TINY)
def test_three_steps_move_every_parameter_that_is_read(name: str) -> None:
    torch.manual_seed(0)
    net = tiny(name)
    before = {key: value.clone() for key, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = net(batch_of(64, count=4))["loss"]
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    # The norms of maps that the head does not read have no gradient, there as here.
    unread = {
        key for key in before if key.startswith(("backbone.norm0.", "backbone.norm1.", "backbone.norm2."))
    }
    assert {key for key, value in net.named_parameters() if value.grad is None} == unread
    assert all(value.isfinite().all() for value in net.parameters())
    still = {key for key, value in net.named_parameters() if torch.equal(value, before[key])} - unread
    # A shift of all keys changes no attention; ReLUs of few channels may all be off.
    assert len(still) <= 0.1 * len(before), still


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "swin_tiny", "CSWin_64_12211_tiny_224", "vit_base_patch16_224"]
)
def test_draws_come_from_torchs_generator(name: str) -> None:
    net, batch = tiny(name), batch_of(64, count=16)
    torch.manual_seed(1)
    one = net(batch)["logits"]
    other = net(batch)["logits"]
    torch.manual_seed(1)
    assert torch.equal(one, net(batch)["logits"])
    assert not torch.equal(one, other)


def test_rates_of_dropped_paths() -> None:
    assert drop_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_rates(0.3, 1) == [0]

    def rates(net: nn.Module) -> list[float]:
        return [layer.rate for layer in net.modules() if isinstance(layer, DropPath)]

    def build(name: str, **kwargs: Any) -> nn.Module:
        return construct(name, {**TINY[name], **kwargs}, {}, path=())

    assert rates(build("convnext_tiny")) == pytest.approx([0.05, 0.1, 0.15, 0.2])
    # Swin's default 0.2 over 12 blocks.
    assert rates(build("swin_tiny")) == pytest.approx([0.2 * i / 11 for i in range(1, 12)])
    assert rates(build("vit_base_patch16_224")) == [0.1, 0.1]
    # EfficientNet: 0.3 · i / 16 in those of its 16 blocks that have a shortcut.
    full = construct("efficientnet_b0", {"out_stages": [8], "normalize": SOLO}, {}, path=())
    assert rates(full) == pytest.approx([0.3 * i / 16 for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)])


# numbers of papers and by hand


@pytest.mark.parametrize(
    ("name", "widths", "depths"),
    [
        ("regnetx_200m", [24, 56, 152, 368], [1, 1, 4, 7]),
        ("regnetx_400m", [32, 64, 160, 384], [1, 2, 7, 12]),
        ("regnety_400m", [48, 104, 208, 440], [1, 3, 6, 6]),
        ("regnety_6400m", [144, 288, 576, 1296], [2, 7, 14, 2]),
        ("regnetx_6400m", [168, 392, 784, 1624], [2, 4, 10, 1]),
    ],
)
def test_regnets_stages_are_the_papers(name: str, widths: list[int], depths: list[int]) -> None:
    found = stages(DESIGNS[name])
    assert [stage[0] for stage in found] == widths
    assert [stage[1] for stage in found] == depths


def test_widths_are_rounded_to_the_divisor() -> None:
    # 32 · 0.35 = 11.2: the nearest multiple of 8 is 8, more than a tenth below, so 16.
    assert [rounded_width(w, 8) for w in (11.2, 12, 16, 4, 44.8)] == [16, 16, 16, 8, 48]


def test_windows_and_back() -> None:
    # 4×4 numbered places in windows of 2.
    places = torch.arange(16.0).reshape(1, 4, 4, 1)
    windows = windows_of(places, 2)
    assert windows[:, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(joined(windows, 2, 4, 4), places)


def test_relative_positions_by_hand() -> None:
    # Window of 2: rows dy + 1, columns dx + 1 of a 3×3 table; from place 0 to 3 both are −1 + 1 = 0.
    assert relative_positions(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_shift_mask_by_hand() -> None:
    # 4×4 shifted by 1, windows of 2: in the first window all belong together, in the last none do.
    mask = shift_mask(4, 4, 2, 1, torch.zeros(()))
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    assert mask[3].tolist() == [[0.0 if i == j else -100.0 for j in range(4)] for i in range(4)]
    assert mask[1].tolist() == [[0.0 if (i - j) % 2 == 0 else -100.0 for j in range(4)] for i in range(4)]


def test_stripes_hold_what_lies_in_them() -> None:
    # With equal queries the attention is the mean over a stripe; the convolution adds nothing.
    attention = StripeAttention(1, "vertical", 2, 1, None, 0.0)
    nn.init.zeros_(attention.get_v.weight)
    assert attention.get_v.bias is not None
    nn.init.zeros_(attention.get_v.bias)
    value = torch.arange(8.0).reshape(1, 8, 1)
    qkv = torch.stack([torch.zeros(1, 8, 1), torch.zeros(1, 8, 1), value])
    out = attention(qkv, 2, 4)[0, :, 0].tolist()
    assert out == [2.5, 2.5, 4.5, 4.5, 2.5, 2.5, 4.5, 4.5]
    attention.direction, attention.split = "horizontal", 1
    assert attention(qkv, 2, 4)[0, :, 0].tolist() == [1.5] * 4 + [5.5] * 4


def test_norm_linear_gives_cosines() -> None:
    layer = NormedLinear(2, 2, tempearture=10)
    assert torch.allclose(layer.weight.norm(dim=0), torch.ones(2))
    layer.weight.data = torch.tensor([[3.0, 0.0], [4.0, 2.0]])
    # Cosines of (5, 0) with the columns (3, 4) and (0, 2): 0.6 and 0.
    assert layer(torch.tensor([[5.0, 0.0]])).tolist() == [[pytest.approx(6.0), pytest.approx(0.0)]]


def test_a_stage_of_efficientnet_in_its_short_form() -> None:
    assert stage_design("r2_k5_s22_e6_i16_o24_se0.25") == (2, 5, 2, 6, 16, 24, 0.25, True)
    assert stage_design("r1_k3_s11_e1_i32_o16_noskip")[-2:] == (0.0, False)
    with pytest.raises(ValueError, match="is written as"):
        stage_design("r2_k5")


# torchvision's networks with equal weights


@torch.no_grad()
def last(backbone: nn.Module, image: Tensor) -> Tensor:
    found: Tensor = backbone.eval()({"image": image})["features"][-1]
    return found


def test_mobilenetv2_is_torchvisions() -> None:
    other = vision.mobilenet_v2(width_mult=0.25).eval()
    own = construct("mobilenetv2", {"width_mult": 0.25, "normalize": SOLO}, {}, path=())
    # torchvision has no expansion in the first block, United-Perception one of factor 1: made the identity.
    theirs = list(other.features.state_dict().items())
    state: dict[str, Tensor] = {}
    source = iter(theirs)
    for key, value in own.state_dict().items():
        if key.startswith(("features.1.conv.0.", "features.1.conv.1.")):
            state[key] = value
            continue
        state[key] = next(source)[1].reshape(value.shape)
    assert next(source, None) is None
    own.load_state_dict(state)
    own.eval()
    width = own.features[1].conv[0].weight.shape[0]
    own.features[1].conv[0].weight.data = torch.eye(width).reshape(width, width, 1, 1)
    own.features[1].conv[1].running_var.fill_(1 - own.features[1].conv[1].eps)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(last(own, image), other.features(image), atol=1e-5)


def test_swin_is_torchvisions() -> None:
    other = vision.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=3
    ).eval()
    own = construct(
        "swin_tiny",
        {"pretrain_img_size": 64, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4,
         "out_indices": [1]},
        {}, path=(),
    )  # fmt: skip
    mapped = torchvisions_swin(other.state_dict())
    own.load_state_dict({**own.state_dict(), **mapped})
    # 52 is no multiple of a window: both pad.
    image = torch.randn(2, 3, 52, 40)
    with torch.no_grad():
        theirs = other.norm(other.features(image)).permute(0, 3, 1, 2)
        assert torch.allclose(last(own, image), theirs, atol=1e-5)


def torchvisions_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's Swin of two stages under United-Perception's names."""
    names = {
        "features.0.0.": "patch_embed.proj.", "features.0.2.": "patch_embed.norm.",
        "features.2.": "layers.0.downsample.", "norm.": "norm1.",
        **{f"features.{2 * s + 1}.{b}.": f"layers.{s}.blocks.{b}." for s in (0, 1) for b in (0, 1)},
    }  # fmt: skip
    mapped = {}
    for key, value in state.items():
        before = next((old for old in names if key.startswith(old)), None)
        if before is None or key.endswith("relative_position_index"):
            continue
        name = names[before] + key.removeprefix(before)
        mapped[name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")] = value
    return mapped


def test_convnext_is_torchvisions() -> None:
    from torchvision.models.convnext import CNBlockConfig

    blocks = [
        CNBlockConfig(4, 8, 1),
        CNBlockConfig(8, 12, 1),
        CNBlockConfig(12, 16, 1),
        CNBlockConfig(16, None, 1),
    ]
    other = vision.ConvNeXt(blocks, layer_scale=0.5).eval()
    own = construct(
        "convnext_tiny",
        {"depths": [1, 1, 1, 1], "dims": [4, 8, 12, 16], "layer_scale_init_value": 0.5},
        {},
        path=(),
    )
    mapped = {}
    for key, value in other.features.state_dict().items():
        number, rest = key.split(".", 1)
        stage, odd = divmod(int(number), 2)
        rest = (
            rest.replace("layer_scale", "gamma").replace("block.0.", "dwconv.").replace("block.2.", "norm.")
        )
        rest = rest.replace("block.3.", "pwconv1.").replace("block.5.", "pwconv2.")
        mapped[f"{'stages' if odd else 'downsample_layers'}.{stage}.{rest}"] = (
            value.flatten() if odd and ("gamma" in rest) else value
        )
    own.load_state_dict(mapped)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(last(own, image), other.features(image), atol=1e-5)


# what they refuse, and what they freeze


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mobilenetv2", {"out_strides": [64]}, "out_strides are some of"),
        ("mobilenetv2", {"out_strides": [16, 8]}, "rising"),
        ("mobilenetv3", {"c4_output": True}, "mobilenetv2 alone"),
        ("mobilenetv3", {"mode": "middle"}, "small or large"),
        ("regnetx_200m", {"out_layers": [5]}, "from 0 to 4"),
        ("regnetx_200m", {"out_layers": [3], "out_strides": [32]}, "have the strides"),
        ("efficientnet_b0", {"frozen_layers": [1]}, "out_stages"),
        ("efficientnet_b0", {"out_stages": [9], "out_layers": [4]}, "give one of them"),
        ("efficientnet_b0", {"out_stages": [9], "out_strides": [16]}, "have the strides"),
        ("efficientnet_b0", {"out_stages": [9], "override_params": {"width": 1}}, "has no `width`"),
        ("convnext_tiny", {"dims": [1, 2]}, "four stages"),
        ("convnext_tiny", {"pretrained": True}, "give weights as a file or by a published name"),
        ("swin_tiny", {"num_heads": [5, 6, 12, 24]}, "can't be shared"),
        ("swin_tiny", {"pretrain_img_size": 32}, "too small"),
        ("swin_tiny", {"out_indices": [4]}, "from 0 to 3"),
        ("CSWin_64_12211_tiny_224", {"num_heads": [1, 2, 4, 8]}, "half of them"),
        ("vit_base_patch16_224", {"image_size": 100}, "no multiple"),
        ("vit_base_patch16_224", {"out_indices": 12}, "from -12 to 11"),
        ("base_cls_head", {"num_classes": 3, "in_plane": 4, "classifier_cfg": {"type": "cosine"}}, "linear, norm"),
        ("vit_head", {"num_classes": 3, "in_plane": 4, "cls_type": "mean"}, "token or avg_pool"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_told(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        construct(name, kwargs, {}, path=())


@pytest.mark.parametrize(
    ("name", "kwargs", "frozen"),
    [
        ("regnety_200m", {"frozen_layers": [0, 1]}, ("stem.", "s1.")),
        ("efficientnet_b0", {"frozen_layers": [1, 2]}, ("stem.", "blocks.0.")),
        ("resnet_custom_D", {"frozen_layers": [0, 2]}, ("layer0.", "layer2.")),
        ("swin_tiny", {"frozen_stages": 2}, ("patch_embed.", "layers.0.")),
    ],
)
def test_frozen_parts_stay_so(name: str, kwargs: dict[str, Any], frozen: tuple[str, ...]) -> None:
    backbone = tiny(name, **kwargs).train().backbone
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
    for key, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d | DropPath):
            assert module.training != key.startswith(frozen), key


def test_the_heads_of_transformers() -> None:
    grid, token = torch.randn(2, 12, 4, 4), torch.randn(2, 12)
    head = construct("vit_head", {"num_classes": 5, "in_plane": 12}, {}, path=())
    assert torch.equal(head({"features": [[grid, token]]})["logits"], head.classifier(token))
    mean = construct("vit_head", {"num_classes": 5, "in_plane": 12, "cls_type": "avg_pool"}, {}, path=())
    for feature in ([grid, token], grid):
        found = mean({"features": [feature]})["logits"]
        assert torch.allclose(found, mean.classifier(grid.mean((2, 3))), atol=1e-6)
    with pytest.raises(RunError, match="KD577"):
        head({"features": [grid]})
    plain = construct("base_cls_head", {"num_classes": 5, "in_plane": 12}, {}, path=())
    with pytest.raises(RunError, match="KD576"):
        plain({"features": [[grid, token]]})
    wide = construct("vit_head", {"num_classes": 5, "in_plane": 12, "representation_size": 7}, {}, path=())
    assert wide.classifier.in_features == 7
    normed = construct(
        "convnext_head", {"num_classes": 5, "in_plane": 12, "head_init_scale": 0.5}, {}, path=()
    )
    wanted = normed.classifier(torch.nn.functional.layer_norm(grid.mean((2, 3)), (12,), eps=1e-6))
    assert torch.allclose(normed({"features": [grid]})["logits"], wanted, atol=1e-6)


def test_images_of_another_size_than_the_transformers() -> None:
    net = tiny("vit_base_patch16_224")
    with pytest.raises(RunError, match="KD416"):
        net(batch_of(32))
    # Swin and CSWin pad.
    for name in ("swin_tiny", "CSWin_64_12211_tiny_224"):
        assert tiny(name).eval()(batch_of(72))["logits"].shape == (2, 10)


def test_a_checkpoint_with_both_names_of_the_stem_fits_resnet_d(tmp_path: Path) -> None:
    from kdcli.models.weights import load_weights

    net = tiny("resnet_custom_D")
    state = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }
    both = {**state, "backbone.conv1.weight": state["backbone.layer0.0.weight"]}
    torch.save({"state_dict": both}, tmp_path / "up.pth")
    assert load_weights(net, tmp_path / "up.pth") == []
    assert torch.equal(net.state_dict()["backbone.layer0.0.weight"], state["backbone.layer0.0.weight"])


class Logits(nn.Module):
    """A network as a function from images to logits."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 10]."""
        found: Tensor = self.net({"image": image})["logits"]
        return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_exports_for_any_number_of_images(name: str) -> None:
    net = Logits(tiny(name).eval())
    count = torch.export.Dim("count", min=1, max=512)
    program = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes={"image": {0: count}})
    image = torch.randn(5, 3, 64, 64)
    assert torch.allclose(program.module()(image), net(image), atol=1e-5)
