"""A training step rehearsed on fake CUDA tensors, which need no GPU: code that mixes devices, or waits for the GPU.

Only the user's own code is told of: what kdcli's tables name is held to it by kdcli's tests. Where fake tensors can't
follow (operations without shapes of their own, values that decide what is computed) nothing is said.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from kdcli.data.facts import DataFacts, padded_size
from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.teacher import Teacher
from kdcli.errors import Diagnostic, Findings, SpecPath
from kdcli.failures import running_line
from kdcli.models.network import Network, shapes_only
from kdcli.models.torch_modes import Arrays, Shapes
from kdcli.parallel.devices import to_device
from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.networks import network_path
from kdcli.spec.plugins import own_code
from kdcli.spec.schema import Spec
from kdcli.tasks.task import Task
from kdcli.training.build import channels_of, sample_of
from kdcli.training.join_jobs import JoinedJobs, require

CUDA = torch.device("cuda", 0)

KINDS = {
    "number": ("`.item()`, `float()` or `if` of a tensor", "keep it a tensor: `torch.where` chooses without an `if`"),
    "mask": ("a boolean mask as index, or `nonzero`", "multiply by the mask, or `torch.where`: shapes stay known"),
    "to host": ("a copy to the CPU", "compute on the GPU, and copy where a number is shown"),
    "to device": (
        "a copy from the CPU (`.to`, `torch.tensor(..., device=...)`, a list as index, `x[indices] = 1.0`)",
        "make it on the GPU (`torch.full(..., device=x.device)`), or once, as a buffer of a module (`register_buffer`)",
    ),
    "values": ("an operation whose result has no known shape", "look for one that keeps the shape"),
}  # fmt: skip
"""Why the host waits: in the words of a message, and what to do."""

VALUES = frozenset("_unique2 unique_dim unique_consecutive bincount histc equal".split())
JOINS = frozenset("cat stack".split())
"""Operations that take no CPU tensor without axes beside those of the GPU; fake tensors let it pass."""


@dataclass(frozen=True, slots=True)
class Place:
    """What of the spec is being rehearsed, in the words of a message, and where it stands."""

    what: str
    path: SpecPath


@dataclass(frozen=True, slots=True)
class Find:
    """Something that CUDA would refuse (`mix`) or wait for (a key of KINDS), and the line of the user's.

    guessed: whether the code had been given a made-up answer before.
    """

    place: Place
    kind: str
    operation: str
    line: str
    guessed: bool


class CudaShapes(Shapes):
    """Fake tensors of a GPU. Inside `at`, lines of the user's that mix devices or wait are noted in `finds`.

    A wait is passed by an answer that is made up: a mask keeps everything, a truth is `answer`, a number 1 (0 where
    `answer` is true). `guessed`: whether one of the latter was given, so that the code may have gone another way than
    on real values.
    """

    device = CUDA

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)  # type: ignore[no-untyped-call]
        self.finds: list[Find] = []
        self.answer, self.guessed = False, False
        self.place: Place | None = None

    @property
    def avoid_device_init(self) -> bool:
        """Yes, on a machine with a GPU too."""
        return True

    @contextmanager
    def at(self, place: Place | None) -> Iterator[None]:
        """A block whose finds belong to this place."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def note(self, kind: str, operation: str) -> bool:
        """Note a find; False where no line of the user's is running."""
        line = None if self.place is None else running_line(sys._getframe(1), within=on_cuda.__code__)
        if line is None:
            return False
        assert self.place is not None
        self.finds.append(Find(self.place, kind, operation, line, self.guessed))
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The fake result of one operation."""
        kwargs = kwargs or {}
        if self.place is None:
            return self.dispatch(func, types, args, kwargs)
        name = func._schema.name.split("::")[-1]
        first = args[0] if args and isinstance(args[0], Tensor) else None
        on_cuda = first is not None and first.device.type == "cuda"
        if on_cuda and name == "_local_scalar_dense" and self.note("number", "item"):
            self.guessed = True
            assert first is not None
            return _number(first.dtype, self.answer)
        if on_cuda and name in ("nonzero", "masked_select") and self.note("mask", name):
            assert first is not None
            size = (first.numel(), first.dim()) if name == "nonzero" else (first.numel(),)
            return first.new_empty(size, dtype=torch.int64 if name == "nonzero" else first.dtype)
        if on_cuda and (
            name in VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        ):
            self.note("values", name)
        elif name in ("_to_copy", "copy_", "index", "index_put", "index_put_"):
            self._copies(name, args, kwargs)
        elif name in JOINS and len({tensor.device for tensor in _tensors(args)}) > 1:
            self.note("mix", name)
        try:
            return self.dispatch(func, types, args, kwargs)
        except Exception as error:
            if "same device" in str(error) or "two different devices" in str(error):
                self.note("mix", name)
            raise

    def array_of(self, tensor: Tensor) -> None:
        """Note a NumPy array of a tensor of the GPU."""
        if tensor.device.type == "cuda":
            self.note("mix", "numpy")

    def _copies(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Note what copies between devices and is waited for."""
        first = args[0]
        if name == "_to_copy":
            to, blocks = kwargs.get("device") or first.device, not kwargs.get("non_blocking")
            kind = "to host" if to.type == "cpu" else "to device"
            if blocks and first.numel() and to.type != first.device.type:
                self.note(kind, "to")
        elif name == "copy_":
            blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            if blocks and first.numel() and isinstance(args[1], Tensor):
                if first.device.type != args[1].device.type and (args[1].dim() or first.device.type == "cpu"):
                    self.note("to host" if first.device.type == "cpu" else "to device", name)
        elif first.device.type == "cuda":
            indices = [index for index in args[1] if index is not None]
            # A number where a mask is true is filled in: the host only reads its own.
            fills = all(index.dtype == torch.bool for index in indices)
            read = indices if name == "index" or fills else [*indices, args[2]]
            if any(one.device.type == "cpu" for one in read):
                self.note("to device", name)


