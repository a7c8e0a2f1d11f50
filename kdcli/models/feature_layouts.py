"""What networks say of the layout of the features made inside of them: prefix tokens, grid, order, channels.

A module says it itself by an attribute `feature_layout` (a FeatureLayout, or a function of the image's height and
width that gives one); for the transformers of torchvision and timm the rules stand here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLayout:
    """What a module knows of the features made inside of it.

    prefix: how many tokens stand before the patches (class, distillation, registers), None where it isn't known;
    class_token: whether the first of them is a class token. grid: rows and columns of the patches, None where it
    isn't known. order: for each place of the grid, row by row, the number of its token, where they are not in that
    order. maps: `axes`, a map with its channels in the last axis is one [B, H, W, C]; `none`, four axes are no map;
    None where its size has to show it.
    """

    prefix: int | None = None
    class_token: bool = False
    grid: Size | None = None
    order: tuple[int, ...] | None = None
    maps: str | None = None


def stated_layout(net: nn.Module, path: str, image: Size, tokens: int | None = None) -> FeatureLayout | None:
    """What the innermost module around a layer says of its features; None where none does.

    path: of the layer. image: height and width that the network is given. tokens: how many the feature has.
    """
    names = path.split(".")
    chain = [(names[:end], _child(net, names[:end])) for end in range(len(names), -1, -1)]
    for above, module in chain:
        rest = ".".join(names[len(above) :])
        said = None if module is None else _says(module, rest, image, tokens)
        if said is not None:
            return said
    return None


def _child(net: nn.Module, names: list[str]) -> nn.Module | None:
    try:
        return net.get_submodule(".".join(names))
    except AttributeError:
        return None


def _says(module: nn.Module, inside: str, image: Size, tokens: int | None) -> FeatureLayout | None:
    """What one module says of the layer at the path `inside` of it ('' is the module itself)."""
    own = getattr(module, "feature_layout", None)
    if own is not None:
        said = own(image) if callable(own) else own
        return said if isinstance(said, FeatureLayout) else None
    kinds = _kinds(module)
    if ("torchvision", "VisionTransformer") in kinds:
        patch: Any = module.patch_size
        return FeatureLayout(prefix=1, class_token=True, grid=_cut(image, (patch, patch)))
    if ("torchvision", "PartitionAttentionLayer") in kinds and inside:
        return FeatureLayout(maps="none")  # windows of the map: [B, windows, places, C]
    if ("torchvision", "SwinTransformer") in kinds:
        return FeatureLayout(maps="axes")
    if kinds[0][0] == "timm":
        return _of_timm(module, inside, image, tokens)
    return None


def _kinds(module: nn.Module) -> list[tuple[str, str]]:
    """A module's classes, from its own up: (package, name). To import torchvision for them takes as long as torch."""
    return [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__]


