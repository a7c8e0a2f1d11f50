"""Weights into a network, from a file or by a published name: fetched, checked, loaded.

`WeightSource` says what weights are for, and with `weight_fit.py` decides what becomes of those that don't fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kdcli.disk import at_path
from kdcli.errors import KdError, RunError, SpecError, SpecPath
from kdcli.models.fetching import Shown, sha256_of, unseen
from kdcli.models.hub import Card
from kdcli.models.network import Network
from kdcli.models.published import Fetched, card_of, fetch, is_absent, licence_notice, timm_state
from kdcli.models.weight_files import (
    Kind,
    described_states,
    find_file,
    kind_of,
    read_shapes,
    read_states,
    read_weights,
    save_safetensors,
    weights_hash,
)
from kdcli.models.weight_fit import Misfit, Mode, Reading, Shape, in_order, misfit, reading_of, some
from kdcli.models.weight_names import COUNTER, renamed
from kdcli.models.weight_states import NestedState, printable
from kdcli.spec.places import HERE, Places
from kdcli.spec.published import Published, is_published, published
from kdcli.spec.schema import ModuleSpec

__all__ = [
    "Misfit",
    "WeightSource",
    "check_weights",
    "find_file",
    "fit_weights",
    "load_weights",
    "misfit",
    "read_shapes",
    "read_weights",
    "renamed",
    "save_safetensors",
    "weights_hash",
]


def fit_weights(net: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Load a whole state; raises RunError listing what is missing, unexpected or mis-shaped.

    name: of the weights, for the message. The network is unchanged when it raises. Returns notices of
    what a teacher's list has no module for, and of names that are read as others.
    """
    return _fit(net, [NestedState("", state)], name, "strict")


def load_weights(
    net: nn.Module,
    source: str | Path,
    *,
    where: SpecPath | None = None,
    mode: Mode = "strict",
    key: str | None = None,
) -> list[str]:
    """Read a file into a network; returns notices of what was left out or read otherwise.

    where: the place in the spec, for errors. key: the nested state to read, `a.b`; else the first of the
    usual ones that fits. mode `strict`: everything fits, but for modules that serve training alone, and those
    that a teacher's list lacks; what of a teacher is unread (`Network.unread`) and has another width in the file
    is taken out of the network. `pretrain`: whole modules that the file lacks, the last linear layer and layers
    with another number of outputs stay random; no other module is loaded by half.
    """
    with _at_weights(where):
        return _fit(net, read_states(source, key), f"`{source}`", mode)


def check_weights(
    net: nn.Module,
    source: str | Path,
    *,
    where: SpecPath | None = None,
    mode: Mode = "strict",
    key: str | None = None,
    name: str | None = None,
) -> list[str]:
    """Check whether load_weights would succeed, from names and shapes in the file alone; same errors, notices.

    name: what messages call the file, where that is not its path. The network loses what load_weights would take out.
    """
    called = f"`{name or source}`"
    with _at_weights(where):
        states = described_states(source, key)
        shapes = [state.of({k: shape for k, (shape, _) in state.tensors.items()}) for state in states]
        reading = reading_of(net, shapes, called, mode)
        kinds = {k: kind for k, (_, kind) in states[reading.state].tensors.items()}
        _check_kinds(net, kinds, reading.names, called)
        _leave_out(net, reading)
        return reading.notices


