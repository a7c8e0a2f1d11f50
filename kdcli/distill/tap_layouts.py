"""What a tap names, and how the features of the taps of one network are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.channels import ChannelTrace, image_size
from kdcli.distill.layouts import Layout, Part, checked_at_double_width, in_order, layout_of, part_of
from kdcli.errors import SpecError, SpecPath
from kdcli.models.feature_layouts import stated_layout
from kdcli.models.network import Network
from kdcli.spec.schema import LayoutSpec

_TAP = re.compile(
    r"(?P<path>[^:\[\]\s]+)(?P<input>:in)?(?::(?P<part>patches|class|prefix))?(?:\[(?P<index>\d+)\])?"
)


@dataclass(frozen=True, slots=True)
class Tap:
    """One entry of `mimic_name`: a layer's output, its input (`path:in`), one call of it (`path[i]`).

    part: of tokens those that are meant (`path:patches`, `path:class`, `path:prefix`), None for all.
    """

    text: str
    path: str
    at_input: bool = False
    index: int | None = None
    part: Part | None = None

    @classmethod
    def parse(cls, text: str, path: SpecPath = ()) -> Tap:
        """Read `path`, with `:in`, then `:patches`, `:class` or `:prefix`, then `[i]` behind it."""
        match = _TAP.fullmatch(text)
        if match is None:
            raise SpecError.at(
                path,
                "KD420",
                f"`{text}` is not a layer path",
                "write a path such as `backbone.layer3`, `backbone.layer3:in`, `head.conv[2]` or, of tokens, "
                "`blocks.11:patches` (`:class`, `:prefix`)",
            )
        index = match["index"]
        part: Any = match["part"]
        return cls(
            text, match["path"], match["input"] is not None, None if index is None else int(index), part
        )

    def in_network(self, net: nn.Module) -> Tap:
        """The tap with its whole path: a path inside of the only module that has weights may begin there."""
        return replace(self, path=whole_path(net, self.path))

    @property
    def canonical(self) -> str:
        """The tap as text, with the path that it has now."""
        ends = (":in" if self.at_input else "", f":{self.part}" if self.part else "")
        return "".join((self.path, *ends, "" if self.index is None else f"[{self.index}]"))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a layer's output: itself, or those of a list, tuple or mapping, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def whole_path(net: nn.Module, path: str) -> str:
    """The path from the network: `blocks.11` is `model.blocks.11` where `model` is its only module with weights.

    What the network has by that name, or gives as an output, stays what it is.
    """
    children = [name for name, child in net.named_children() if next(child.parameters(), None) is not None]
    if len(children) != 1 or not isinstance(net, Network) or path in ("logits", *net.output_names):
        return path
    for start in ("", f"{children[0]}."):
        try:
            net.get_submodule(start + path)
        except AttributeError:
            continue
        return start + path
    return path


def find_layouts(
    net: nn.Module,
    taps: Mapping[str, Tap],
    features: Mapping[str, Any],
    outputs: Mapping[str, Any],
    trace: ChannelTrace,
    batch: Mapping[str, Any],
    stated: Mapping[str, LayoutSpec],
) -> dict[str, tuple[Layout, ...]]:
    """How each tensor of a tap is read, as its layer gives it.

    features, outputs: of one pass over the batch that `trace` has watched. stated: what the spec says, by tap.
    """
    size, logits = image_size(batch), outputs.get("logits")
    samples = len(batch["image"]) if size is not None else None
    layouts: dict[str, tuple[Layout, ...]] = {}
    for name, feature in features.items():
        found = []
        for tensor in tensors_in(feature):
            said = None
            if size is not None and tensor.dim() in (3, 4):
                tokens = tensor.shape[1] if tensor.dim() == 3 else None
                said = stated_layout(net, taps[name].path, size, tokens)
            spec = stated.get(name)
            found.append(layout_of(tensor, logits, trace, size, samples=samples, said=said, spec=spec))
        layouts[name] = tuple(found)
    due = [name for name, found in layouts.items() if any(_by_size(one) for one in found)]
    if size is not None and due:
        # What is contradicted isn't known: the latents of a network are as many for every image.
        seen = _shapes_at_double_width(net, [taps[name] for name in due], batch)
        for name in due:
            tensors, shapes = list(tensors_in(features[name])), seen.get(taps[name].text, [])
            if len(shapes) == len(tensors):
                layouts[name] = tuple(
                    checked_at_double_width(one, tensor.shape, shape, size) if _by_size(one) else one
                    for one, tensor, shape in zip(layouts[name], tensors, shapes, strict=True)
                )
    return layouts


def _by_size(layout: Layout) -> bool:
    """Whether nothing but the size of a feature tells how it is read, or could tell."""
    return layout.known_from == "evidence" or (layout.kind == "unknown" and layout.grid is not None)


def _shapes_at_double_width(
    net: nn.Module, taps: Iterable[Tap], batch: Mapping[str, Any]
) -> dict[str, list[torch.Size]]:
    """The shapes of these taps' tensors for one image of twice the width; none where the network takes none."""
    seen: dict[str, list[torch.Size]] = {}
    image = batch["image"][:1]
    wide = {**batch, "image": torch.cat((image, image), 3)}
    modes = [(module, module.training) for module in net.modules()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with ExitStack() as stack, torch.no_grad():
        for tap in taps:
            shapes = seen.setdefault(tap.text, [])

            def note(_module: nn.Module, args: Any, output: Any = None, tap: Tap = tap) -> None:
                value = args[0] if tap.at_input and args else output
                seen[tap.text] += [tensor.shape for tensor in tensors_in(value) if tensor.numel()]

            try:
                layer = net.get_submodule(tap.path)
            except AttributeError:
                continue  # an output's name
            shapes.clear()
            register = layer.register_forward_pre_hook if tap.at_input else layer.register_forward_hook
            stack.callback(register(note).remove)
        stack.enter_context(torch.random.fork_rng(devices=devices))
        try:
            net.eval()(wide)
        except Exception:  # whatever a network says that takes one size alone
            return {}
        finally:
            for module, mode in modes:
                module.training = mode
    return {
        tap.text: shapes if tap.index is None else shapes[tap.index : tap.index + 1]
        for tap in taps
        if (shapes := seen[tap.text])
    }


def handed_on(tensor: Tensor, layout: Layout, tap: Tap, where: SpecPath) -> Tensor:
    """A feature as its tap hands it on: a map channels first, tokens channels last or the part that the tap names.

    Raises SpecError KD666 where there is no such part, or it isn't known.
    """
    part = tap.part
    if part is None:
        return in_order(tensor, layout)
    lacks_class = part == "class" and layout.class_token is False
    if layout.prefix is None or lacks_class or (part == "prefix" and layout.prefix == 0):
        raise _no_part(where, tap, tensor, layout)
    return part_of(tensor, layout, part)


def _no_part(path: SpecPath, tap: Tap, tensor: Tensor, layout: Layout) -> SpecError:
    shape = "[" + ", ".join(["B", *(str(n) for n in tensor.shape[1:])]) + "]"
    if layout.prefix is None:
        what = "no tokens" if layout.kind != "tokens" else "tokens of which neither prefix nor grid is known"
        help = (
            "name a layer that gives tokens: `kdcli inspect-features` shows their layout"
            if layout.kind != "tokens"
            else "say it on the job: `layout: {prefix: 1, grid: [14, 14]}`, with the numbers of this network"
        )
    else:
        kind = "class token" if tap.part == "class" else "token before its patches"
        what, help = f"{layout.text}, without a {kind}", f"name `{tap.path}` or `{tap.path}:patches`"
    return SpecError.at(
        path, "KD666", f"`{tap.text}` names a part of tokens, and `{tap.path}` gives {shape}: {what}", help
    )
