"""Features of named layers, collected while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdcli.distill.channels import ChannelTrace
from kdcli.distill.layouts import Layout, layout_of, layout_of_part
from kdcli.distill.tap_layouts import Tap as Tap
from kdcli.distill.tap_layouts import find_layouts, handed_on
from kdcli.distill.tap_layouts import tensors_in as tensors_in
from kdcli.errors import Findings, RunError, SpecError, SpecPath, did_you_mean, first_line
from kdcli.models.network import Network
from kdcli.spec.schema import LayoutSpec

Feature = Tensor | list[Tensor]
_Shown = tuple[dict[str, list[Tensor]], dict[str, Any]]

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True, slots=True)
class View:
    """What one network gave on one batch: features by tap, and its named outputs.

    layouts: how each tensor of a tap is read, found by `Taps.learn` and in no other view; maps are handed on channels
    first and tokens channels last, whatever they are in the network. names: of each tap the canonical name, in the same
    views.
    """

    features: Mapping[str, Feature]
    outputs: Mapping[str, Any] = field(default_factory=dict)
    layouts: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def layouts_of(self, tap: str) -> tuple[Layout, ...]:
        """How each tensor of a tap is read; where no pass has found out, its number of axes says."""
        found = self.layouts.get(tap)
        if found is not None:
            return found
        return tuple(layout_of(one, self.outputs.get("logits")) for one in tensors_in(self.features[tap]))


def tapped(view: View, taps: Iterable[str]) -> list[Feature]:
    """The features of these taps, in order."""
    return [view.features[tap] for tap in taps]


GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs."""


def begin_batch(*networks: Taps | None) -> bool:
    """Say that a batch begins to compiled networks that replay CUDA graphs; returns whether there are any.

    A replay overwrites what its network gave of the batch before; without this word torch would also let the student's
    overwrite what the teachers have just given.
    """
    replays = any(taps is not None and taps.replays for taps in networks)
    if replays:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    return replays


class _EnoughSeen(Exception):
    """Raised when every tap has all its outputs: the rest of the network is not needed."""