Role = Literal["teacher", "start", "evaluation"]
"""What weights are for: a teacher, the student before its training (`pretrain_model`), or measuring a network."""


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Weights that a spec names at `where`, and what they are for.

    role: a student's start may lack its last layer, which is made anew; anything else must fit. key: `weight_key`;
    by_order: `weight_order`. modules: of the network's list.
    """

    name: str
    role: Role
    where: SpecPath | None = None
    key: str | None = None
    by_order: bool = False
    modules: Sequence[ModuleSpec] = ()
    places: Places = HERE

    @property
    def mode(self) -> Mode:
        """How strictly they must fit."""
        return "pretrain" if self.role == "start" else "strict"

    @property
    def parts(self) -> Published | None:
        """The parts of a published name; those that a run took where it goes on. None for a file. Raises KD557."""
        if not is_published(self.name):
            return None
        before = self.places.published_before(self.name, self.where or ())
        return published(self.name if before is None else before.resolved)

    def card(self) -> Card | None:
        """What is known of published weights; None for a file, and for a package that is not installed.

        Of that `check` and `load` tell. Raises KdError at the path where the name is wrong.
        """
        with at_path(self.where):
            parts = self.parts
            return None if parts is None or is_absent(parts) else card_of(parts, self.modules)

    def check(self, net: nn.Module, *, fetch_them: bool = False, shown: Shown = unseen) -> list[str]:
        """Check whether `load` would succeed, from names and shapes; same errors, notices.

        fetch_them: bring published weights to this machine first; else those that aren't here are known by name alone.
        """
        with _at_weights(self.where), unset_fake_temporarily():
            parts = self.parts
            if parts is None:
                file = find_file(self.name, self.places, self.where)
            elif fetch_them:
                file = fetch(parts, self.modules, shown).file
            else:
                card = card_of(parts, self.modules)
                if card.file is None:
                    return []
                file = card.file
            if parts is not None and self._timm_module(parts) is not None:
                return []  # timm's code decides how they are read, which takes as long as to load them
            if self.by_order:
                described = described_states(file, self.key)
                _ordered(
                    net,
                    [s.of({k: shape for k, (shape, _) in s.tensors.items()}) for s in described],
                    f"`{self.name}`",
                    self.mode,
                )
                return []
            called = None if parts is None else self.name
            return check_weights(net, file, where=self.where, mode=self.mode, key=self.key, name=called)

    def load(self, net: nn.Module, shown: Shown = unseen) -> list[str]:
        """Load the weights, fetched where they aren't here; returns notices: what isn't read, which licence they have.

        Raises KdError at the path.
        """
        with _at_weights(self.where):
            parts = self.parts
            if parts is None:
                file = find_file(self.name, self.places, self.where)
                return self._fit(net, read_states(file, self.key), f"`{file}`")
            got = fetch(parts, self.modules, shown)
            notices = [] if (licence := licence_notice(got.card)) is None else [licence]
            if (changed := self._changed(got)) is not None:
                notices.append(changed)
            module = self._timm_module(got.card.name)
            if module is not None:
                with torch.random.fork_rng(devices=[]):
                    state, said = timm_state(got.card.name, got.file, module)
                return [*notices, *said, *self._fit(net, [NestedState("", state)], f"`{self.name}`")]
            return [*notices, *self._fit(net, read_states(got.file, self.key), f"`{self.name}`")]

    def file(self) -> Path | None:
        """Their file on this machine; None where it isn't known."""
        if is_published(self.name):
            card = self.card()
            return None if card is None else card.file
        return find_file(self.name, self.places, self.where)

    def identity(self) -> dict[str, str] | None:
        """What a run records of published weights that are here; None for a file, and where they aren't."""
        try:
            parts = self.parts
            card = None if parts is None else card_of(parts, self.modules)
            if parts is None or card is None or card.file is None:
                return None
            return {"resolved": str(card.name), "sha256": sha256_of(card.file)}
        except (KdError, OSError):
            return None

    def _changed(self, got: Fetched) -> str | None:
        before = self.places.published_before(self.name, self.where or ())
        if before is None or before.sha256 == got.sha256:
            return None
        return (
            f"`{self.name}` is another file than the run took: sha256 {got.sha256[:12]}..., it was "
            f"{before.sha256[:12]}..."
        )

    def _timm_module(self, parts: Published) -> ModuleSpec | None:
        """The module of timm's for which its own code reads the weights."""
        if parts.scheme != "timm":
            return None
        return next((m for m in self.modules if m.type.startswith("timm.")), None)

    def _fit(self, net: nn.Module, states: Sequence[NestedState[Tensor]], name: str) -> list[str]:
        if self.by_order:
            index, names = _ordered(
                net, [state.of(_shapes(state.tensors)) for state in states], name, self.mode
            )
            found = states[index]
            states = [found.of({new: found.tensors[old] for old, new in names.items()})]
            first, own = next(iter(names.items()))
            notice = f"{name}: {len(names)} tensors are read in order, not by name: `{printable(first)}` is `{own}` ..."
            head = [old for old in found.tensors if old not in names and not old.endswith(COUNTER)]
            notice += f"; {some(head)} are left out: the network has no head" if head else ""
            return [notice, *_fit(net, states, name, self.mode)]
        return _fit(net, states, name, self.mode)


