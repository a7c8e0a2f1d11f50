"""The number formats of a run: autocast for networks, a scaler for fp16 gradients."""

from __future__ import annotations

import torch

from kdcli.spec.schema import Runtime

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def student_precision(runtime: Runtime) -> str:
    """`precision` where given, else what `fp16` says."""
    if runtime.precision is not None:
        return runtime.precision
    return "fp16" if runtime.fp16 else "fp32"


def autocast_for(precision: str, device: torch.device) -> torch.autocast | None:
    """The context in which a network computes; None for fp32."""
    if precision == "fp32":
        return None
    return torch.autocast(device.type, dtype=DTYPES[precision])


def scaler_for(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """The gradient scaler that fp16 needs."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
