"""What a run sets on its device: decided from facts and the spec, told in one line, put back in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdcli.spec.schema import Compile, Runtime

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
"""The variable by which cuBLAS is told to compute the same bits each time; read once, at its first product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What is known of a device. capability: CUDA's version of the chip, (8, 0) for an A100; (0, 0) on the CPU."""

    kind: str
    name: str = ""
    capability: tuple[int, int] = (0, 0)

    @property
    def on_cuda(self) -> bool:
        """Whether it is a CUDA device."""
        return self.kind == "cuda"

    @property
    def bf16(self) -> bool:
        """Whether it has instructions for bfloat16 and TF32: NVIDIA's since Ampere."""
        return self.on_cuda and self.capability >= (8, 0)

    @property
    def fp16(self) -> bool:
        """Whether it computes float16 faster than float32: NVIDIA's since Volta."""
        return self.on_cuda and self.capability >= (7, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run sets. words: each default that was taken, for the start; hint: what the spec might say, or None."""

    precision: str
    teacher_precision: str
    channels_last: bool = False
    cudnn_benchmark: bool = False
    uint8_images: bool = False
    tf32: bool | None = None
    deterministic: bool = False
    words: tuple[str, ...] = ()
    hint: str | None = None

    def kept(self) -> dict[str, str]:
        """What a checkpoint keeps of it: a resumed run goes on with the same arithmetic."""
        return {"precision": self.precision, "teacher_precision": self.teacher_precision}

    def notices(self, facts: DeviceFacts) -> list[str]:
        """The lines of a run's start: one with all defaults, one with the hint."""
        where = facts.name or ("this GPU" if facts.on_cuda else "the CPU")
        lines = [f"on {where}: {'; '.join(self.words)}"] if self.words else []
        return lines if self.hint is None else [*lines, self.hint]


def facts_of(device: torch.device) -> DeviceFacts:
    """The facts of a device of this machine."""
    if device.type != "cuda":
        return DeviceFacts(kind=device.type)
    return DeviceFacts(
        kind="cuda",
        name=torch.cuda.get_device_name(device),
        capability=torch.cuda.get_device_capability(device),
    )


def written_precision(runtime: Runtime) -> str:
    """`runtime.precision` where the spec gives it, else the one that `fp16` means."""
    return runtime.precision or ("fp16" if runtime.fp16 else "fp32")


def resolved(precision: str, facts: DeviceFacts) -> str:
    """What `auto` is on a device: bf16 where it has that, else fp16 where that is faster; on the CPU fp32.

    fp32 also on a CPU with instructions for bf16, so that a spec trains the same bits on every CPU.
    """
    if precision != "auto":
        return precision
    return "bf16" if facts.bf16 else "fp16" if facts.fp16 else "fp32"


def decide(
    runtime: Runtime,
    facts: DeviceFacts,
    *,
    one_size: bool = False,
    convolutions: bool = False,
    bytes_first: bool = False,
    kept: Mapping[str, str] | None = None,
) -> Settings:
    """All settings of a run. What the spec writes holds; defaults are taken on CUDA alone, and keep fp32's arithmetic.

    one_size: all images have one size. convolutions: a network has two-dimensional ones. bytes_first: images can be
    normalised after all other transforms. kept: of the checkpoint that the run goes on from (`Settings.kept`).
    """
    kept, written = kept or {}, written_precision(runtime)
    precision = kept.get("precision", resolved(written, facts)) if written == "auto" else written
    own = runtime.teacher_precision
    teachers = precision if own is None else resolved(own, facts)
    if (own or written) == "auto":
        teachers = kept.get("teacher_precision", teachers)
    defaults: list[str] = []

    def chosen(key: str, value: bool | None, default: bool) -> bool:
        if value is None and default:
            defaults.append(f"`{key}`")
        return default if value is None else value

    gpu, steady = facts.on_cuda, runtime.deterministic
    one_shape = convolutions and one_size and not steady
    channels_last = chosen("channels_last", runtime.channels_last, gpu and convolutions)
    benchmark = chosen("cudnn_benchmark", runtime.cudnn_benchmark, gpu and one_shape)
    uint8 = chosen("uint8_images", runtime.uint8_images, gpu and bytes_first) and bytes_first
    words = []
    if "auto" in (written, own) and gpu:
        words.append(
            f"precision {precision}" + ("" if teachers == precision else f", of the teachers {teachers}")
        )
    if defaults:
        words.append(f"by default {', '.join(defaults)} (`runtime.<key>: false` switches one off)")
    if steady:
        words.append("`deterministic`: the same bits at each run, at the price of slower operations")
    return Settings(
        precision=precision,
        teacher_precision=teachers,
        channels_last=channels_last,
        cudnn_benchmark=benchmark,
        uint8_images=uint8 and gpu,
        tf32=runtime.tf32,
        deterministic=steady,
        words=tuple(words),
        hint=_hint(runtime, facts),
    )


def _hint(runtime: Runtime, facts: DeviceFacts) -> str | None:
    """What would make it faster but changes what the spec computes; None where the spec has said what it wants."""
    said = {"precision", "fp16", "tf32"} & runtime.model_fields_set
    if not facts.bf16 or said:
        return None
    return (
        "this GPU computes bf16 several times as fast as fp32: `runtime.precision: auto` takes it, `runtime.tf32: true`"
        " speeds up products of matrices in fp32; both round more, so neither is a default. `runtime.precision: fp32`"
        " keeps what this run does, without this hint"
    )


@contextmanager
def using(settings: Settings) -> Iterator[None]:
    """torch's global switches as the settings have them, for a `with` block.

    To be entered before the first product on the device: cuBLAS asks for its determinism only then.
    """
    backends: Any = torch.backends
    cudnn, products = backends.cudnn, backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, os.environ.get(CUBLAS)
    formats = [(place, place.fp32_precision) for place in (products, cudnn.conv, cudnn.rnn)]
    older = _older_switches(products, cudnn)
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        cudnn.benchmark = settings.cudnn_benchmark
        if settings.tf32 is not None:
            # Not by the newer `fp32_precision`: inductor and other libraries ask these, which would raise then.
            products.allow_tf32 = cudnn.allow_tf32 = settings.tf32
        if settings.deterministic:
            os.environ.setdefault(CUBLAS, ":4096:8")
            cudnn.deterministic = True
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        if settings.tf32 is not None:
            for place, allowed in older:
                place.allow_tf32 = allowed
            for place, precision in formats:
                place.fp32_precision = precision
        if settings.deterministic:
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            if before[2] is None:
                os.environ.pop(CUBLAS, None)


def _older_switches(*places: Any) -> list[tuple[Any, bool]]:
    """`allow_tf32` of torch's backends, but for those whose newer settings can't be said by it: torch raises there."""
    found = []
    for place in places:
        with suppress(RuntimeError):
            found.append((place, place.allow_tf32))
    return found


def has_convolutions(net: nn.Module) -> bool:
    """Whether a network has two-dimensional convolutions, beside one that cuts patches for a transformer."""
    kernels = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return any(m.kernel_size != m.stride or m.kernel_size == (1, 1) for m in kernels)


def compiled_networks(runtime: Runtime) -> bool | str:
    """Which networks `runtime.compile` names: False, True for all, `student` or `teachers`."""
    said = runtime.compile
    if not isinstance(said, Compile):
        return said
    return True if said.networks == "all" else said.networks


def compile_mode(runtime: Runtime) -> str:
    """The mode in which torch.compile is called."""
    return runtime.compile.mode if isinstance(runtime.compile, Compile) else "default"