def _ordered(
    net: nn.Module, states: Sequence[NestedState[Shape]], name: str, mode: Mode
) -> tuple[int, dict[str, str]]:
    """The first state that agrees with the network tensor by tensor in order, and the network's names; else KD579."""
    reasons = []
    for index, state in enumerate(states):
        names = in_order(net, state.tensors, mode)
        if not isinstance(names, str):
            return index, names
        reasons.append(names)
    raise RunError.of(
        "KD579",
        f"the weights {name} do not agree with the network in order: {reasons[0]}",
        "take `weight_order` out and see what differs by name",
    )


@contextmanager
def _at_weights(where: SpecPath | None) -> Iterator[None]:
    """Set the place of the weights on errors, that of `weight_key` on those about it; without one, it is an option."""
    try:
        yield
    except RunError as error:
        if where is None:
            option = (
                replace(d, help=d.help and d.help.replace("`weight_key: ", "`--weight-key "))
                for d in error.diagnostics
            )
            raise RunError(list(option)) from error
        key = (*where[:-1], "weight_key")
        raise SpecError(
            [replace(d, path=key if d.code == "KD547" else where) for d in error.diagnostics]
        ) from error


def _fit(net: nn.Module, states: Sequence[NestedState[Tensor]], name: str, mode: Mode) -> list[str]:
    reading = reading_of(net, [state.of(_shapes(state.tensors)) for state in states], name, mode)
    _load(net, states[reading.state].tensors, reading, name)
    _leave_out(net, reading)
    return reading.notices


def _leave_out(net: nn.Module, reading: Reading) -> None:
    if reading.left_out is not None and isinstance(net, Network):
        net.leave_out(reading.left_out)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _load(net: nn.Module, state: Mapping[str, Tensor], reading: Reading, name: str) -> None:
    kinds = {key: kind_of(tensor.dtype) for key, tensor in state.items()}
    _check_kinds(net, kinds, reading.names, name)
    own = net.state_dict()
    chosen = {
        target: reading.spelling.tensor(key, state[key])
        for key, target in reading.names.items()
        if target in own
    }
    beyond = [key for key, tensor in chosen.items() if _overflows(tensor, own[key].dtype)]
    if beyond:
        raise RunError.of(
            "KD538",
            f"the weights {name} hold values too large for the network's numbers: {some(beyond)}",
            "are they the network's weights?",
        )
    net.load_state_dict(chosen, strict=False)
    if isinstance(net, Network):
        net.loaded = frozenset(chosen)


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether finite values would become infinite in a smaller type."""
    if tensor.dtype != torch.float64 or not dtype.is_floating_point or dtype == torch.float64:
        return False
    return bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any())


def _check_kinds(net: nn.Module, kinds: Mapping[str, Kind], names: Mapping[str, str], name: str) -> None:
    """Raise RunError KD538 where a file's numbers are of another kind than the network's, and would be cut."""
    own = net.state_dict()
    differing: dict[tuple[Kind, Kind], list[str]] = {}
    for key, target in names.items():
        if (
            target in own
            and not target.endswith(COUNTER)
            and kinds[key] != (kind := kind_of(own[target].dtype))
        ):
            differing.setdefault((kinds[key], kind), []).append(key)
    for (given, kind), keys in differing.items():
        raise RunError.of(
            "KD538",
            f"the weights {name} are {given} numbers where the network has {kind} ones: {some(keys)}",
            "give them as they were before they were quantised or converted; kdcli reads float16, bfloat16, float32 "
            "and float64 alike",
        )
