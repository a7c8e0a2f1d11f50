"""A network: modules built by their type names and run in order, each seeing what the ones before returned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdcli.errors import Diagnostic, SpecError, SpecPath, did_you_mean
from kdcli.models.construct import construct
from kdcli.models.module import ViewModule, named_outputs, refuse_names
from kdcli.models.torch_modes import NOT_FAKE
from kdcli.models.weight_names import renamed
from kdcli.spec.schema import ModuleSpec

SELF = "self"
"""The `type` of the list entry that is no module: its kwargs (`freeze_patterns`) are about the whole network."""


TEACHERS = "teachers"
"""Where in the spec the frozen networks stand."""


POOLED = "pooled"
"""What a network of timm without a head (`num_classes: 0`) returns: one vector an image."""


class Network(nn.Module):
    """Named modules, run in list order.

    forward(batch) returns the named outputs, batch fields not among them; the batch is not changed.
    A ViewModule is called with batch fields and outputs so far; any other module with `image`, and
    what it returns is named by named_outputs. Modules that a freeze pattern matches stay in eval mode.

    modules: by name, in order. frozen: patterns, a prefix of the path or 'r:' and a regex.
    paths: where in the spec each module stands, for errors. outputs: names for what a whole model returns
    as a tuple. may_lack_modules: whether weights may hold more modules than the network: a teacher's list may end
    after the layers that are mimicked. unread: what of a teacher no job reads, the modules at its end or the last
    layer of a whole model: weights of another width are not loaded there, `leave_out` takes it out.
    """

    may_lack_modules: bool = False
    unread: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    """The parameters and buffers that were read from weights; the others are as they were made."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        frozen: Sequence[str] = (),
        paths: Mapping[str, SpecPath] | None = None,
        outputs: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._frozen = tuple(frozen)
        self._paths = dict(paths or {})
        self._output_names = dict(outputs or {})
        self._without_logits = False
        self.left_out: list[str] | None = None
        """Inside `shapes_only`, the modules that the last forward left out; else None."""
        for name, parameter in self.named_parameters():
            if any(matches(pattern, alias) for pattern in self._frozen for alias in self._aliases(name)):
                parameter.requires_grad_(False)
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The named outputs of all modules."""
        seen = dict(batch)
        outputs: dict[str, Any] = {}
        if self.left_out is not None:
            self.left_out = []
        for name, module in self._modules.items():
            assert module is not None
            before = [] if torch.compiler.is_compiling() else _versions(seen)
            try:
                new = (
                    self._new(name, module, seen)
                    if self.left_out is None
                    else self._by_shapes(name, module, seen)
                )
            except KeyError as error:
                if outputs:
                    error.add_note(f"the modules before it give {', '.join(f'`{one}`' for one in outputs)}")
                raise
            self._refuse_writing(name, before)
            hidden = () if isinstance(module, ViewModule) else batch
            refuse_names(new, hidden, outputs, name, self._paths.get(name, (name,)))
            if self._without_logits:
                new = {output: value for output, value in new.items() if output != "logits"}
            seen.update(new)
            outputs.update(new)
        return outputs

    def _new(self, name: str, module: nn.Module, seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """What one module gives."""
        if isinstance(module, ViewModule):
            return module(MappingProxyType(seen))  # type: ignore[no-any-return]
        return self.named_outputs(name, module(seen["image"]))

    def _by_shapes(self, name: str, module: nn.Module, seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """What one module gives on fake tensors; nothing where it needs values, or reads what is left out.

        Own code may fail on fake tensors in ways of its own.
        """
        assert self.left_out is not None
        if not getattr(module, "needs_values", False):
            try:
                return self._new(name, module, seen)
            except (*NOT_FAKE, KeyError):
                pass
            except Exception:
                if type(module).__module__.startswith("kdcli."):
                    raise
        self.left_out.append(name)
        return {}

    def leave_out(self, part: str) -> None:
        """Take out a module with all that follow it, or the logits of a whole model by the path of its last layer."""
        names = [name for name, _ in self.named_children()]
        if part not in names:
            self._without_logits = True
            return
        for name in parts_from(self, part):
            delattr(self, name)

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen modules."""
        super().train(mode)
        if self._frozen:
            for name, module in self.named_modules():
                if name and any(matches(p, alias) for p in self._frozen for alias in self._aliases(name)):
                    module.train(False)
        return self

    def training_only(self) -> frozenset[str]:
        """Names of the modules that serve training alone and are not exported."""
        return frozenset(
            name for name, child in self.named_children() if getattr(child, "training_only", False)
        )

    def names_in_file(self) -> dict[str, str]:
        """For each parameter and buffer that is exported its name in the student's file.

        A whole model alone has its own names (`conv1.weight`, not `model.conv1.weight`), so that its class reads the
        file. A list of modules keeps the name of each, and so does a model whose own names would be read as others.
        """
        dropped = self.training_only()
        kept = [key for key in self.state_dict() if key.split(".", 1)[0] not in dropped]
        parts = {key.split(".", 1)[0] for key in kept}
        if len(parts) == 1 and _is_whole(self.get_submodule(part := next(iter(parts)))):
            bare = {key: key.removeprefix(f"{part}.") for key in kept}
            if renamed(self, list(bare.values())) == {name: key for key, name in bare.items()}:
                return bare
        return {key: key for key in kept}

    def exported_state(self) -> dict[str, Tensor]:
        """The state dict without the modules that serve training alone, under the names of names_in_file."""
        state = self.state_dict()
        return {name: state[key] for key, name in self.names_in_file().items()}

    def _aliases(self, path: str) -> Iterator[str]:
        """A path and its other spellings (conv1 of a ResNet is layer0.0)."""
        yield path
        name, _, rest = path.partition(".")
        for alias, real in getattr(getattr(self, name), "aliases", {}).items():
            if rest == real or rest.startswith(real + "."):
                yield f"{name}.{alias}{rest.removeprefix(real)}"

    @property
    def headless(self) -> bool:
        """Whether its `logits` are features: a whole model that was built without a classifier (`num_classes: 0`)."""
        return any(
            getattr(child, "num_classes", None) == 0
            for child in self.children()
            if not isinstance(child, ViewModule)
        )

    @property
    def output_names(self) -> frozenset[str]:
        """The names that the spec gives to what whole models return as a tuple."""
        return frozenset(name for names in self._output_names.values() for name in names)

    def named_outputs(self, name: str, result: Any) -> dict[str, Any]:
        """What the module of this name returned, by name; raises SpecError KD411, KD473."""
        return named_outputs(result, self._output_names.get(name), name, self._paths.get(name, (name,)))

    def _refuse_writing(self, name: str, before: Sequence[tuple[str, Tensor, int]]) -> None:
        for field, tensor, version in before:
            if tensor._version != version:
                raise SpecError.at(
                    self._paths.get(name, (name,)),
                    "KD410",
                    f"module `{name}` changed `{field}` in place",
                    "other networks and losses read the same tensor: let the module work on a copy",
                )


