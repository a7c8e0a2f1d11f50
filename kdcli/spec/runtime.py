"""The block `runtime` of a spec: what the run does, and on what device with what settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdcli.spec.field_types import Model, PositiveInt, Whole


class Runner(Model):
    """What the run does: `kd` distils, `base` trains `net` alone."""

    type: Literal["kd", "base"]


class Compile(Model):
    """Which networks torch.compile makes faster, and in which of its modes."""

    networks: Literal["all", "student", "teachers"] = "all"
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"


class Runtime(Model):
    """Seed, precision, device and other settings of the whole run.

    iter_base: the scheduler's lengths, `test_freq` and `save_freq` count steps, not epochs.
    special_bn_init: the student's batch norms have eps 1e-3 and momentum 0.03, as YOLOX has.
    """

    runner: Runner | None = None
    task_names: str | None = None
    random_seed: Annotated[Whole, Field(ge=0)] = 131
    aligned: bool = False
    fp16: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    teacher_precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    channels_last: bool | None = None
    cudnn_benchmark: bool | None = None
    uint8_images: bool | None = None
    tf32: bool | None = None
    deterministic: bool = False
    iter_base: bool | None = None
    special_bn_init: bool | None = None
    fold_bn: bool = False
    compile: bool | Literal["student", "teachers"] | Compile = False
    threads: Annotated[PositiveInt, Field(le=1024)] | None = None
