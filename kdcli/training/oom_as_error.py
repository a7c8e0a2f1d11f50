"""A GPU that is full, told in one line that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from kdcli.errors import RunError
from kdcli.spec.schema import Spec


@contextmanager
def memory_told(spec: Spec, side: Literal["train", "test"] = "train") -> Iterator[None]:
    """An out-of-memory of torch inside the block becomes RunError KD724; side: of the data that is run."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        part = spec.dataset.train if side == "train" else spec.dataset.test
        size = part.batch_sampler.kwargs.batch_size
        less = " (beside a higher `trainer.accumulate_steps`)" if side == "train" else ""
        raise RunError.of(
            "KD724",
            f"the device ran out of memory (batch_size {size} per process)",
            f"lower `dataset.{side}.batch_sampler.kwargs.batch_size`{less} or the size of the images, "
            "or say `runtime.precision: bf16`",
        ) from error