def _of_timm(module: Any, inside: str, image: Size, tokens: int | None) -> FeatureLayout | None:
    kind = type(module).__name__
    if kind == "Hiera":
        return _of_hiera(module, inside, tokens)
    if kind in ("Levit", "LevitDistilled") and tokens is not None:
        return _of_levit(module, image, tokens)
    if kind.startswith(("SwinTransformer", "MaxxVit")):
        return FeatureLayout(maps="axes")
    prefix = getattr(module, "num_prefix_tokens", None)
    embed = getattr(module, "patch_embed", None)
    if not isinstance(prefix, int) or embed is None:
        return None
    known = FeatureLayout(prefix=prefix, class_token=isinstance(getattr(module, "cls_token", None), Tensor))
    patch = getattr(embed, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    if not isinstance(patch, tuple) or len(patch) != 2 or not hasattr(embed, "img_size"):
        return known  # one with stages, such as MViTv2: the number of tokens shows the grid
    grid = _cut(image, patch, up=bool(getattr(embed, "dynamic_img_pad", False)))
    return FeatureLayout(prefix=prefix, class_token=known.class_token, grid=grid)


def _of_hiera(module: Any, inside: str, tokens: int | None) -> FeatureLayout | None:
    """Hiera keeps its tokens in the order in which its pooling reads them, which `reroll` knows for each block."""
    grid: Size = tuple(module.tokens_spatial_shape)
    if inside.startswith("patch_embed"):
        return FeatureLayout(prefix=0, grid=grid)
    block = re.match(r"blocks\.(\d+)", inside)
    last = -1 if block is None else int(block[1])
    # Inside of a block that pools, the tokens are still those of the one before it.
    for number in (last, last - 1):
        _, size = module.reroll.schedule.get(number, ((), ()))
        if tokens is not None and len(size) == 2 and size[0] * size[1] == tokens:
            with unset_fake_temporarily(), torch.device("cpu"):
                rolled = module.reroll(torch.arange(tokens)[None, :, None], number)
                order = tuple(int(value) for value in rolled.flatten().tolist())
            return FeatureLayout(prefix=0, grid=(size[0], size[1]), order=order)
    return FeatureLayout(prefix=0, maps="none")


def _of_levit(module: Any, image: Size, tokens: int) -> FeatureLayout:
    """LeViT halves its grid from stage to stage, rounded up: 4x7 of 14x28 is no image cut by a whole stride."""
    grid = _cut(image, (int(module.stem.stride),) * 2)
    for stage in module.stages:
        if not isinstance(stage.downsample, nn.Identity):
            grid = -(-grid[0] // 2), -(-grid[1] // 2)
        if grid[0] * grid[1] == tokens:
            return FeatureLayout(prefix=0, grid=grid)
    return FeatureLayout(prefix=0)


def _cut(image: Size, patch: tuple[int, int], *, up: bool = False) -> Size:
    height, width = (
        -(-side // part) if up else side // part for side, part in zip(image, patch, strict=True)
    )
    return height, width


def only_size(net: nn.Module) -> Size | None:
    """The only size of images that a network takes; None where it takes several."""
    return next((fixed for m in net.modules() if (fixed := _patch_of(m)[1]) is not None), None)


def sizes_that_fit(net: nn.Module, image: Size) -> str | None:
    """Where patches don't cut images of this size evenly, or one size alone is taken: the sizes that fit, in words.

    None where nothing of this stands in the way.
    """
    for name, module in net.named_modules():
        patch, fixed = _patch_of(module)
        if patch is None:
            continue
        what = f"`{name}` cuts images into patches of {_by(patch)}"
        if fixed is not None and fixed != image:
            return f"{what} and takes {_by(fixed)} only: {_by(fixed)} is the size that fits"
        if fixed is None and any(side % part for side, part in zip(image, patch, strict=True)):
            sides = [_nearest(side, part) for side, part in zip(image, patch, strict=True)]
            fitting = dict.fromkeys((low, high) for low, high in zip(*sides, strict=True))
            return f"{what}: the nearest sizes that fit are {' and '.join(_by(size) for size in fitting)}"
    return None


def _patch_of(module: Any) -> tuple[Size | None, Size | None]:
    """The patch of a module that cuts an image into patches, and the only size that it takes, where there is one."""
    if ("torchvision", "VisionTransformer") in _kinds(module):
        return (module.patch_size,) * 2, (module.image_size,) * 2
    patch, image = getattr(module, "patch_size", None), getattr(module, "img_size", None)
    if not hasattr(module, "proj"):
        return None, None
    if isinstance(patch, int):
        patch = (patch, patch)
    if not isinstance(patch, tuple) or len(patch) != 2:
        return None, None
    strict = isinstance(image, tuple) and bool(getattr(module, "strict_img_size", True))
    padded = bool(getattr(module, "dynamic_img_pad", False)) and not strict
    return (None, None) if padded else (patch, image if strict else None)


def _nearest(side: int, part: int) -> tuple[int, int]:
    """The multiples of `part` below and above; the side itself where it is one."""
    low = max(side // part, 1) * part
    return low, low if side % part == 0 else max(low, -(-side // part) * part)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
