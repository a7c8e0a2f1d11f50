"""The images that an export is proved on: test data, or made-up ones where that can't be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kdcli.analysis.evaluated_networks import stated_by_student
from kdcli.data.facts import DataFacts, describe
from kdcli.errors import KdError
from kdcli.parallel.distributed import Processes
from kdcli.spec.parse import ParsedSpec
from kdcli.tasks.task import Deployment, Tensors
from kdcli.training.build import build_data, run_root
from kdcli.training.run_folder import RunFolder
from kdcli.training.sides import Sides
from kdcli.training.wiring import first_samples

IMAGES = 64
"""At most so many of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """batch: from the data; inputs: what the exported student takes of it; real: no made-up images."""

    batch: Mapping[str, Any]
    inputs: Tensors
    facts: DataFacts
    real: bool


def sample_for(
    sides: Sides,
    deploy: Deployment,
    parsed: ParsedSpec,
    weights: Path | None,
    size: tuple[int, int] | None,
) -> Sample:
    """At least two images of the test data. size: height and width of the input, where the user says it.

    Raises UsageError where the size is smaller than the images.
    """
    batches: list[Mapping[str, Any]] = []
    try:
        with _test_batches(sides, parsed, weights) as (given, facts):
            batches = deploy.taken(first_samples(batch, IMAGES) for batch in given)
    except KdError:
        pass
    real = bool(batches)
    if not real:
        facts = _remembered(parsed, weights)
        batches = deploy.made_up(parsed.spec, facts, size)
    return Sample(batch=batches[0], inputs=deploy.inputs(batches, size), facts=facts, real=real)


def said(weights: Path) -> dict[str, str]:
    """The metadata that training wrote beside the weights; empty for files of another origin."""
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


@contextmanager
def _test_batches(
    sides: Sides, parsed: ParsedSpec, weights: Path | None
) -> Iterator[tuple[Iterator[dict[str, Any]], DataFacts]]:
    opened = sides.test_of_run(run_root(parsed), stated_by_student(parsed, weights))
    loader = build_data(opened, sides.spec, Processes(device=torch.device("cpu")))
    try:
        yield (dict(batch) for batch in loader.batches(0)), loader.facts
    finally:
        loader.close()


def _remembered(parsed: ParsedSpec, weights: Path | None) -> DataFacts:
    """The facts of the data, from the spec or else from the training run."""
    facts = describe(parsed.spec.dataset.test, train=False)
    folder = RunFolder(run_root(parsed))
    for path in (weights, folder.best_student, folder.student):
        known = {} if path is None else said(path)
        try:
            facts = DataFacts(
                shape=facts.shape or json.loads(known["input_shape"]),
                class_names=facts.class_names or json.loads(known["class_names"]),
                num_classes=facts.num_classes,
                mean=facts.mean,
                std=facts.std,
            )
        except (KeyError, ValueError):
            continue
        break
    return facts
