"""The layers of a network: which can be mimicked, with shape and cost; and how alike those of two networks are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.data.facts import DataFacts, describe, padded_size
from kdcli.distill.adapters import shown
from kdcli.distill.channels import ChannelTrace, image_size
from kdcli.distill.dry_run import rehearse
from kdcli.distill.layouts import Layout, layout_of
from kdcli.distill.taps import CONTAINERS, tensors_in
from kdcli.errors import UsageError, did_you_mean
from kdcli.models.feature_layouts import Size as ImageSize
from kdcli.models.feature_layouts import stated_layout
from kdcli.models.network import Network, build_network, shapes_only, tells_shapes
from kdcli.models.torch_modes import (
    NOT_FAKE,
    FlopCount,
    TooMuch,
    Unfilled,
    every_layer_runs,
    fake_mode,
    to_fake,
    to_zero,
)
from kdcli.spec.networks import ParsedNetworks
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks import task_for
from kdcli.tasks.task import Task
from kdcli.training.build import channels_of
from kdcli.training.join_jobs import first_samples

Size = tuple[int, int, int]

QUICK = 40 * 10**9
"""Floating point operations that take less time than the import of what fake tensors need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One row of `kdcli inspect-features`; see LayerRow for the fields that are shown.

    path: as `mimic_name` wants it; shape: with B for the batch, several shapes for a layer that gives several
    levels, None where there is no tensor; stride: of the input's height, None where it has none;
    layout: how its features are read (`map`, `map, channels last`, `tokens 1+14x14`, `vector`), None where there are
    several ways or no tensor; flops_share: cumulative up to and with this layer, 0 to 1; status: once, several (times
    a forward), container, never runs, changed in place, layout unknown (which can't be mimicked as it is); depth: of
    the path, from 0.

    sizes: shapes of the tensors it gave, batch first; layouts: of each of them. order: counts layers as they finish.
    made: which tensor it gave last; layers that hand on the same tensor share the number. leaf: no layer runs inside.
    taps: what `mimic_name` may say to get one feature: the path, or `path[i]` where there are several.
    """

    path: str
    type: str
    shape: str | tuple[str, ...] | None
    stride: float | int | str | None
    parameters: int
    flops_share: float | None
    status: str
    depth: int
    layout: str | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    layouts: tuple[Layout, ...] = ()
    order: int = -1
    made: int = -1
    leaf: bool = True
    taps: tuple[str, ...] = ()


def inspect(
    parsed: ParsedNetworks,
    *,
    size: Size | None = None,
    plugins: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, tuple[Layer, ...]]:
    """Every network's layers, by the network's name.

    size: channels, height and width of the images; else what the data of the spec says, else 3x224x224.
    `net` runs in training mode as it would be trained, teachers in evaluation mode; on real images
    where that is quick, else on fake ones unless its code needs values. Of detectors, what needs values runs on
    tiny real images. say: hears on which size the networks ran.
    """
    task = task_for(parsed.runtime, parsed.train)
    if task.rehearses == "real":
        return _inspect(task, parsed, size, plugins, say, fake=False)
    try:
        return _inspect(task, parsed, size, plugins, say, fake=False, most=QUICK)
    except (TooMuch, MemoryError):
        pass
    try:
        return _inspect(task, parsed, size, plugins, say, fake=True)
    except NOT_FAKE:
        return _inspect(task, parsed, size, plugins, say, fake=False)


def chosen(networks: Mapping[str, Sequence[Layer]], name: str | None) -> dict[str, Sequence[Layer]]:
    """All networks, or the one with that name."""
    if name is None:
        return dict(networks)
    if name not in networks:
        raise UsageError.of(f"there is no network `{name}` in the file", did_you_mean(name, list(networks)))
    return {name: networks[name]}


def filtered(layers: Sequence[Layer], pattern: str | None, kind: str | None) -> list[Layer]:
    """The layers of a type whose path, or its end after a dot, matches the pattern."""
    return [
        layer
        for layer in layers
        if (kind is None or layer.type == kind)
        and (pattern is None or any(fnmatchcase(end, pattern) for end in _ends(layer.path)))
    ]


def _ends(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _inspect(
    task: Task,
    parsed: ParsedNetworks,
    size: Size | None,
    plugins: Sequence[str],
    say: Callable[[str], None],
    *,
    fake: bool,
    most: int | None = None,
) -> dict[str, tuple[Layer, ...]]:
    facts = DataFacts() if parsed.train is None else describe(parsed.train)
    own = size
    if task.own_size:
        facts = replace(facts, shape=None)
        padded = None if size or parsed.train is None else padded_size(parsed.train)
        own = size if padded is None else (3, *padded)
    elif size is not None:
        facts = DataFacts(shape=size)
    mode = fake_mode() if fake else None
    real = task.rehearses == "real"
    found = {}
    for name, modules in parsed.networks.items():
        path = parsed.path(name)
        with nullcontext() if real else Unfilled():
            net = build_network(modules, path=path, plugins=plugins, aligned=parsed.runtime.aligned)
        if mode is not None:
            to_fake(net, mode)
        elif not real:
            to_zero(net)
        net.train(name == "net")
        with mode or nullcontext():
            batch = task.sample(
                parsed.train,
                facts,
                channels=channels_of(net),
                modules=modules,
                aligned=parsed.runtime.aligned,
            )
            if most is not None and not net.training:
                batch = first_samples(batch, 1)
            found[name] = rehearse(lambda: layers_of(net, batch, most), net, batch, modules, path)  # noqa: B023
        text = f"{name}: on images of {'x'.join(str(side) for side in batch['image'].shape[1:])}"
        if task.own_size and own is None:
            text += ", as the spec does not resize them: `--input` gives another size"
        elif task.own_size and own is not None and tells_shapes(net):
            found[name], text = _at_size(task, parsed, net, name, modules, own, found[name])
        say(text)
    return found


def _at_size(
    task: Task,
    parsed: ParsedNetworks,
    net: Network,
    name: str,
    modules: Sequence[ModuleSpec],
    size: Size,
    tiny: Sequence[Layer],
) -> tuple[tuple[Layer, ...], str]:
    """The layers of a detector at one size, those that need values as they ran on tiny images; and a text on that.

    The network is fake from here on.
    """
    mode = fake_mode()
    to_fake(net, mode)
    with mode, shapes_only(net):
        facts = DataFacts(shape=size)
        batch = task.sample(parsed.train, facts, modules=modules, aligned=parsed.runtime.aligned)
        rows = rehearse(lambda: layers_of(net, batch), net, batch, modules, parsed.path(name))
        left_out = list(net.left_out or ())
    # What was left out adds nothing to the operations that are counted.
    merged = tuple(
        replace(layer, flops_share=layer.flops_share and 1.0, made=layer.made + len(rows))
        if layer.path.partition(".")[0] in left_out
        else row
        for row, layer in zip(rows, tiny, strict=True)
    )
    text = f"{name}: on images of {'x'.join(map(str, size))}"
    if left_out:
        text += f"; what computes with boxes on tiny ones, and not in the FLOPs: {', '.join(left_out)}"
    return merged, text


@dataclass(slots=True)
class _Seen:
    """What one layer returned, with version counters of its tensors, and the work done by then."""

    tensors: list[tuple[Tensor, int]] = field(default_factory=list)
    calls: int = 0
    flops: int = 0
    order: int = -1


def layers_of(net: nn.Module, batch: Mapping[str, Any], most: int | None = None) -> tuple[Layer, ...]:
    """Run the network once on the batch, in its current mode, and describe every layer.

    Raises TooMuch where that takes more operations than `most`.
    """
    seen = {name: _Seen() for name, _ in net.named_modules() if name}
    finished = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(every_layer_runs())
        counter = stack.enter_context(FlopCount(most))
        trace = stack.enter_context(ChannelTrace())
        for name, module in net.named_modules():
            if not name:
                continue

            def note(_module: nn.Module, _args: Any, output: Any, entry: _Seen = seen[name]) -> None:
                nonlocal finished
                entry.calls += 1
                entry.tensors += [(tensor, tensor._version) for tensor in tensors_in(output)]
                entry.flops, entry.order = counter.total, finished
                finished += 1

            stack.callback(module.register_forward_hook(note).remove)
        net(batch)
    total, size = counter.total, image_size(batch)
    assert size is not None
    modules = dict(net.named_modules())
    numbers: dict[int, int] = {}
    above = {part for name, entry in seen.items() if entry.calls for part in _parents(name)}
    return tuple(
        _layer(
            name,
            modules[name],
            entry,
            [_layout(net, name, tensor, trace, size, len(batch["image"])) for tensor, _ in entry.tensors],
            name in above,
            total,
            size[0],
            numbers,
        )
        for name, entry in seen.items()
    )


def _layout(
    net: nn.Module, path: str, tensor: Tensor, trace: ChannelTrace, image: ImageSize, samples: int
) -> Layout:
    tokens = tensor.shape[1] if tensor.dim() == 3 else None
    said = stated_layout(net, path, image, tokens) if tensor.dim() in (3, 4) else None
    return layout_of(tensor, None, trace, image, samples=samples, said=said)


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _layer(
    path: str,
    module: nn.Module,
    seen: _Seen,
    layouts: Sequence[Layout],
    ran_below: bool,
    total: int,
    height: int,
    numbers: dict[int, int],
) -> Layer:
    tensors = [tensor for tensor, _ in seen.tensors]
    sizes = tuple(tuple(tensor.shape) for tensor in tensors)
    shapes = tuple(dict.fromkeys(shown(size) if size else "scalar" for size in sizes))
    strides = list(
        dict.fromkeys(_stride(height, layout.grid[0]) for layout in layouts if layout.grid is not None)
    )
    ways = {layout.text for layout in layouts}
    stride: float | int | str | None = None
    if len(strides) == 1:
        stride = strides[0]
    elif strides:
        stride = ", ".join(str(one) for one in strides)
    return Layer(
        path=path,
        type=type(module).__name__,
        shape=None if not shapes else shapes[0] if len(shapes) == 1 else shapes,
        stride=stride,
        parameters=sum(p.numel() for p in module.parameters()),
        flops_share=seen.flops / total if seen.calls and total else None,
        status=_status(module, seen, ran_below, _unknown_map(sizes, layouts)),
        depth=path.count("."),
        layout=ways.pop() if len(ways) == 1 else None,
        sizes=sizes,
        layouts=tuple(layouts),
        order=seen.order,
        made=numbers.setdefault(id(tensors[-1]), len(numbers)) if tensors else -1,
        leaf=not ran_below,
        taps=_taps(path, tensors),
    )


def _taps(path: str, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    # What is empty is no feature to kdcli.distill.taps either: torch's fused attention gives such.
    count = sum(1 for tensor in tensors if tensor.numel())
    return (path,) if count == 1 else tuple(f"{path}[{index}]" for index in range(count))


def _stride(height: int, rows: int) -> float | int:
    ratio = height / rows
    if not ratio.is_integer():
        power = 1 << math.ceil(math.log2(max(ratio, 1.0)))
        if -(-height // power) == rows:  # halved and rounded up: 13 rows of 800 are stride 64
            return power
    return int(ratio) if ratio.is_integer() else round(ratio, 2)


def _unknown_map(sizes: Sequence[tuple[int, ...]], layouts: Sequence[Layout]) -> bool:
    return any(
        len(size) == 4 and layout.kind == "unknown" for size, layout in zip(sizes, layouts, strict=True)
    )


def _status(module: nn.Module, seen: _Seen, ran_below: bool, unknown: bool) -> str:
    if not seen.calls:
        return "container" if ran_below or isinstance(module, CONTAINERS) else "never runs"
    if not seen.tensors:
        return "gives no tensor"
    if unknown:
        return "layout unknown"
    if any(tensor._version != version for tensor, version in seen.tensors):
        return "changed in place"
    return "once" if len(seen.tensors) == 1 else "several"


def input_size(text: str) -> Size:
    """`3x224x224` as (channels, height, width)."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError.of(f"`{text}` is no input size", "write channels x height x width: 3x224x224")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


LAYERS = 12
FEW = 4
SMALLEST_BATCH = 4


class LayerSimilarity:
    """Linear CKA between every layer of one network and every layer of another.

    Batches of n ≥ 4 samples; the unbiased HSIC of each is summed, so that features are never kept.
    Source: "Do Wide and Deep Networks Learn the Same Things?", arXiv:2010.15327 (minibatch CKA);
    "Similarity of Neural Network Representations Revisited", arXiv:1905.00414.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.cross = torch.zeros(rows, columns, dtype=torch.float64)
        self.rows = torch.zeros(rows, dtype=torch.float64)
        self.columns = torch.zeros(columns, dtype=torch.float64)

    def update(self, rows: Sequence[Tensor], columns: Sequence[Tensor]) -> None:
        """Add one batch: the Gram matrix [n, n] of each layer's features."""
        row_grams, column_grams = [_centred(gram) for gram in rows], [_centred(gram) for gram in columns]
        for i, one in enumerate(row_grams):
            self.rows[i] += (one * one).sum()
            for j, other in enumerate(column_grams):
                self.cross[i, j] += (one * other).sum()
        for j, other in enumerate(column_grams):
            self.columns[j] += (other * other).sum()

    def values(self) -> Tensor:
        """[rows, columns] float64 within 0..1; 0 where a layer is constant."""
        scale = (self.rows[:, None] * self.columns[None, :]).clamp_min(0.0).sqrt()
        return torch.where(scale > 0, self.cross / scale.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)


def gram(feature: Tensor) -> Tensor:
    """Inner products between the samples of a feature [n, ...]: [n, n] float64 on the CPU."""
    flat = feature.detach().flatten(1).float()
    product: Tensor = flat @ flat.T
    return product.double().cpu()


def _centred(gram: Tensor) -> Tensor:
    """The U-centred Gram matrix: the inner product of two of these is the unbiased HSIC but for a factor."""
    n = len(gram)
    assert n >= SMALLEST_BATCH, "a batch of fewer than 4 samples has no unbiased HSIC"
    bare = gram - torch.diag(gram.diagonal())
    means = bare.sum(0) / (n - 2)
    centred: Tensor = bare - means[:, None] - means[None, :] + bare.sum() / ((n - 1) * (n - 2))
    centred = centred - torch.diag(centred.diagonal())
    return centred / math.sqrt(n * (n - 3))


def grams_of(
    forward: Callable[[Mapping[str, Any]], Any],
    net: nn.Module,
    paths: Sequence[str],
    batch: Mapping[str, Any],
) -> list[Tensor]:
    """Run the network once; the Gram matrix of each layer's last output."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad(), every_layer_runs():
        for path in paths:

            def keep(_module: nn.Module, _args: Any, output: Any, path: str = path) -> None:
                # At once, in place of the feature: a dozen large features would not fit beside each other.
                found[path] = gram(next(tensors_in(output)))

            stack.callback(net.get_submodule(path).register_forward_hook(keep).remove)
        forward(batch)
    return [found[path] for path in paths]


def stage_layers(layers: Sequence[Layer], most: int = LAYERS) -> list[str]:
    """Layers at the level of stages, in order of execution: stems, stages or blocks, classifiers.

    Modules are opened, the largest first, until at least four layers stand side by side; norms and layers
    without parameters are left out; of more than `most` an even choice stays, with the first and the last.
    """
    by_path = {layer.path: layer for layer in layers}

    def below(path: str) -> list[str]:
        result: list[str] = []
        for other in by_path:
            if other.startswith(f"{path}.") and "." not in other[len(path) + 1 :]:
                result += [other] if _counts(by_path[other]) else below(other)
        return result

    chosen = [path for path in by_path if "." not in path]
    opened = True
    while opened:
        opened = False
        for path in sorted(chosen, key=lambda name: by_path[name].parameters, reverse=True):
            inner = below(path)
            if inner and ("." not in path or len(chosen) < FEW):
                at = chosen.index(path)
                chosen[at : at + 1] = inner
                opened = True
                break
    kept = sorted((path for path in chosen if _counts(by_path[path])), key=lambda path: by_path[path].order)
    if len(kept) <= most:
        return kept
    return [kept[round(index * (len(kept) - 1) / (most - 1))] for index in range(most)]


def _counts(layer: Layer) -> bool:
    """Whether the layer returns one feature worth comparing."""
    features = [size for size in layer.sizes if len(size) >= 2]
    norm = layer.leaf and "Norm" in layer.type
    return len(layer.sizes) == len(features) == 1 and layer.parameters > 0 and not norm