def _number(dtype: torch.dtype, answer: bool) -> bool | int | float:
    if dtype == torch.bool:
        return answer
    return float(not answer) if dtype.is_floating_point else int(not answer)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, FakeTensor)]


class Rehearsal(Protocol):
    """What of a rehearsal (check.py) is used here."""

    spec: Spec
    task: Task
    facts: DataFacts
    findings: Findings

    def networks(self) -> dict[str, Network]:
        """Every network."""

    def join(
        self, nets: Mapping[str, Network], batch: Mapping[str, Any], stack: ExitStack
    ) -> tuple[JoinedJobs, dict[str, Teacher]] | None:
        """The networks run once and joined by the jobs."""


def may_need_cuda(spec: Spec) -> bool:
    """Whether the spec may run on a GPU, and a network, a loss or a method of it is the user's own code."""
    if spec.runtime.device == "cpu":
        return False
    modules = [*spec.net, *(module for teacher in spec.teachers.values() for module in teacher)]
    return any(module.type == FROM_PYTHON for module in modules) or any(
        path[0] in ("net", "teachers", "mimic") for path, _ in own_code(spec)
    )


def moves_itself(net: nn.Module) -> bool:
    """Whether a module of a network has its own way to another device, which fake tensors do not take."""
    return any(
        not type(module).__module__.startswith("torch.")
        and any(
            getattr(type(module), name) is not getattr(nn.Module, name) for name in ("_apply", "to", "cuda")
        )
        for module in net.modules()
    )


def on_cuda(rehearsal: Callable[[CudaShapes], Rehearsal]) -> list[Diagnostic]:
    """KD296 and KD297: what a GPU would refuse of the user's networks and losses, or wait for at each step.

    rehearsal: makes one for a mode, in which the networks are built anew: what they have kept of a forward on the CPU
    would stay there.
    """
    mode = CudaShapes()
    # The code has said what it has to say: on made-up answers it would say what isn't so.
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(suppress(Exception))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        _run(mode, rehearsal(mode))
    return list(findings_of(mode.finds))


def _run(mode: CudaShapes, rehearsal: Rehearsal) -> None:
    nets = rehearsal.networks()
    if rehearsal.findings.found or any(map(moves_itself, nets.values())):
        return
    channels = channels_of(nets["net"])
    own_size = rehearsal.task.own_size
    if own_size:
        size = padded_size(rehearsal.spec.dataset.train)
        if size is None:
            return
        rehearsal.facts = replace(rehearsal.facts, shape=(channels, *size))
    with mode, Arrays(mode.array_of), ExitStack() as stack:
        if own_size:
            stack.enter_context(shapes_only(*nets.values()))
        sample = sample_of(rehearsal.task, rehearsal.spec, rehearsal.facts, channels)
        batch = to_device(sample, mode.device)
        with networks_watched(mode, nets):
            wired = rehearsal.join(nets, batch, stack)
        mode.finds = [find for find in mode.finds if find.kind != "mix" or not find.guessed]
        if wired is not None and not moves_itself(wired[0].trainee):
            losses_watched(mode, *wired, batch)


