"""Whether a file's tensors fit a network, and what to say where they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from torch import nn

from kdcli.errors import RunError
from kdcli.models.network import Network, is_whole, parts_from
from kdcli.models.weight_names import COUNTER, Spelling, last_layer, renamed, spellings
from kdcli.models.weight_states import NestedState, not_usual, printable

Shape = tuple[int, ...]

Mode = Literal["strict", "pretrain"]


@dataclass(frozen=True, slots=True)
class Misfit:
    """Tensors of a state that don't fit a network; mis-shaped as (name, file's shape, network's shape)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, Shape, Shape], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def text(self, most: int = 5) -> str:
        """One line: counts, and the first few names of each kind."""
        parts = []
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", [f"{n} {_size(a)} instead of {_size(b)}" for n, a, b in self.misshaped]),
        ):
            if names:
                parts.append(f"{len(names)} {title}: {some(names, most)}")
        return "; ".join(parts)


def misfit(net: nn.Module, shapes: Mapping[str, Shape]) -> Misfit:
    """Compare the shapes of a file with a network's, after renaming; counters of BatchNorm are free."""
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {target: shapes[key] for key, target in renamed(net, list(shapes)).items()}
    free = _training_only(net)
    return Misfit(
        missing=tuple(
            k for k in own if k not in given and not k.endswith(COUNTER) and k.split(".", 1)[0] not in free
        ),
        unexpected=tuple(k for k in given if k not in own and not k.endswith(COUNTER)),
        misshaped=tuple((k, s, own[k]) for k, s in given.items() if k in own and s != own[k]),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file fills a network: of which state what is read under which names.

    names: the network's name for each of the file's that is loaded. notices: what a user is told. left_out: the
    unread part of a teacher that the file has in another width, for `Network.leave_out`.
    """

    state: int
    spelling: Spelling
    names: Mapping[str, str]
    notices: list[str]
    left_out: str | None = None


def reading_of(net: nn.Module, states: Sequence[NestedState[Shape]], name: str, mode: Mode) -> Reading:
    """How to read a file into a network: its first usual state that fits, in the plainest spelling that does.

    Raises RunError where nothing fits, or where two parts of a state fit alike.
    """
    usual = [state for state in states if state.usual]
    # What fits as a whole comes before what fits but for an unread part.
    spares = (False, True) if mode == "strict" and _unread(net) else (False,)
    for spare, (index, state) in product(spares, enumerate(usual)):
        fits = list(_fits(net, state, index, name, mode, spare=spare))
        if not fits:
            continue
        best = max(fits, key=lambda reading: len(reading.names))  # the first of equal ones
        rivals = [
            r for r in fits if len(r.names) == len(best.names) and r.names.keys().isdisjoint(best.names)
        ]
        if rivals:
            # `teacher.model.` lies within `teacher.`, which is said alone.
            rivals = [
                r for i, r in enumerate(rivals) if all(r.names.keys() != s.names.keys() for s in rivals[:i])
            ]
            raise _ambiguous(name, state.key, [best.spelling.prefix, *(r.spelling.prefix for r in rivals)])
        _check_pyramid(net, best, name)
        said = [*state.notices, *best.spelling.notices]
        if index:
            said.insert(
                0, f"`{usual[0].key}` does not fit the network, `{state.key or 'the bare names'}` is taken"
            )
        notices = [f"{name}: {printable('; '.join(said))}", *best.notices] if said else best.notices
        return replace(best, notices=notices)
    raise _nothing_fits(net, states, name, mode)


def _fits(
    net: nn.Module, state: NestedState[Shape], index: int, name: str, mode: Mode, *, spare: bool
) -> Iterator[Reading]:
    """Every spelling of a state in which it fits; the plain one alone where that does.

    spare: what of a teacher is unread may have another width.
    """
    filled = False
    children = dict(net.named_children())
    for spelling in spellings(net, state.tensors, _least(net, len(state.tensors), mode)):
        # A list's own `backbone.` is no wrapper's: what lies beside it is a part of the network that is missing here.
        if filled and spelling.prefix and spelling.prefix.split(".")[-2] in children:
            continue
        shapes = _spelt(spelling, state.tensors)
        if len(shapes) < len(spelling.names):
            continue  # two tensors by one name: none may be dropped in silence
        try:
            chosen, notices, left_out = _chosen(net, shapes, name, mode, spelling.detector, spare)
        except RunError:
            plain = misfit(net, shapes)
            filled |= not (plain.missing or plain.misshaped or is_whole(net))
            continue
        own = renamed(net, list(shapes))
        loaded = set(chosen)
        names = {k: own[n] for k, n in spelling.names.items() if n in loaded}
        yield Reading(index, spelling, names, notices, left_out)
        if not spelling.prefix:
            return


def in_order(net: nn.Module, shapes: Mapping[str, Shape], mode: Mode = "strict") -> dict[str, str] | str:
    """The network's names for a file's, tensor by tensor in order; the first that disagrees, in words, where one does.

    Both lists are as long, each two shapes agree, and so do the last parts of the names: weight, running_mean ...
    A file may end with the linear layer that a network without a head has not; in mode `pretrain` the last linear
    layer may have another number of outputs.
    """
    last = f"{last_layer(net)}."
    needed, own = _needed(net), net.state_dict()
    targets = [key for key in own if key in needed]
    keys = [key for key in shapes if not key.endswith(COUNTER)]
    for key, target in zip(keys, targets, strict=False):
        shape = tuple(own[target].shape)
        other_count = mode == "pretrain" and target.startswith(last)
        fits = shapes[key] == shape or (other_count and _only_outputs_differ(net, target, shapes[key], shape))
        if not fits or _ending(key) != _ending(target):
            return (
                f"{printable(key)} {_size(shapes[key])} stands where the network has {target} {_size(shape)}"
            )
    rest = [shapes[key] for key in keys[len(targets) :]]
    if len(keys) != len(targets) and not _is_linear(rest):
        return f"the file has {len(keys)} tensors, the network {len(targets)}"
    return dict(zip(keys, targets, strict=False))


def _is_linear(shapes: Sequence[Shape]) -> bool:
    """Whether these are a linear layer's weight and bias, or its weight alone."""
    return bool(shapes) and len(shapes[0]) == 2 and list(shapes[1:]) in ([], [shapes[0][:1]])


def _ending(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _least(net: nn.Module, tensors: int, mode: Mode) -> int:
    """How many tensors a prefix has to leave: all of the network's, or for pretraining a quarter of the file's."""
    return max(2, tensors // 4) if mode == "pretrain" else len(_needed(net))


def _needed(net: nn.Module) -> set[str]:
    free = _training_only(net)
    return {k for k in net.state_dict() if not k.endswith(COUNTER) and _part(k) not in free}


def _spelt(spelling: Spelling, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: spelling.shape(key, shapes[key]) for key, name in spelling.names.items()}


def _ambiguous(name: str, key: str, prefixes: Sequence[str]) -> RunError:
    shown = " and ".join(f"`{prefix}*`" for prefix in prefixes[:3])
    begin = f"{key}." if key else ""
    return RunError.of(
        "KD548",
        f"the weights {name} hold more than one network that fits: {printable(shown)}",
        f"name the one to read: `weight_key: {printable(begin + prefixes[0].removesuffix('.'))}`",
    )


def _nothing_fits(net: nn.Module, states: Sequence[NestedState[Shape]], name: str, mode: Mode) -> RunError:
    """The error that lists what does not fit in the closest reading, and says which nested state is closer."""
    needed = _needed(net)

    def closest(
        candidates: Sequence[NestedState[Shape]],
    ) -> tuple[int, NestedState[Shape], Spelling, Misfit] | None:
        best: tuple[int, NestedState[Shape], Spelling, Misfit] | None = None
        for state in candidates:
            for spelling in spellings(net, state.tensors, max(2, len(needed) // 2)):
                shapes = _spelt(spelling, state.tensors)
                rest = misfit(net, shapes)
                if mode == "strict":
                    given = set(renamed(net, list(shapes)).values())
                    rest = _without_lacking(net, given, rest, spelling.detector)[0]
                filled = len(needed) - len(
                    needed.intersection((*rest.missing, *(n for n, _, _ in rest.misshaped)))
                )
                if best is None or filled > best[0]:
                    best = (filled, state, spelling, rest)
        return best

    usual = closest([state for state in states if state.usual])
    other = closest([state for state in states if not state.usual])
    if usual is None:
        best = other[1].key if other is not None and other[0] else None
        return not_usual(name.strip("`"), states, best)
    help = "is the network in the spec the one that was trained, with the same number of classes?"
    filled, state, spelling, rest = usual
    if other is not None and other[0] > filled:
        key = printable(other[1].key)
        of = "all" if other[0] == len(needed) else f"{other[0]} of {len(needed)}"
        help = f"`{key}` comes closest, {of} of the network's tensors fit: `weight_key: {key}`"
    elif mode == "strict" and state.tensors and not isinstance(in_order(net, state.tensors), str):
        help = (
            "every tensor has the network's shape in order: where it is the same network under other names, say "
            "`weight_order: true` beside the file"
        )
    elif (count := _other_count(net, rest)) is not None:
        help = f"the file has {count} classes: a network of as many would fit"
    elif state.key or spelling.prefix:
        key = printable(state.key + (f" without `{spelling.prefix}`" if spelling.prefix else ""))
        help = f"closest comes {key or 'the file'}, {filled} of {len(needed)} tensors fit; {help}"
    return _does_not_fit(name, rest, help)


def _other_count(net: nn.Module, rest: Misfit) -> int | None:
    """The number of the file's classes, where the last layer alone has another one."""
    last = f"{last_layer(net)}."
    alone = not (rest.missing or rest.unexpected) and all(
        own.startswith(last) and _only_outputs_differ(net, own, a, b) for own, a, b in rest.misshaped
    )
    return rest.misshaped[0][1][0] if alone and rest.misshaped else None


def _check_pyramid(net: nn.Module, reading: Reading, name: str) -> None:
    """Raise RunError KD549 where torchvision's pyramid has equal shapes and computes something else."""
    if not reading.spelling.detector:
        return
    retina = any(target.startswith("p6_conv.") for target in reading.spelling.detector)
    for neck in net.children():
        if not isinstance(getattr(neck, "relu_between", None), bool):
            continue
        wrong = ["`upsample: nearest`"] if neck.align_corners is not None else []
        if retina:
            wrong += [] if neck.from_output else ["`use_p5: true`"]
            wrong += [] if neck.relu_between else ["`relu_between_extras: true`"]
        if wrong:
            raise RunError.of(
                "KD549",
                f"the weights {name} are of torchvision, whose feature pyramid computes other values than this neck",
                f"say {', '.join(wrong)} in the neck's kwargs",
            )


def _chosen(
    net: nn.Module,
    shapes: Mapping[str, Shape],
    name: str,
    mode: Mode,
    detector: Mapping[str, str],
    spare: bool,
) -> tuple[list[str], list[str], str | None]:
    """The names to load, notices, and what is left out; raises RunError where they do not fit.

    detector: see Spelling. spare: see _fits.
    """
    found = misfit(net, shapes)
    names = renamed(net, list(shapes))
    if mode == "strict":
        found, notices = _without_lacking(net, set(names.values()), found, detector)
        left_out = _of_other_width(net, found) if spare else None
        if found and left_out is None:
            raise _does_not_fit(name, found)
        known = set(net.state_dict())
        if left_out is not None:
            _, given, own = found.misshaped[0]
            message = f"`{left_out}` has {given[0]} outputs in the file and {own[0]} in the spec"
            notices = [*notices, f"{message}: it is left out, as no loss reads it"]
            dropped = tuple(f"{part}." for part in parts_from(net, left_out))
            known = {key for key in known if not key.startswith(dropped)}
        return [key for key, own in names.items() if own in known], notices, left_out
    misshaped = {own for own, _, _ in found.misshaped}
    known = set(net.state_dict())
    fitting = [key for key, own in names.items() if own in known and own not in misshaped]
    begun = {_part(names[key]) for key in fitting}
    last = last_layer(net)
    other_count = {own for own, a, b in found.misshaped if _only_outputs_differ(net, own, a, b)}
    strange = [
        n for n in (*found.missing, *misshaped) if not n.startswith(f"{last}.") and n not in other_count
    ]
    if all(key.endswith(COUNTER) for key in fitting) or any(_part(own) in begun for own in strange):
        raise _does_not_fit(name, found)
    notices = []
    if random := [own for own in net.state_dict() if own in {*found.missing, *misshaped}]:
        notices.append(f"{name} does not fill {some(random)}: random")
    if found.unexpected:
        notices.append(f"{name} holds {some(found.unexpected)}, which the network has not")
    return fitting, notices, None


def _unread(net: nn.Module) -> frozenset[str]:
    return net.unread if isinstance(net, Network) else frozenset()


def _of_other_width(net: nn.Module, found: Misfit) -> str | None:
    """The unread part of a teacher that alone does not fit, for other numbers of outputs; None where there is more."""
    parts = []
    for own, given, shape in found.misshaped:
        part = next((part for part in _unread(net) if own.startswith(f"{part}.")), None)
        if part is None or not _only_outputs_differ(net, own, given, shape):
            return None
        parts.append(part)
    if found.missing or found.unexpected or not parts:
        return None
    order = [name for name, _ in net.named_children()]
    return min(parts, key=lambda part: order.index(part) if part in order else 0)


def _without_lacking(
    net: nn.Module, given: set[str], found: Misfit, detector: Mapping[str, str]
) -> tuple[Misfit, list[str]]:
    """The misfit without the tensors of modules that a teacher's list lacks, and a notice of those.

    given: the file's names in the network's spelling. detector: see Spelling. Where the network is not filled
    the misfit stays whole: those tensors may be the missing ones under another name.
    """
    if not getattr(net, "may_lack_modules", False) or found.missing or given.isdisjoint(net.state_dict()):
        return found, []
    own = _beginnings(net)
    lacking = [key for key in found.unexpected if _part(key) not in own]
    if not lacking:
        return found, []
    modules = some([f"`{part}`" for part in dict.fromkeys(_part(detector.get(key, key)) for key in lacking)])
    count = "1 tensor" if len(lacking) == 1 else f"{len(lacking)} tensors"
    verb = "is" if len(lacking) == 1 else "are"
    notice = f"{count} of {modules} {verb} not used: the teacher's list has no such module"
    return replace(found, unexpected=tuple(k for k in found.unexpected if k not in lacking)), [notice]


def _beginnings(net: nn.Module) -> set[str]:
    """First parts of names that belong to the network: its modules, and what a bare file calls their layers."""
    found: set[str] = set()
    for name, child in net.named_children():
        inner = [*child.state_dict(), *dict(child.named_children()), *getattr(child, "aliases", {})]
        found.update((name, *map(_part, inner)))
    return found


def _does_not_fit(where: str, found: Misfit, help: str | None = None) -> RunError:
    return RunError.of("KD531", f"the weights {where} do not fit the network: {found.text()}", help)


def _training_only(net: nn.Module) -> set[str]:
    return {name for name, child in net.named_children() if getattr(child, "training_only", False)}


def _part(name: str) -> str:
    """The network's module that a parameter belongs to."""
    return name.split(".", 1)[0]


def _only_outputs_differ(net: nn.Module, name: str, given: Shape, own: Shape) -> bool:
    """Whether a linear or convolution layer differs from the file in its number of outputs alone."""
    layer = net.get_submodule(name.rsplit(".", 1)[0])
    return isinstance(layer, nn.Linear | nn.Conv2d) and given[1:] == own[1:]


def some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return printable(", ".join(names[:most])) + more


def _size(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