def parts_from(net: nn.Module, part: str) -> list[str]:
    """A module and all that follow it, or a layer inside a module alone."""
    names = [name for name, _ in net.named_children()]
    return names[names.index(part) :] if part in names else [part]


def is_whole(net: nn.Module) -> bool:
    """Whether a module of the network is a whole model: nothing of the network lies beside it."""
    return any(_is_whole(module) for module in net.children())


def _is_whole(module: nn.Module) -> bool:
    return not isinstance(module, ViewModule) or module.whole


def rehearsed(net: Network) -> Network:
    """The network, for a check alone: what is costly takes few of its inputs, enough for every layer to run."""
    for module in net.children():
        if isinstance(module, ViewModule):
            module.rehearsed = True
    return net


def tells_shapes(net: Network) -> bool:
    """Whether any module of a network can run on fake tensors."""
    return not all(getattr(module, "needs_values", False) for module in net.children())


@contextmanager
def shapes_only(*networks: nn.Module) -> Iterator[None]:
    """While it is entered, networks leave out the modules that need values, and those that read what these give.

    Each one's `left_out` names them after a forward.
    """
    found = [net for net in networks if isinstance(net, Network)]
    for net in found:
        net.left_out = []
    try:
        yield
    finally:
        for net in found:
            net.left_out = None


def _versions(fields: Mapping[str, Any]) -> list[tuple[str, Tensor, int]]:
    """Every tensor of the fields with its count of in-place changes."""
    found = []
    for name, value in fields.items():
        for item in (
            (value,) if isinstance(value, Tensor) else value if isinstance(value, list | tuple) else ()
        ):
            if isinstance(item, Tensor) and not item.is_inference():
                found.append((name, item, item._version))
    return found


def matches(pattern: str, path: str) -> bool:
    """Whether a freeze pattern (a prefix, or 'r:' and a regex found anywhere) meets a path."""
    if pattern.startswith("r:"):
        return re.search(pattern[2:], path) is not None
    return path.startswith(pattern)


