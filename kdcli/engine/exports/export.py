"""A student taken away: written in one format, read back, proved equal, measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdcli import __version__
from kdcli.data.describe import describe
from kdcli.data.facts import DataFacts
from kdcli.engine.build import build_data, run_root, task_kind
from kdcli.engine.checkpoint import disk_error
from kdcli.engine.compare import latency_ms, student_of
from kdcli.engine.distributed import Processes
from kdcli.engine.exports import EXPORTS
from kdcli.engine.exports.format import Answer, Format
from kdcli.engine.exports.portable import Portable
from kdcli.engine.folder import RunFolder
from kdcli.engine.redeploy import rebuild
from kdcli.engine.run import RunOptions
from kdcli.engine.sample import classification_sample
from kdcli.engine.wiring import small
from kdcli.errors import KdError, RunError, UsageError, did_you_mean
from kdcli.spec.parse import ParsedSpec

IMAGES = 64
TOLERANCE = 1e-4
OF_TRAINING = ("step", "metrics", "ema")
"""What the run's own file tells, carried over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was made. difference: the largest between logits of file and eager student, over `images`.

    latencies: milliseconds of one image on the CPU, of the file (in `runner`) and of the eager student.
    """

    path: Path
    format: str
    bytes: int
    images: int
    real: bool
    difference: float
    runner: str
    latency_ms: float
    eager_latency_ms: float
    metadata: Mapping[str, str]
    source: str


def export(
    parsed: ParsedSpec,
    options: RunOptions,
    format: str,
    output: Path | None = None,
    *,
    weights: Path | None = None,
    tolerance: float = TOLERANCE,
    spec_hash: str | None = None,
) -> Exported:
    """Write the student of a run; nothing lies at `output` unless the file was proved to answer alike.

    output: else <run folder>/<name><suffix>. weights: else the run's best, else its last. tolerance: of
    |difference| / max(1, |logit|). Raises UsageError for an unknown format, RunError KD760 (a library is
    missing), KD761 (it answers otherwise), KD762 (it can't be exported), KD763 (a detector).
    """
    if format not in EXPORTS:
        raise UsageError.of(f"there is no export format `{format}`", did_you_mean(format, list(EXPORTS)))
    maker: Format = EXPORTS[format].load()()
    maker.check()
    if task_kind(parsed.spec) != "classification":
        raise RunError.of(
            "KD763", "only classifiers can be exported", "take student_best.safetensors from the run folder"
        )
    sample, facts, real = _sample(parsed, options, weights)
    images: Tensor = sample["image"]
    student, said = student_of(parsed, options, weights, sample, facts)
    source = said[-1].message.removeprefix("student: ")
    eager = Portable(student.net).warm_up(images)
    metadata = metadata_of(facts, images, Path(source), spec_hash or parsed.hash())
    chosen = output or run_root(parsed) / f"{run_root(parsed).resolve().name}{maker.suffix}"
    beside = chosen.with_name(f".{chosen.stem}.{os.getpid()}{maker.suffix}")
    try:
        with _telling(chosen, format):
            chosen.parent.mkdir(parents=True, exist_ok=True)
            maker.write(eager, images, beside, metadata)
            fresh, _ = rebuild(parsed.spec, options, small(sample), facts)
            answer = maker.read(beside, Portable(fresh).warm_up(images))
            difference = _difference(eager, answer, images, tolerance)
            one = images[:1].clone()
            with torch.inference_mode():
                latencies = latency_ms(answer, one), latency_ms(eager, one)
            os.replace(beside, chosen)
    finally:
        beside.unlink(missing_ok=True)
    return Exported(
        path=chosen,
        format=format,
        bytes=chosen.stat().st_size,
        images=len(images),
        real=real,
        difference=difference,
        runner=maker.runner,
        latency_ms=latencies[0],
        eager_latency_ms=latencies[1],
        metadata=metadata,
        source=source,
    )


def metadata_of(facts: DataFacts, images: Tensor, source: Path, spec_hash: str) -> dict[str, str]:
    """What whoever runs the file must know; every value but text is JSON."""
    metadata = {
        "kdcli": __version__,
        "spec_hash": spec_hash,
        "input_shape": json.dumps(list(images.shape[1:])),
        "mean": json.dumps(facts.mean),
        "std": json.dumps(facts.std),
        "class_names": json.dumps(facts.class_names),
    }
    known = _said(source)
    return {**metadata, **{key: known[key] for key in OF_TRAINING if key in known}}


def _said(weights: Path) -> dict[str, str]:
    """What the training wrote beside the weights; empty for files of another origin."""
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _remembered(parsed: ParsedSpec, weights: Path | None) -> DataFacts:
    """The data as the spec, or else the training, tells of it."""
    facts = describe(parsed.spec.dataset.test, train=False)
    folder = RunFolder(run_root(parsed))
    for path in (weights, folder.best_student, folder.student):
        known = {} if path is None else _said(path)
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


def _sample(
    parsed: ParsedSpec, options: RunOptions, weights: Path | None
) -> tuple[dict[str, Any], DataFacts, bool]:
    """Up to 64 test images; made-up ones where the data can't be read."""
    part, spec = parsed.spec.dataset.test, parsed.spec
    try:
        loader = build_data(part, spec, options, Processes(device=torch.device("cpu")), train=False)
        try:
            sample = small(next(loader.batches(0)), IMAGES)
        finally:
            loader.close()
        facts = loader.facts
        real = True
    except (KdError, StopIteration):
        facts, real = _remembered(parsed, weights), False
        sample = classification_sample(part, facts)
        sample["image"] = torch.rand(sample["image"].shape, generator=torch.Generator().manual_seed(0))
    if len(sample["image"]) == 1:  # a batch of one would make the exporters fix the batch size
        sample = {k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in sample.items()}
    return sample, facts, real


def _difference(eager: Portable, answer: Answer, images: Tensor, tolerance: float) -> float:
    """The largest difference, over the batch and one image alone; RunError KD761 beyond the tolerance."""
    largest = 0.0
    for batch in (images, images[:1]):
        with torch.inference_mode():
            expected, found = eager(batch.clone()), answer(batch.clone())
        if found.shape != expected.shape:
            shapes = f"{list(found.shape)} instead of {list(expected.shape)}"
            raise RunError.of("KD761", f"the exported file gives logits {shapes}; no file is left")
        gap = (found - expected).abs()
        worst = float((gap / expected.abs().clamp_min(1.0)).max())
        largest = max(largest, float(gap.max()))
        if not worst <= tolerance:
            raise RunError.of(
                "KD761",
                f"the exported file answers otherwise: logits differ by up to {float(gap.max()):.3g}, "
                f"more than the tolerance {tolerance:g}; no file is left",
                "try another format, or allow more with `--tolerance`",
            )
    return largest


@contextmanager
def _telling(path: Path, format: str) -> Iterator[None]:
    """What goes wrong while exporting, in one line."""
    try:
        yield
    except KdError:
        raise
    except OSError as error:
        raise disk_error(path, error) from error
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise RunError.of(
            "KD762",
            f"the student can't be exported to {format}: {type(error).__name__}: {reason[:300]}",
            "its forward must be traceable: no branch on values, no Python number made of a tensor",
        ) from error