class Taps:
    """The taps of one network; its hooks live inside a `with` block.

    names: tap texts. outputs: the network outputs that are needed beside them; None runs the network
    to its end. where: the place of each tap text in the spec, for errors. findings: where given, names that
    can't be tapped are told there and left out, in place of an error. stated: what the spec says of the layout of
    a tap's features. stopped_at: the layer after which the last view stopped, None where the network ran to its end.

    `learn` runs the whole network once, and finds out how often each tap fires, which features are changed
    in place afterwards and how the axes of each are read. A `view` then stops as soon as nothing more is
    needed, and clones the features that are changed; `require` narrows what is needed. Outside `learn` and
    `view` the hooks do nothing.
    """

    def __init__(
        self,
        net: nn.Module,
        names: Iterable[str],
        outputs: Iterable[str] | None = None,
        where: Mapping[str, SpecPath] | None = None,
        findings: Findings | None = None,
        stated: Mapping[str, LayoutSpec] | None = None,
    ) -> None:
        self.net = net
        self.stated = dict(stated or {})
        self.layouts: dict[str, tuple[Layout, ...]] = {}
        self.handed_changed: frozenset[str] = frozenset()
        """The taps whose features losses get in another layout than the network has, or in part."""
        self.where = dict(where or {})
        self.taps: dict[str, Tap] = {}
        self.modules: dict[str, nn.Module | None] = {}
        wrong = findings or Findings()
        for name in names:
            with wrong.part():
                place = self.where.get(name, ())
                tap = Tap.parse(name, place).in_network(net)
                self.modules[name] = find_layer(net, tap, place)
                self.taps[name] = tap
        if findings is None:
            wrong.raise_errors()
        self.names = frozenset(self.taps)
        self.outputs = None if outputs is None else frozenset(outputs)
        self.changed_in_place: frozenset[str] = frozenset()
        self.counts: dict[str, int] | None = None
        self.stopped_at: str | None = None
        self.replays = False
        self._seen: dict[str, list[Tensor]] = {}
        self._versions: dict[str, list[int]] = {}
        self._made: dict[str, Any] = {}
        self._stop = False
        self._outputs_due: frozenset[str] = frozenset()
        self._compiled: (
            Callable[[Mapping[str, Any]], tuple[dict[str, list[Tensor]], dict[str, Any]]] | None
        ) = None
        self._hooks: ExitStack | None = None

    def __enter__(self) -> Taps:
        with ExitStack() as stack:
            for name, module in self.modules.items():
                if module is not None:
                    stack.callback(self._hook(name, module).remove)
            for name, child in self.net.named_children():
                stack.callback(self._hook_child(name, child).remove)
            self._hooks = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hooks is not None, "taps were left before they were entered"
        self._hooks.close()
        self._hooks = None

    def require(self, names: Iterable[str], outputs: Iterable[str] | None) -> None:
        """Set the taps and outputs that are needed from now on; None runs the network to its end."""
        self.names = frozenset(names)
        self.outputs = None if outputs is None else frozenset(outputs)

    def compile(self, mode: str = "default") -> None:
        """Compile the views with torch.compile, in one of its modes, from now on; the taps must be entered.

        What no tap and no output needs is no part of the compiled graph, which takes the place of stopping.
        """
        assert self._hooks is not None, "taps must be entered before their network is compiled"
        self.replays = mode in GRAPHS and any(p.is_cuda for p in self.net.parameters())
        self._compiled = torch.compile(self._shown, mode=None if mode == "default" else mode)

    def learn(self, batch: Mapping[str, Any], *, gradients: bool = False) -> View:
        """Run the whole network once, by default without gradient, and return its view.

        A feature that is changed in place after it was captured shows the changed values in this one
        view only (its shape is right).
        """
        with torch.set_grad_enabled(gradients), ChannelTrace() as trace:
            self.counts = None
            view = self._run(batch, stop=False, versions=True)
        self.changed_in_place |= frozenset(
            name
            for name, seen in self._seen.items()
            if any(t._version != v for t, v in zip(seen, self._versions[name], strict=True))
        )
        self.counts = {name: len(seen) for name, seen in self._seen.items()}
        self._clear()
        # Behind the clearing: another pass for another size must leave no trace in what was seen.
        whole = find_layouts(self.net, self.taps, view.features, view.outputs, trace, batch, self.stated)
        self._clear()
        self.layouts = whole
        self.handed_changed = frozenset(
            name
            for name, layouts in whole.items()
            if self.taps[name].part is not None
            or any(layout.channels_last or layout.tokens_last for layout in layouts)
        )
        names = {name: tap.canonical for name, tap in self.taps.items()}
        layouts = {name: tuple(self._handed_on(name, one) for one in whole[name]) for name in view.features}
        return replace(view, features=self._canonical(view.features), layouts=layouts, names=names)

    def _handed_on(self, name: str, layout: Layout) -> Layout:
        """How what the tap hands on is read: a part of tokens as that part."""
        part = self.taps[name].part
        return layout.handed_on if part is None else layout_of_part(layout, part)

    def _canonical(self, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """Maps channels first, tokens channels last, the part that a tap names; raises SpecError KD666 without it."""
        made: dict[str, Feature] = {}
        wrong = Findings()
        for name, feature in features.items():
            if name not in self.handed_changed:
                made[name] = feature
                continue
            with wrong.part():
                tensors = [
                    handed_on(tensor, layout, self.taps[name], self.where.get(name, ()))
                    for tensor, layout in zip(tensors_in(feature), self.layouts[name], strict=True)
                ]
                made[name] = tensors[0] if isinstance(feature, Tensor) else tensors
        wrong.raise_errors()
        return made

    def view(self, batch: Mapping[str, Any]) -> View:
        """Run the network on a batch, as far as it is needed, and return its view."""
        if self._compiled is not None:
            return self._view_compiled(batch)
        assert self.counts is not None, "taps must learn before a view is taken"
        view = self._run(batch, stop=self.outputs is not None, versions=False)
        self._clear()
        return View(self._canonical(view.features), view.outputs) if self.handed_changed else view

    def _view_compiled(self, batch: Mapping[str, Any]) -> View:
        assert self._compiled is not None
        self._versions, self._stop, self.stopped_at = {}, False, None
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        try:
            seen, outputs = self._compiled(tensors)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise _not_compiled(error) from error
            raise
        self._seen = seen
        features = {name: self._feature(name, outputs) for name in self.taps if name in self.names}
        self._clear()
        return View(self._canonical(features), outputs)

    def _shown(self, batch: Mapping[str, Any]) -> _Shown:
        """What every needed layer gave, and the needed outputs; traced as it stands."""
        wanted = [name for name in self.taps if name in self.names]
        self._seen = {name: [] for name in wanted if self.modules[name] is not None}
        outputs = dict(self.net(batch))
        seen, self._seen = self._seen, {}
        if self.outputs is None:
            return seen, outputs
        due = {*self.outputs, *(self.taps[name].path for name in wanted if self.modules[name] is None)}
        return seen, {name: value for name, value in outputs.items() if name in due}

    def _run(self, batch: Mapping[str, Any], *, stop: bool, versions: bool) -> View:
        assert self._hooks is not None, "taps must be entered before the network runs"
        wanted = [name for name in self.taps if versions or name in self.names]
        self._seen = {name: [] for name in wanted if self.modules[name] is not None}
        self._versions = {name: [] for name in self._seen} if versions else {}
        self._made, self._stop, self.stopped_at = {}, stop, None
        if stop:
            self._outputs_due = frozenset(self.outputs or ()) | {
                self.taps[name].path for name in wanted if self.modules[name] is None
            }
        try:
            outputs = dict(self.net(batch))
        except _EnoughSeen:
            outputs = self._made
        left_out = self.net.left_out if isinstance(self.net, Network) else None
        if left_out:
            wanted = [name for name in wanted if not self._beyond(name, outputs, left_out)]
        try:
            return View({name: self._feature(name, outputs) for name in wanted}, outputs)
        except SpecError:
            self._refuse(wanted, outputs)
            raise

    def _refuse(self, wanted: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise one error of all the taps that can't be read."""
        wrong = Findings()
        for name in wanted:
            with wrong.part():
                self._feature(name, outputs)
        wrong.raise_errors()

    def _beyond(self, name: str, outputs: Mapping[str, Any], left_out: Sequence[str]) -> bool:
        """Whether a tap is of what `shapes_only` has left out."""
        if self.modules[name] is None:
            return self.taps[name].path not in outputs
        return self.taps[name].path.partition(".")[0] in left_out

    def _clear(self) -> None:
        self._seen, self._versions, self._made, self._stop = {}, {}, {}, False

    def _hook(self, name: str, module: nn.Module) -> RemovableHandle:
        def keep_output(_module: nn.Module, _args: Any, output: Any) -> None:
            self._keep(name, output)

        def keep_input(_module: nn.Module, args: Any) -> None:
            self._keep(name, args[0] if args else None)

        if self.taps[name].at_input:
            return module.register_forward_pre_hook(keep_input)
        return module.register_forward_hook(keep_output)

    def _keep(self, name: str, value: Any) -> None:
        if name not in self._seen:
            return
        copied = name in self.changed_in_place
        for tensor in tensors_in(value):
            if tensor.numel() == 0:
                continue  # what torch's fused attention gives in place of the weights nobody asked for
            self._seen[name].append(tensor.clone() if copied else tensor)
            if self._versions:
                self._versions[name].append(tensor._version)
        self._stop_if_enough(self.taps[name].path)

    def _hook_child(self, name: str, child: nn.Module) -> RemovableHandle:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self._after_child(name, output)

        return child.register_forward_hook(after)

    def _after_child(self, name: str, output: Any) -> None:
        if self._compiled is not None or not self._stop:
            return
        if isinstance(self.net, Network):
            self._made.update(self.net.named_outputs(name, output))
        elif isinstance(output, Mapping):
            self._made.update(output)
        elif isinstance(output, Tensor):
            self._made["logits"] = output
        self._stop_if_enough(name)

    def _stop_if_enough(self, layer: str) -> None:
        if not self._stop:
            return
        assert self.counts is not None
        if all(len(seen) >= self.counts[name] for name, seen in self._seen.items()) and all(
            name in self._made for name in self._outputs_due
        ):
            self.stopped_at = layer
            raise _EnoughSeen

    def _feature(self, name: str, outputs: Mapping[str, Any]) -> Feature:
        tap = self.taps[name]
        if self.modules[name] is not None:
            found = list(self._seen[name])
        elif tap.path in outputs:
            found = list(tensors_in(outputs[tap.path]))
        else:
            raise _unknown(self.net, tap, self.where.get(name, ()), outputs)
        if not found:
            raise _never_ran(self.net, tap, self.where.get(name, ()))
        if tap.index is None:
            return found[0] if len(found) == 1 else found
        if tap.index >= len(found):
            raise SpecError.at(
                self.where.get(name, ()),
                "KD423",
                f"`{tap.path}` gives {len(found)} feature(s) in one forward, there is no number {tap.index}",
                f"use an index from 0 to {len(found) - 1}",
            )
        return found[tap.index]


def find_layer(net: nn.Module, tap: Tap, path: SpecPath = ()) -> nn.Module | None:
    """The module a tap names; None where it can only be the name of an output."""
    try:
        module = net.get_submodule(tap.path)
    except AttributeError:
        if "." in tap.path or tap.at_input:
            raise _unknown(net, tap, path, {}) from None
        return None
    if isinstance(module, CONTAINERS):
        children = [f"{tap.path}.{name}" for name, _ in module.named_children()]
        raise SpecError.at(
            path,
            "KD421",
            f"`{tap.path}` is a {type(module).__name__}: it holds layers and never runs itself",
            f"name one of its children: {_listed(children)}",
        )
    return module


def _unknown(net: nn.Module, tap: Tap, path: SpecPath, outputs: Mapping[str, Any]) -> SpecError:
    names = [name for name, _ in net.named_modules() if name] + list(outputs)
    head, _, _ = tap.path.rpartition(".")
    siblings = [name for name in names if head and name.startswith(head + ".")]
    ends = [name for name in names if name.endswith("." + tap.path)]
    help_line = f"did you mean {_listed(ends, 3)}?" if ends else _numbered(net, tap)
    help_line = help_line or did_you_mean(tap.path, names)
    if help_line is None and siblings:
        help_line = f"`{head}` has: {_listed(siblings)}"
    return SpecError.at(
        path,
        "KD422",
        f"no layer or output is called `{tap.path}`",
        help_line or "`kdcli inspect-features` lists every layer that can be named",
    )


def _numbered(net: nn.Module, tap: Tap) -> str | None:
    """A help where the path ends in a number that is no child: what a layer gives is numbered in brackets."""
    head, _, number = tap.path.rpartition(".")
    layer = dict(net.named_modules()).get(head)
    if layer is None or not number.isdecimal() or isinstance(layer, CONTAINERS):
        return None
    if any(name.isdecimal() for name, _ in layer.named_children()):
        return None  # a Sequential that is shorter
    word = f"{head}{':in' if tap.at_input else ''}[{int(number)}]"
    return f"did you mean `{word}`? The features of a layer that gives several are numbered in brackets"


def elements_of(name: str, count: int) -> str:
    """How the features of a tap that gives several are named: `name[0]` ... `name[4]`."""
    return f"`{name}[0]`{' ...' if count > 2 else ','} `{name}[{count - 1}]`"


def _never_ran(net: nn.Module, tap: Tap, path: SpecPath) -> SpecError:
    module = net.get_submodule(tap.path)
    children = [f"{tap.path}.{name}" for name, _ in module.named_children()]
    return SpecError.at(
        path,
        "KD424",
        f"`{tap.path}` ({type(module).__name__}) does not run in a forward pass, or returns no tensor",
        f"name one of its children: {_listed(children)}"
        if children
        else "`kdcli inspect-features` shows which layers run",
    )


def _not_compiled(error: Exception) -> RunError:
    reason = first_line(error)
    return RunError.of(
        "KD726",
        f"torch.compile can't compile a network: {reason[:200]}",
        "leave `runtime.compile` out; on a CPU it needs a C++ compiler",
    )


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
