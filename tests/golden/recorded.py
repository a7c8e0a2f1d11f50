"""The records, and which of them is this machine's."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).with_name("values.json")


def machine() -> str:
    """What decides the bits of float arithmetic here: torch, and the processor with its caches and instructions."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = platform.processor()
    kept = [
        line
        for line in first.splitlines()
        if re.match(r"(model|cpu family|vendor|flags|cache size|stepping)", line)
    ]
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    text = "\n".join([*kept, *(file.read_text() for file in caches)])
    name = next(
        (line.partition(":")[2].strip() for line in kept if line.startswith("model name")), "processor"
    )
    kind = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {name} {kind}, {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read() -> dict[str, Any]:
    """Every machine's record."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write(values: Mapping[str, Any]) -> None:
    """This machine's record in place of its former one."""
    every = {**(read() if FILE.exists() else {}), machine(): values}
    FILE.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
