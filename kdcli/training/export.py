"""The student alone, as the user takes it away."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from kdcli import __version__
from kdcli.models.weights import save_safetensors
from kdcli.training.run import Run
from kdcli.training.state import Progress


def save_student(
    run: Run, path: Path, state: dict[str, Tensor], progress: Progress, metrics: dict[str, float]
) -> None:
    """The student's weights without what serves training alone; input size, normalisation and classes as metadata."""
    facts = run.facts
    metadata = {
        "format": "kdcli-student",
        "kdcli": __version__,
        "spec_hash": run.parsed.hash(),
        "step": str(progress.step),
        "metrics": json.dumps(metrics),
        "input_shape": json.dumps(facts.shape),
        "mean": json.dumps(facts.mean),
        "std": json.dumps(facts.std),
        "class_names": json.dumps(facts.class_names),
        "ema": str(run.ema is not None),
    }
    save_safetensors(state, path, metadata)
