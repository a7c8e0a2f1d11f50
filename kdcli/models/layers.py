"""Normalization layers, dropped paths and initial weights, by the names of a spec and as the small models have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.spec.check.components import refuse_misfits
from kdcli.spec.ranges import Count, Positive, Range, Share

Deviation = Annotated[float, Range(more_than=0, at_most=1000)]
Constant = Annotated[float, Range(at_least=-1000, at_most=1000)]

NORMS = ("solo_bn", "sync_bn", "freeze_bn", "gn", "ln")


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its running statistics; weight and bias are trained."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """BatchNorm over the batches of all processes; on the CPU too, where torch has none."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if input.device.type != "cpu" or ranks == 1 or not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        count = torch.full((1,), float(input.numel() // input.shape[1]), dtype=input.dtype)
        parts: Tensor = _SumOverProcesses.apply(torch.cat([input.sum(axes), input.square().sum(axes), count]))
        total = parts[-1]
        mean, square = (parts[:-1] / total).chunk(2)
        variance = square - mean.square()
        if self.running_mean is not None and self.running_var is not None:
            share = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * total / (total - 1), share)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        shape = (1, -1, *[1] * (input.ndim - 2))
        normed: Tensor = (input - mean.view(shape)) * (variance.view(shape) + self.eps).rsqrt()
        if self.weight is None:
            return normed
        scaled: Tensor = normed * self.weight.view(shape) + self.bias.view(shape)
        return scaled


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes; so is its gradient, since every process uses it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape."""
        last = input.movedim(1, -1)
        normed = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.movedim(-1, 1)


class DropPath(nn.Module):
    """Drops the residual branch of whole samples; what stays is scaled by 1 / (1 − rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Same shape [B, ...]."""
        if not self.training:
            return x
        keep = 1 - self.rate
        kept = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), device=x.device) < keep
        return x * kept.to(x.dtype) / keep


def drop_rates(last: float, depth: int) -> list[float]:
    """The rate of each of `depth` blocks: from 0 in equal steps to `last`."""
    return [last * index / max(depth - 1, 1) for index in range(depth)]


def rounded_width(width: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to a width; at least one, and no more than a tenth below the width."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * width else nearest


def no_download(pretrained: bool) -> None:
    """Raise ValueError where a spec asks for weights that United-Perception fetched from its own servers."""
    if pretrained:
        raise ValueError(
            "pretrained: give weights as a file or by a published name (`torchvision:`, `timm:`, `hf:`): "
            "`saver.pretrain_model` of the student, `teacher_weight` of a teacher"
        )


def synchronises(net: nn.Module) -> bool:
    """Whether a network normalises over the batches of all processes."""
    return any(isinstance(module, nn.SyncBatchNorm) for module in net.modules())


def synchronise(module: nn.Module, *, but: Iterable[nn.Module] = ()) -> None:
    """Replace each training BatchNorm inside a module by a synchronised one with the very same weights.

    but: modules whose layers are left alone, as they belong elsewhere.
    """
    foreign = {id(other) for net in but for other in net.modules()}
    for parent in list(module.modules()):
        if id(parent) in foreign:
            continue
        for name, norm in list(parent.named_children()):
            if id(norm) in foreign or not norm.training:
                continue
            if isinstance(norm, _BatchNorm) and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(parent, name, _synchronised(norm))


def _synchronised(norm: _BatchNorm) -> SyncBatchNorm2d:
    synced = SyncBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    # The very same parameters and buffers: whoever holds them goes on holding the right ones.
    synced._parameters, synced._buffers = norm._parameters, norm._buffers
    return synced


def build_norm(width: int, normalize: Mapping[str, Any]) -> nn.Module:
    """A layer for `width` channels from `{type, kwargs}`; raises ValueError on an unknown type."""
    kind = normalize.get("type")
    kwargs = dict(normalize.get("kwargs") or {})
    refuse_misfits(
        kwargs, {"eps": Positive, "momentum": Share | None, "num_groups": Count}, "normalize.kwargs"
    )
    if kind == "solo_bn":
        return nn.BatchNorm2d(width, **kwargs)
    if kind == "sync_bn":
        # United-Perception's own: a group of one synchronises nothing, any other is all processes.
        group = kwargs.pop("group_size", None)
        kwargs.pop("sync_stats", None)
        kwargs.pop("var_mode", None)
        return nn.BatchNorm2d(width, **kwargs) if group == 1 else SyncBatchNorm2d(width, **kwargs)
    if kind == "freeze_bn":
        return FrozenStatisticsBatchNorm2d(width, **kwargs)
    if kind == "gn":
        return nn.GroupNorm(num_channels=width, **{"num_groups": 32, **kwargs})
    if kind == "ln":
        return ChannelLayerNorm(width, **kwargs)
    raise ValueError(f"normalize.type is one of {', '.join(NORMS)}, not `{kind}`")


def norm_name(normalize: Mapping[str, Any], index: int | None = None) -> str:
    """The layer's name in a block: bn1, gn1 or ln1; bn, gn or ln where it is the block's only one."""
    kind = str(normalize.get("type"))
    return f"{kind if kind in ('gn', 'ln') else 'bn'}{'' if index is None else index}"


WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def initialize(module: nn.Module, initializer: Mapping[str, Any]) -> None:
    """Set every convolution and linear layer, in place; biases become 0, BatchNorm 1 and 0.

    initializer: {method: msra} (kaiming normal, a=1), {method: xavier} (normal), {method: normal,
    std: 0.01} or {method: constant, val: 0}. Raises ValueError on another method or argument.
    """
    refuse_misfits(initializer, {"std": Deviation, "val": Constant}, "initializer")
    arguments = dict(initializer)
    method = arguments.pop("method", None)
    std, val = arguments.pop("std", 0.01), arguments.pop("val", 0.0)
    if arguments:
        raise ValueError(f"initializer takes method, std and val, not {', '.join(map(repr, arguments))}")
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        if not isinstance(layer, WEIGHTED):
            continue
        if method == "msra":
            nn.init.kaiming_normal_(layer.weight, a=1)
        elif method == "xavier":
            nn.init.xavier_normal_(layer.weight)
        elif method == "normal":
            nn.init.normal_(layer.weight, std=std)
        elif method == "constant":
            nn.init.constant_(layer.weight, val)
        else:
            raise ValueError(f"initializer.method is msra, xavier, normal or constant, not `{method}`")
        if layer.bias is not None:
            nn.init.constant_(layer.bias, val if method == "constant" else 0.0)


def kaiming_fan_out(module: nn.Module) -> None:
    """Set convolutions to Kaiming normal by fan out, in place; their biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # Without the groups: the variance 2 / (k² · out) that the published models begin with.
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=(2.0 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_linear(module: nn.Module) -> None:
    """Set linear layers to a normal of deviation 0.01, in place; their biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


def check_widths(widths: list[int], count: int) -> list[int]:
    """The widths themselves; raises ValueError if there are not `count` positive ones."""
    if len(widths) != count or min(widths) < 1:
        raise ValueError(f"widths is a list of {count} channel numbers, not {widths}")
    return widths
