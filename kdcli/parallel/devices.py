"""The device of a process: choosing it, moving batches to it, number formats, out-of-memory errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kdcli.data.batches import normalized
from kdcli.errors import RunError, SpecError
from kdcli.failures import out_of_memory, text_of
from kdcli.parallel.launch import device_index
from kdcli.parallel.settings import decide, facts_of
from kdcli.spec.schema import Runtime, Spec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for `auto`, `cpu` or `cuda` on this machine."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", device_index(local_rank, visible))


def name_of(device: torch.device) -> str | None:
    """A CUDA device's own name (UUID), by which processes see that they share one; None on the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def is_busy(device: torch.device) -> bool:
    """Whether a CUDA device has work left; nothing is waited for. The CPU has none: it works as it is called."""
    return device.type == "cuda" and not torch.cuda.current_stream(device).query()


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device, its images normalised there where they came as bytes."""
    if device.type == "cpu":
        return normalized(batch)
    return normalized({name: _moved(value, device) for name, value in batch.items()})


class Copies:
    """Copies of a run's batches to its device; on CUDA on a stream of their own, beside what the device computes.

    The host is then at most one batch ahead of the device: it waits until the batch before the last one is computed. So
    no more than three batches lie on the device, and what the host measures is the device's pace. beside: false copies
    on the stream that computes.
    """

    def __init__(self, device: torch.device, *, beside: bool = True) -> None:
        self.device = device
        self._stream = _stream(device) if device.type == "cuda" and beside else None
        self._begun: torch.cuda.Event | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, as `to_device`."""
        if self._stream is None:
            return to_device(batch, self.device)
        computing = torch.cuda.current_stream(self.device)
        if self._begun is not None:
            self._begun.synchronize()
        self._begun = computing.record_event()
        with torch.cuda.stream(self._stream):
            moved = {name: _moved(value, self.device) for name, value in batch.items()}
        computing.wait_stream(self._stream)
        for tensor in tree_leaves(moved):
            if isinstance(tensor, Tensor):
                # Else its memory might be given to the next copy while it is still computed with.
                tensor.record_stream(computing)
        return normalized(moved)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value


def check_threads(runtime: Runtime) -> None:
    """Raise SpecError KD206 for more threads than this machine has processors."""
    cores = os.cpu_count() or 1
    if runtime.threads is not None and runtime.threads > cores:
        message = f"`threads` must be at most {cores} on this machine, got the number {runtime.threads}"
        help = f"it has {cores} processors: more threads wait for each other; leave `threads` out to use all"
        raise SpecError.at(("runtime", "threads"), "KD206", message, help)


def use_threads(runtime: Runtime) -> None:
    """Let torch use the spec's number of threads on the CPU, where it names one."""
    check_threads(runtime)
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)


def precisions(runtime: Runtime, device: torch.device) -> tuple[str, str]:
    """The precision of the student and of the teachers on a device; `auto` is resolved there."""
    settings = decide(runtime, facts_of(device))
    return settings.precision, settings.teacher_precision


def autocast_for(precision: str, device: torch.device) -> torch.autocast | None:
    """The autocast context of a network; None for fp32."""
    if precision == "fp32":
        return None
    return torch.autocast(device.type, dtype=DTYPES[precision])


def scaler_for(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """The gradient scaler for fp16; None otherwise."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


@contextmanager
def oom_as_error(spec: Spec, side: Literal["train", "test"] = "train") -> Iterator[None]:
    """Say what to lower where memory runs out, the device's or the machine's (KD724); side: whose data is being run."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        part = spec.dataset.train if side == "train" else spec.dataset.test
        size = part.batch_sampler.kwargs.batch_size
        less = " (beside a higher `trainer.accumulate_steps`)" if side == "train" else ""
        # Where `doing` has told it already, the exception itself is the cause.
        told = error.diagnostics[0].message if isinstance(error, RunError) else text_of(error)
        where = "device" if isinstance(error.__cause__ or error, torch.OutOfMemoryError) else "machine"
        raise RunError.of(
            "KD724",
            f"the {where} ran out of memory (batch_size {size} per process): {told}",
            f"lower `dataset.{side}.batch_sampler.kwargs.batch_size`{less} or the size of the images, "
            "or say `runtime.precision: bf16`",
        ) from error