@contextmanager
def networks_watched(mode: CudaShapes, nets: Mapping[str, nn.Module]) -> Iterator[None]:
    """A block in which finds belong to the module of the network that is running."""
    with ExitStack() as stack:
        for name, net in nets.items():
            path = network_path(name)
            whose = "the student" if name == "net" else f"`{name}`"
            for index, (child, module) in enumerate(net.named_children()):
                place = Place(f"`{child}` of {whose}", (*path, index))

                def begin(_module: nn.Module, _args: Any, place: Place = place) -> None:
                    mode.place, mode.guessed = place, False

                def end(_module: nn.Module, _args: Any, _output: Any) -> None:
                    mode.place = None

                stack.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
        yield


def losses_watched(
    mode: CudaShapes,
    joined: JoinedJobs,
    teachers: Mapping[str, Teacher],
    batch: Mapping[str, Any],
) -> None:
    """Compute every loss once; `mode.finds` grows."""
    trainee = joined.trainee
    trainee.train()
    views = {name: teachers[name].view(batch) for name in require(joined, teachers, None, False)}
    for job, spec in joined.jobs.items():
        mimicker = trainee.mimickers[job]
        assert isinstance(mimicker, Mimicker)
        if joined.requirements[job].prepare:
            mimicker.prepare(views, batch)
            mimicker.prepared()
        for name in mimicker.losses_of(spec):
            place = Place(f"the loss `{job}.{name}`", ("mimic", "jobs", job, "losses", name))
            _both_ways(mode, place, partial(mimicker, joined.student_view, views, batch, StepInfo(), [name]))


def _both_ways(mode: CudaShapes, place: Place, action: Callable[[], object]) -> None:
    """Run an action twice; where a number was made up, also with its opposite.

    Kept are waits that come again, and mixes that come with both answers.
    """
    first, again = _finds_of(mode, place, action), _finds_of(mode, place, action)
    other = _finds_of(mode, place, action, answer=True) if mode.guessed else first
    mode.guessed = False
    mode.finds += [
        find for find in first if (find in again if find.kind != "mix" else not find.guessed or find in other)
    ]


def _finds_of(
    mode: CudaShapes, place: Place, action: Callable[[], object], *, answer: bool = False
) -> list[Find]:
    before = len(mode.finds)
    mode.answer, mode.guessed = answer, False
    with mode.at(place), suppress(Exception):
        action()
    mode.answer, found = False, mode.finds[before:]
    del mode.finds[before:]
    return found


def findings_of(finds: list[Find]) -> Iterator[Diagnostic]:
    """One finding for each place: KD296 where it mixes devices, else KD297 where it waits."""
    finds = list(dict.fromkeys(finds))
    for place in dict.fromkeys(find.place for find in finds):
        here = [find for find in finds if find.place == place]
        mixes = [find for find in here if find.kind == "mix"]
        waits = [find for find in here if find.kind != "mix"]
        if mixes:
            find = mixes[0]
            what = (
                "makes a NumPy array of a tensor of the GPU"
                if find.operation == "numpy"
                else "mixes tensors of the CPU and of the GPU"
            )
            yield Diagnostic(
                code="KD296",
                message=f"on a GPU, {place.what} {what}: `{find.operation}` ({find.line})",
                help="detach it and copy it first (`x.detach().cpu().numpy()`), or stay with torch"
                if find.operation == "numpy"
                else "make a tensor where its inputs are (`torch.ones(3, device=x.device)`); let a module keep it"
                " as a parameter or a buffer (`register_buffer`): these move with it",
                path=place.path,
            )
        elif waits:
            find, more = waits[0], len({wait.line for wait in waits}) - 1
            why, help = KINDS[find.kind]
            others = f", and at {more} other line{'s' if more > 1 else ''}" if more else ""
            what = f"`{find.operation}`" if find.kind == "values" else why
            yield Diagnostic(
                code="KD297",
                severity="warning",
                message=f"on a GPU, {place.what} makes every step wait: {what} ({find.line}){others}",
                help=help,
                path=place.path,
            )
