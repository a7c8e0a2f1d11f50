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
