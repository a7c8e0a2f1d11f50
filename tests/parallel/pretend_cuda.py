"""A pretend CUDA device on a machine without one: real values on the CPU, and a tag on each storage "of the device".

A function mode answers `tensor.device` with cuda:0 and takes factories' `device`, a dispatch mode sees every operation,
those of the backward pass too, so that the real training loop runs. Found is what CUDA would refuse or wait for:

- `mix`: tensors of both devices in one operation; a CPU tensor without axes may join a pointwise one
- `numpy`: `.numpy()` of a tensor of the device
- `generator`: a CPU generator for numbers made on the device
- `wait`: the host waits: item, bool, tolist, nonzero, boolean masks, nms, copies to the host, blocking copies to the
  device (`torch.tensor(..., device=)`, `new_tensor`, `.to(device)` without non_blocking)
- `pageable`: a non-blocking copy from memory that is not pinned
- `unordered`: what was copied on another stream is read before the stream that computes waits for it, or its memory is
  not told to that stream (`record_stream`)

Not seen: NCCL, whether kernels are deterministic, memory, time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

WAITING = frozenset(
    "_local_scalar_dense nonzero masked_select unique_dim _unique2 _unique unique_consecutive equal bincount is_nonzero"
    " nms _linalg_eigh _linalg_svd _linalg_det linalg_cholesky_ex linalg_inv_ex _linalg_solve_ex histogram".split()
)
"""Operations whose result the host has to look at."""

MAY_MIX = frozenset(
    "copy_ _to_copy set_ detach index index_put index_put_ _index_put_impl_ result_type is_same_size _foreach_copy_"
    " _has_compatible_shallow_copy_type".split()
)
NO_LONE_NUMBERS = frozenset("cat stack index_select gather mm bmm embedding scatter".split())
"""Operations that take no CPU tensor without axes either."""

Tag = StorageWeakRef


@dataclass(frozen=True, slots=True)
class Find:
    """Something CUDA would refuse or wait for: in which phase of the run, what, by which operation, at which line."""

    phase: str
    kind: str
    operation: str
    place: str


class Stream:
    """A pretend stream. copied: keys of storages written on it that no other stream waits for yet."""

    def __init__(self, *_: Any) -> None:
        self.copied: set[int] = set()

    def wait_stream(self, other: Stream) -> None:
        """Wait for what the other has copied."""
        other.copied.clear()

    def query(self) -> bool:
        """Whether all its work is done: here it always is."""
        return True

    def record_event(self) -> Event:
        """A point that the host may wait for."""
        return Event()


class Event:
    """A pretend point in a stream; `waited` counts how often the host waited for any."""

    waited = 0

    def synchronize(self) -> None:
        """Let the host wait for a batch that is long begun."""
        Event.waited += 1


@dataclass(slots=True)
class Watched:
    """What was found so far, and the tags; `phase` names what is running.

    filling: whether `tensor[mask] = number` is running, which torch makes a masked_fill of, without a wait.
    """

    found: Counter[Find] = field(default_factory=Counter)
    phase: str = "build"
    tags: dict[int, Tag] = field(default_factory=dict)
    pinned: dict[int, Tag] = field(default_factory=dict)
    making: list[bool] = field(default_factory=list)
    filling: bool = False
    streams: list[Stream] = field(default_factory=lambda: [Stream()])
    made: list[Stream] = field(default_factory=list)
    unlent: dict[int, Tag] = field(default_factory=dict)

    def note(self, kind: str, operation: str) -> None:
        """Count a find at the line of kdcli that is running."""
        self.found[Find(self.phase, kind, operation, _place())] += 1

    def on_device(self, tensor: Tensor) -> bool:
        """Whether a tensor's storage is of the device."""
        return _alive(self.tags, tensor)

    @contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        """A block whose operations go to a stream."""
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    def copied(self, tensor: Tensor) -> None:
        """Remember a copy to the device on a stream beside the one that computes."""
        key = _key(tensor)
        if len(self.streams) > 1 and key is not None:
            self.streams[-1].copied.add(key)
            self.unlent[key] = StorageWeakRef(tensor.untyped_storage())

    def lend(self, tensor: Tensor, stream: Stream) -> None:
        """Tell a stream's use of a tensor (`record_stream`)."""
        self.unlent.pop(_key(tensor), None)  # type: ignore[arg-type]

    def ordered(self, tensor: Tensor) -> bool:
        """Whether the stream that computes may read a tensor: it has waited for its copy, and lent its memory."""
        key = _key(tensor)
        waited_for = all(key not in stream.copied for stream in self.made)
        return len(self.streams) > 1 or (waited_for and not _alive(self.unlent, tensor))

    def stream(self, *_: Any) -> Stream:
        """A new stream."""
        self.made.append(Stream())
        return self.made[-1]

    def tag(self, tensor: Tensor) -> None:
        """Put a tensor's storage on the device."""
        key = _key(tensor)
        if key is not None:
            self.tags[key] = StorageWeakRef(tensor.untyped_storage())

    def of(self, *kinds: str, phase: str | None = None) -> dict[Find, int]:
        """The finds of these kinds, in one phase or in all."""
        return {
            find: count
            for find, count in self.found.items()
            if find.kind in kinds and phase in (None, find.phase)
        }

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A block whose finds are of this phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def in_phase(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its finds being of this phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase):
                return function(*args, **kwargs)

        return call


