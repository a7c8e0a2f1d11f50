"""What the checks print, and the machine they run on."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from kdcli.spec.schema import Spec

_RUNTIME: Any = Spec.model_fields["runtime"].annotation
HAS_DETERMINISTIC = "deterministic" in _RUNTIME.model_fields


class Skipped(Exception):
    """A check that can't be made on this machine, and why."""


@dataclass
class Lines:
    """The lines so far. check: the name of the one that is running; oks: one for each line."""

    check: str = ""
    oks: list[bool] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: Any, limit: str, ok: bool) -> None:
        """Print one line."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.oks.append(bool(ok))
        print(
            f"{'ok  ' if ok else 'FAIL'} {f'{self.check}: {name}':62s} {value!s:34s} {limit:22s} {seconds:5.1f} s",
            flush=True,
        )

    def most(self, name: str, value: float, limit: float, text: str | None = None) -> None:
        """A line that holds where the value is at most the limit."""
        self.add(name, text or f"{value:.3g}", f"<= {limit:g}", value <= limit)

    def least(self, name: str, value: float, limit: float, text: str | None = None) -> None:
        """A line that holds where the value is at least the limit."""
        self.add(name, text or f"{value:.3g}", f">= {limit:g}", value >= limit)

    def skip(self, why: str) -> None:
        """Print that something was not checked."""
        print(f"--   {self.check}: {why}", flush=True)


@dataclass(frozen=True)
class Machine:
    """The device that the checks are about, and a folder for their runs."""

    device: torch.device
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def __str__(self) -> str:
        if not self.cuda:
            return (
                f"on the CPU, tiny: {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
            )
        cudnn: Any = torch.backends.cudnn
        facts = torch.cuda.get_device_properties(self.device)
        return (
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} of them;"
            f" torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn.version()}"
        )

    def size(self, on_cuda: int, on_cpu: int) -> int:
        """A size that is tiny on the CPU."""
        return on_cuda if self.cuda else on_cpu

    def wait(self) -> None:
        """Until the device has computed all."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def empty(self) -> None:
        """Give memory back between checks."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def peak_of(self, function: Callable[[], Any]) -> tuple[Any, int]:
        """A call's result, and the most bytes of the device held during it beyond what was held before."""
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = function()
        self.wait()
        return result, torch.cuda.max_memory_allocated(self.device) - before

    def new_folder(self) -> Path:
        """A folder that no run has had."""
        return self.folder / f"run{len(list(self.folder.iterdir()))}_{time.monotonic_ns()}"


def photographs_spec(machine: Machine, *, batch: int, steps: int, **runtime: Any) -> dict[str, Any]:
    """A spec of logits KD on made-up images of 224x224: torchvision's resnet50 to its resnet18, 1000 classes."""
    spec = images_spec(machine, batch=batch, steps=steps, **runtime)
    for part, net in (("net", "resnet18"), ("teacher0", "resnet50")):
        spec[part] = [{"name": "model", "type": f"torchvision.{net}", "kwargs": {"num_classes": 1000}}]
    for side in ("train", "test"):
        kwargs = spec["dataset"][side]["dataset"]["kwargs"]
        kwargs |= {"num_classes": 1000, "shape": [3, 224, 224]}
        # An epoch ends with a turn of the check of speed: else its end is a log point of its own within one.
        kwargs["num_samples"] = min(kwargs["num_samples"], 20 * batch)
    return spec


def images_spec(machine: Machine, *, batch: int, steps: int, **runtime: Any) -> dict[str, Any]:
    """A spec of logits KD on made-up images of 32x32: cifar_resnet32 to cifar_resnet20, tiny on the CPU."""
    widths = {} if machine.cuda else {"widths": [4, 4, 8, 8]}
    kwargs = {"num_classes": 10, "in_channels": 3, **widths}
    size = machine.size(32, 8)
    side: dict[str, Any] = {
        "num_classes": 10,
        "shape": [3, size, size],
        "transformer": [
            {"type": "torch_random_horizontal_flip"},
            {"type": "to_tensor"},
            {"type": "normalize", "kwargs": {"mean": [0.5] * 3, "std": [0.25] * 3}},
        ],
    }
    part = {"mimic_name": ["logits"], "allow_random": True, "allow_weak_teacher": True}
    net = "cifar_resnet32" if machine.cuda else "cifar_resnet8"
    return {
        "runtime": {"runner": {"type": "kd"}, "random_seed": 1, **runtime},
        "net": [{"name": "model", "type": "cifar_resnet20" if machine.cuda else net, "kwargs": kwargs}],
        "teacher0": [{"name": "model", "type": net, "kwargs": kwargs}],
        "mimic": {
            "cfgs": {"loss": {"type": "kd_loss", "kwargs": {"T": 4}}},
            "teacher0": part,
            "student": {"mimic_name": ["logits"]},
        },
        "dataset": {
            "train": {"dataset": {"type": "fake", "kwargs": {**side, "num_samples": batch * (steps + 2)}}},
            "test": {"dataset": {"type": "fake", "kwargs": {**side, "num_samples": 64}}},
            "batch_sampler": {"type": "base", "kwargs": {"batch_size": batch}},
        },
        "trainer": {
            "max_iter": steps,
            "test_freq": 10**6,
            "save_freq": 10**6,
            "log_freq": 10,
            "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}},
        },
        "saver": {"save_dir": str(machine.new_folder())},
    }


def text_of(spec: dict[str, Any]) -> str:
    """A spec as YAML."""
    return yaml.safe_dump(spec, sort_keys=False)
