"""What Python gives beside a spec: networks and data in memory, which the spec names by the type `from_python`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from kdcli.errors import SpecError, SpecPath

FROM_PYTHON = "from_python"
"""The `type` of a module or a dataset that is no name of a table: it was given to a function of `kdcli`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InMemory:
    """The objects of one call. networks: by `net`, `teacher0` ..., the modules by their place in the spec's list;
    data: the source of each side (True is training). left_alone: by network what the spec says of its weights.
    """

    networks: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    data: Mapping[bool, Any] = field(default_factory=dict)
    left_alone: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.networks or self.data)

    def module(self, path: SpecPath) -> Any:
        """The module at ("net", 0) or ("teachers", "teacher0", 0); raises SpecError KD870 where none is given."""
        name = str(path[1]) if path[0] == "teachers" else str(path[0])
        given, index = self.networks.get(name, ()), path[-1]
        if isinstance(index, int) and index < len(given) and given[index] is not None:
            return given[index]
        argument = "student=..." if name == "net" else f"teachers={{'{name}': ...}}"
        raise _absent((*path, "type"), f"the network of `{name}`", argument)

    def source(self, train: bool, path: SpecPath) -> Any:
        """The data of one side; path: of its `dataset`. Raises SpecError KD870 where none is given."""
        if train in self.data:
            return self.data[train]
        side = "train" if train else "test"
        raise _absent(
            (*path, "type"), f"the {'training' if train else 'test'} data", f"data={{'{side}': ...}}"
        )


NOTHING = InMemory()

_given: ContextVar[InMemory] = ContextVar("kdcli_in_memory", default=NOTHING)


def in_memory() -> InMemory:
    """What has been given to the call that is under way; nothing in a command of the command line."""
    return _given.get()


CLASS_NAMES = "kdcli_class_names"
"""The attribute of a student that kdcli has returned: the names of the classes that it has learnt, in their order."""


def with_names(module: Any, names: Sequence[str]) -> Any:
    """The module, with the names of its classes on it and on its parts, of which a network may be made again."""
    for one in (module, *module.children()):
        setattr(one, CLASS_NAMES, tuple(names))
    return module


def learnt_names(name: str) -> tuple[str, ...] | None:
    """The classes of a network that was given, where kdcli has trained it; None where they are not known."""
    found = (getattr(module, CLASS_NAMES, None) for module in in_memory().networks.get(name, ()))
    return next((names for names in found if names is not None), None)


def is_boxes(source: Any) -> bool:
    """Whether data in memory is images with boxes."""
    return getattr(source, "gives_boxes", False)


@contextmanager
def giving(given: InMemory) -> Iterator[None]:
    """Let what is built in the block use these objects."""
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)


def is_given(modules: Iterable[Any]) -> bool:
    """Whether a network of the spec, its list of modules, was given from Python."""
    return any(module.type == FROM_PYTHON for module in modules)


def _absent(path: SpecPath, what: str, argument: str) -> SpecError:
    message = f"{what} was given from Python, and is not here"
    functions = "`kdcli.train`, `kdcli.evaluate`" + (
        "" if argument.startswith("data") else ", `kdcli.load_student`"
    )
    help = f"it lives in Python alone: give it again there, as the argument `{argument}` of {functions}"
    return SpecError.at(path, "KD870", message, help)