def _key(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a tensor without storage
        return None


def _alive(tags: Mapping[int, Tag], tensor: Tensor) -> bool:
    key = _key(tensor)
    return key is not None and key in tags and not tags[key].expired()


def _place() -> str:
    """The innermost line of kdcli that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        _, package, file = frame.f_code.co_filename.rpartition("/kdcli/")
        if package:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"


GROUPED = ("clip_grad_norm_", "_clip_grads_with_norm_", "_fused_sgd", "_fused_adam", "_fused_adamw")
"""Functions of torch that group tensors by device in C++, where the true one is seen."""


def _in_grouped() -> bool:
    """Whether one of GROUPED is running."""
    frame = sys._getframe(2)
    for _ in range(6):
        if frame is None:
            return False
        if frame.f_code.co_name in GROUPED:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Operations(TorchDispatchMode):
    """Sees each operation: which tensors are mixed, what waits, which results are of the device."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        watched, kwargs = self.watched, kwargs or {}
        name = func._schema.name.split("::")[-1]
        given = _tensors((args, kwargs))
        on = [watched.on_device(tensor) for tensor in given]
        if any(on):
            self._look(name, args, kwargs, given, on)
            if not all(map(watched.ordered, given)):
                watched.note("unordered", name)
        result = func(*args, **kwargs)
        if any(on) or (not given and watched.making and watched.making[-1]):
            # What an operation gives back of its CPU inputs' storages stays on the CPU.
            passed = {_key(tensor) for tensor, there in zip(given, on, strict=True) if not there}
            for tensor in _tensors(result):
                if _key(tensor) not in passed:
                    watched.tag(tensor)
        return result

    def _look(self, name: str, args: Any, kwargs: Any, given: list[Tensor], on: list[bool]) -> None:
        watched = self.watched
        host = [
            tensor
            for tensor, there in zip(given, on, strict=True)
            if not there and (tensor.dim() or name in NO_LONE_NUMBERS)
        ]
        if host and name not in MAY_MIX and not name.startswith("_amp"):
            watched.note("mix", name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                if not (watched.filling and len(args[1]) == 1):
                    watched.note("wait", f"{name} by a mask")
            elif not on[0]:
                watched.note("mix", name)
            elif not all(watched.on_device(index) for index in indices):
                watched.note("wait", f"{name} by indices on the CPU")
            elif name != "index" and indices and not watched.on_device(args[2]):
                watched.note("wait", f"{name} of a number of the host")
        if name == "index_fill" and isinstance(args[3], Tensor):  # also what the gradient of `trace` does
            watched.note("wait", "index_fill by a number of the device")
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            watched.note("wait", name)
        if name == "copy_" and on[0] != on[1] and args[0].numel():
            watched.note("wait", "copy_ to the device" if on[0] else "copy_ to the host")


_DEVICE, _IS_CUDA, _IS_CPU = (getattr(Tensor, n).__get__ for n in ("device", "is_cuda", "is_cpu"))
_PLAIN = {
    *(getattr(Tensor, n).__get__ for n in "requires_grad shape dtype grad grad_fn is_leaf data ndim".split()),
    Tensor.size,
    Tensor.dim,
}
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


def _is_cuda(device: Any) -> bool | None:
    if device is None:
        return None
    return True if isinstance(device, int) else torch.device(device).type == "cuda"


class Functions(TorchFunctionMode):
    """Answers for the device where Python code asks, and moves tensors."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched
        self.answers: dict[Any, Callable[..., Any]] = {
            _DEVICE: lambda tensor: CUDA if watched.on_device(tensor) else CPU,
            _IS_CUDA: watched.on_device,
            _IS_CPU: lambda tensor: not watched.on_device(tensor),
            Tensor.get_device: lambda tensor: 0 if watched.on_device(tensor) else -1,
            Tensor.pin_memory: self._pinned,
            Tensor.is_pinned: lambda tensor: _alive(watched.pinned, tensor),
            Tensor.cpu: lambda tensor, **_: self._moved(tensor, CPU, False),
            Tensor.cuda: lambda tensor, *_, **k: self._moved(tensor, CUDA, k.get("non_blocking", False)),
            Tensor.to: self._to,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        kwargs, watched = dict(kwargs or {}), self.watched
        if func in self.answers:
            return self.answers[func](*args, **kwargs)
        if func in _PLAIN:
            return func(*args, **kwargs)
        there = bool(args) and isinstance(args[0], Tensor) and watched.on_device(args[0])
        if there and func in (Tensor.numpy, Tensor.__array__):
            watched.note("numpy", func.__name__)
        elif there and func is Tensor.new_tensor:
            watched.note("wait", "new_tensor")
        elif there and func is Tensor.tolist:
            watched.note("wait", "tolist")
        making = there if func is Tensor.new_tensor else any(map(watched.on_device, _tensors((args, kwargs))))
        wanted = _is_cuda(kwargs.get("device"))
        if wanted is not None:
            generator = kwargs.get("generator")
            if wanted and generator is not None and generator.device.type != "cuda":
                watched.note("generator", func.__name__)
            if wanted and func in _FROM_DATA:
                watched.note("wait", f"{func.__name__}(..., device=)")
            kwargs["device"], making = CPU, wanted
        watched.making.append(making and func is not Tensor.tolist)
        watched.filling = func is Tensor.__setitem__ and not isinstance(args[2], Tensor)
        try:
            result = func(*args, **kwargs)
        finally:
            watched.making.pop()
            watched.filling = False
        if wanted or (there and func is Tensor.new_tensor):
            for tensor in _tensors(result):
                watched.tag(tensor)
        return result

    def _pinned(self, tensor: Tensor, *_: Any) -> Tensor:
        copy = tensor.clone()
        self.watched.pinned[copy.untyped_storage()._cdata] = StorageWeakRef(copy.untyped_storage())
        return copy

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        non_blocking = kwargs.pop("non_blocking", False)
        for value in args[:3]:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, Tensor):
                device, dtype = (CUDA if self.watched.on_device(value) else CPU), value.dtype
            elif isinstance(value, bool):
                non_blocking = value
            elif value is not None:
                device = value
        rest = {k: v for k, v in kwargs.items() if v and k in ("copy", "memory_format")}
        changed = (
            tensor.to(dtype or tensor.dtype, **rest) if rest or dtype not in (None, tensor.dtype) else tensor
        )
        wanted = _is_cuda(device)
        if wanted is None or wanted == self.watched.on_device(tensor):
            return changed
        return self._moved(changed, CUDA if wanted else CPU, non_blocking)

    def _moved(self, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        """A copy on the other device; the tensor itself where it is there."""
        watched = self.watched
        to_device = device is CUDA
        if to_device == watched.on_device(tensor):
            return tensor
        if tensor.numel():
            if not to_device and _in_grouped():
                return tensor
            if not to_device:
                watched.note("wait", "a copy to the host")
            elif not non_blocking:
                watched.note("wait", "a blocking copy to the device")
            elif not _alive(watched.pinned, tensor):
                watched.note("pageable", "a copy to the device")
        return self._made(tensor, device)

    def _made(self, tensor: Tensor, device: torch.device) -> Tensor:
        copy = tensor.clone()
        if device is CUDA:
            self.watched.tag(copy)
            self.watched.copied(copy)
        else:
            self.watched.tags.pop(_key(copy), None)  # type: ignore[arg-type]
        return copy


@contextmanager
def pretend_cuda(devices: int = 1, capability: tuple[int, int] = (8, 0)) -> Iterator[Watched]:
    """One pretend device, or several, for a `with` block; gives what is found."""
    watched = Watched()
    cuda, enabled, autocast = torch.cuda, torch.is_autocast_enabled, torch.autocast

    class Autocast(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    state = torch.zeros(16, dtype=torch.uint8)
    stand_ins: list[tuple[Any, str, Any]] = [
        (cuda, "is_available", lambda: True),
        (cuda, "is_initialized", lambda: True),
        (cuda, "device_count", lambda: devices),
        (cuda, "current_device", lambda: 0),
        (cuda, "get_device_name", lambda *_: "pretend"),
        (cuda, "get_rng_state", lambda *_, **__: state.clone()),
        (cuda, "synchronize", lambda *_: watched.note("wait", "synchronize")),
        (cuda, "is_bf16_supported", lambda *_, **__: True),
        (cuda, "get_device_capability", lambda *_: capability),
        (cuda, "max_memory_allocated", lambda *_: 3 * 2**30),
        (cuda, "max_memory_reserved", lambda *_: 4 * 2**30),
        (cuda, "get_device_properties", lambda *_: SimpleNamespace(total_memory=80 * 2**30)),
        (cuda, "Stream", watched.stream),
        (cuda, "stream", watched.on_stream),
        (cuda, "current_stream", lambda *_: watched.streams[-1]),
        *((cuda, name, lambda *_, **__: None) for name in "set_device set_rng_state manual_seed_all".split()),
        *((cuda, name, lambda *_, **__: None) for name in "manual_seed _lazy_init empty_cache".split()),
        (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda *_: None),
        (Tensor, "record_stream", lambda tensor, stream: watched.lend(tensor, stream)),
        (torch, "autocast", Autocast),
        (torch, "is_autocast_enabled", lambda d=None: enabled("cpu" if d in (None, "cuda") else d)),
    ]
    with ExitStack() as stack:
        for owner, name, value in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(Operations(watched))
        stack.enter_context(Functions(watched))
        yield watched