def build_network(
    modules: Sequence[ModuleSpec],
    *,
    path: SpecPath,
    plugins: Sequence[str] = (),
    aligned: bool = False,
) -> Network:
    """The network of a `net` or teacher list, on the CPU, in training mode.

    path: of the list in the spec. plugins: packages outside kdcli that may be imported. aligned:
    box geometry, for the modules that take it. Every finding is at its module's path; the SpecError holds those of all
    modules that can be built without one that failed.
    A teacher's list may lack modules that its weights have, unless a module of it is a whole model.
    """
    built: dict[str, nn.Module] = {}
    paths: dict[str, SpecPath] = {}
    frozen: list[str] = []
    outputs: dict[str, tuple[str, ...]] = {}
    frozen_path: SpecPath = path
    lost: set[str] = set()
    findings: list[Diagnostic] = []
    for index, spec in enumerate(modules):
        module_path = (*path, index)
        if spec.outputs is not None and spec.type == SELF:
            raise _names_itself(spec, module_path)
        if spec.type == SELF:
            frozen_path = (*module_path, "kwargs", "freeze_patterns")
            frozen += _freeze_patterns(spec, module_path)
            continue
        if spec.name in built or not _free(spec.name):
            why = "stands twice" if spec.name in built else "can't be used here"
            raise SpecError.at(
                (*module_path, "name"), "KD409", f"the module name `{spec.name}` {why}", "choose another name"
            )
        if lost and (spec.prev is None or spec.prev in lost):
            lost.add(spec.name)  # its widths may be those of a module that failed
            continue
        facts = {"inplanes": _widths_before(spec, built, module_path), "aligned": aligned}
        try:
            built[spec.name] = construct(spec.type, spec.kwargs, facts, path=module_path, plugins=plugins)
        except SpecError as error:
            lost.add(spec.name)
            findings += error.diagnostics
            continue
        paths[spec.name] = module_path
        if spec.outputs is not None:
            if isinstance(built[spec.name], ViewModule):
                raise _names_itself(spec, module_path)
            outputs[spec.name] = spec.outputs
        elif spec.headless:
            outputs[spec.name] = (POOLED,)
    if findings:
        raise SpecError(findings)
    if not built:
        raise SpecError.at(path, "KD409", "a network needs at least one module")
    network = Network(built, frozen, paths, outputs)
    network.may_lack_modules = path[:1] == (TEACHERS,) and not is_whole(network)
    for index, pattern in enumerate(frozen):
        names = [name for name, _ in network.named_parameters()] + [
            n for n, _ in network.named_modules() if n
        ]
        if not any(matches(pattern, alias) for name in names for alias in network._aliases(name)):
            raise SpecError.at(
                (*frozen_path, index), "KD408", f"`{pattern}` freezes nothing", did_you_mean(pattern, names)
            )
    return network


def _names_itself(spec: ModuleSpec, module_path: SpecPath) -> SpecError:
    message = f"`outputs` names what a whole model returns as a tuple; `{spec.type}` names its outputs itself"
    return SpecError.at((*module_path, "outputs"), "KD473", message, "leave `outputs` out", on_key=True)


def _free(name: str) -> bool:
    """Whether a module may be called so: no dot, nothing that nn.Module has of its own."""
    own = name in Network.__annotations__ or name in nn.Module.__annotations__ or hasattr(Network, name)
    return bool(name) and "." not in name and not name.startswith("_") and not own


def _freeze_patterns(spec: ModuleSpec, module_path: SpecPath) -> list[str]:
    for key in spec.kwargs:
        if key != "freeze_patterns":
            raise SpecError.at(
                (*module_path, "kwargs", key),
                "KD404",
                f"the module `self` has no argument `{key}`",
                did_you_mean(key, ["freeze_patterns"]),
                on_key=True,
            )
    patterns = spec.kwargs.get("freeze_patterns") or []
    path = (*module_path, "kwargs", "freeze_patterns")
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise SpecError.at(path, "KD404", "`freeze_patterns` is a list of prefixes or 'r:regex' texts")
    for index, pattern in enumerate(patterns):
        try:
            re.compile(pattern.removeprefix("r:"))
        except re.error as error:
            if pattern.startswith("r:"):
                raise SpecError.at((*path, index), "KD408", f"`{pattern}` is no regex: {error}") from None
    return list(patterns)


def _widths_before(
    spec: ModuleSpec, built: Mapping[str, nn.Module], module_path: SpecPath
) -> int | list[int] | None:
    """Output widths of the module named by `prev`, else of the last one that has them."""
    if spec.prev is not None:
        if spec.prev not in built:
            raise SpecError.at(
                (*module_path, "prev"),
                "KD407",
                f"no module `{spec.prev}` stands before `{spec.name}`",
                did_you_mean(spec.prev, list(built)),
            )
        return getattr(built[spec.prev], "outplanes", None)
    widths = [getattr(module, "outplanes", None) for module in built.values()]
    return next((width for width in reversed(widths) if width is not None), None)
