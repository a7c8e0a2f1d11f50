"""Export of a run's student: written in one format, read back, proved equal, measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli import __version__
from kdcli.analysis.comparison import latency_ms
from kdcli.analysis.evaluated_networks import (
    EvaluatedNetwork,
    rebuild,
    require_weights,
    stated_by_student,
    student_of,
)
from kdcli.data.facts import DataFacts, describe
from kdcli.disk import disk_error, real_path, size_of, sweep_temporary, written_beside
from kdcli.distill.trainee import DeployedStudent
from kdcli.errors import KdError, RunError, UsageError, did_you_mean
from kdcli.exports import EXPORTS, FORMATS
from kdcli.exports.format import Answer, Format
from kdcli.exports.safetensors import loading_lines
from kdcli.models.network import Network
from kdcli.parallel.distributed import Processes
from kdcli.spec.parse import ParsedSpec
from kdcli.tasks.task import Deployment, Portable, Task, Tensors
from kdcli.training.build import build_data, run_root
from kdcli.training.checkpoint import how_to_run, training_metadata
from kdcli.training.join_jobs import first_samples, stated_layouts
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import RunFolder
from kdcli.training.sides import Sides

TOLERANCE = 1e-4
IMAGES = 64
"""At most so many of a batch."""
OF_TRAINING = ("step", "metrics", "ema")
"""What the run's own file tells, carried over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The result of an export. proof: over `images`, between the file and the student in torch.

    latencies: milliseconds of one image on the CPU, of the file (in `runner`) and of the eager student. loaded_by:
    lines of Python that read weights into their network without kdcli, where there are some.
    """

    path: Path
    format: str
    bytes: int
    images: int
    real: bool
    proof: Proof
    runner: str
    latency_ms: float
    eager_latency_ms: float
    metadata: Mapping[str, str]
    source: str
    loaded_by: tuple[str, ...] = ()


def export(
    parsed: ParsedSpec,
    options: RunOptions,
    format: str,
    output: Path | None = None,
    *,
    weights: Path | None = None,
    key: str | None = None,
    tolerance: float = TOLERANCE,
    spec_hash: str | None = None,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write the student of a run; nothing lies at `output` unless the file was proved to give the same outputs.

    output: else <run folder>/<name><suffix>. weights: else the run's best, else its last. key: where in that
    file they lie. tolerance: see prove. size: height and width of a detector's input, else what holds the first
    test images. Raises UsageError for an unknown format or a wrong size, RunError KD760 (a library is
    missing), KD761 (it answers otherwise), KD762 (it can't be exported), KD763 (a detector that no graph
    can be made of).
    """
    if format not in EXPORTS:
        raise UsageError.of(f"there is no export format `{format}`", did_you_mean(format, list(EXPORTS)))
    named = FORMATS.get(output.suffix.lower()) if output is not None else None
    if named is not None and named != format:
        raise UsageError.of(
            f"`{output}` is the name of a {named} file, and the format is {format}",
            f"say `--format {named}`, or give the file another ending",
        )
    maker: Format = EXPORTS[format].load()()
    maker.check()
    sides = Sides(parsed.spec, options.places, plugins=options.plugins)
    deploy = deployment_of(sides.task, size)
    require_weights(parsed, weights)
    sample = sample_for(sides, deploy, parsed, weights, size)
    contender, _ = student_of(sides.task, parsed, options, weights, sample.batch, sample.facts, key=key)
    student = portable(parsed, deploy, contender, contender.net)
    if maker.is_graph and not student.followed:
        raise RunError.of(
            "KD763",
            f"no graph is known for the modules that make this detector's boxes, so it has no {format} file",
            "take `--format safetensors`",
        )
    metadata = metadata_of(parsed, sides.task, contender, student, sample)
    metadata["spec_hash"] = spec_hash or parsed.hash()
    chosen = output or run_root(parsed) / f"{real_path(run_root(parsed)).name}{maker.suffix}"
    sweep_temporary(run_root(parsed))
    with _as_run_error(chosen, format):
        with written_beside(chosen) as beside:
            maker.write(student, sample.inputs, beside, metadata)
            fresh, _ = rebuild(sides.task, parsed.spec, options, first_samples(sample.batch), sample.facts)
            answer = maker.read(beside, portable(parsed, deploy, contender, fresh).warm_up(*sample.inputs))
            proof = prove(student, answer, sample.inputs, tolerance)
            one = tuple(value[:1].clone() for value in sample.inputs)
            latencies = (
                latency_ms(lambda given: answer(*given), one),
                latency_ms(lambda given: student.eager(*given), one),
            )
        RunFolder(run_root(parsed)).remember_export(chosen)
    return Exported(
        path=chosen,
        format=format,
        bytes=size_of(chosen),
        images=len(sample.inputs[0]),
        real=sample.real,
        proof=proof,
        runner=maker.runner,
        latency_ms=latencies[0],
        eager_latency_ms=latencies[1],
        metadata=metadata,
        source=str(contender.source),
        loaded_by=()
        if maker.is_graph
        else loading_lines(parsed.spec.net, contender.net, chosen, student.state()),
    )


def portable(
    parsed: ParsedSpec, deploy: Deployment, contender: EvaluatedNetwork, net: Network | DeployedStudent
) -> Portable:
    """The student as one function of tensors; net: its own network, or another with random weights."""
    if contender.answers:
        return deploy.portable(net, aligned=parsed.spec.runtime.aligned)
    return deploy.backbone(parsed.spec, net, contender.untrained, stated_layouts(parsed.spec, None))


def deployment_of(task: Task, size: tuple[int, int] | None) -> Deployment:
    """How the task's students are exported; UsageError where they can't be, or where the input has no free size."""
    if task.deploy is None:
        raise UsageError.of(
            f"students of the task {task.name} can't be exported",
            "take the run's own student.safetensors, which holds the weights",
        )
    if size is not None and not task.deploy.sized:
        raise UsageError.of(
            "`--input-size` is for detectors", "a classifier's input has the size that its spec gives"
        )
    return task.deploy


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
    *,
    made_up_size: tuple[int, int] | None = None,
) -> Sample:
    """At least two images of the test data. size: height and width of the input, where the user says it.

    made_up_size: those of a detector's made-up images, where the data can't be read and any size does. Raises
    UsageError where the size is smaller than the images.
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
        batches = deploy.made_up(parsed.spec, facts, size or made_up_size)
    return Sample(batch=batches[0], inputs=deploy.inputs(batches, size), facts=facts, real=real)


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
        known = {} if path is None else training_metadata(path)
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


def metadata_of(
    parsed: ParsedSpec, task: Task, contender: EvaluatedNetwork, student: Portable, sample: Sample
) -> dict[str, str]:
    """The metadata that whoever runs the file needs; every value but text is JSON. Runs the student once."""
    facts = sample.facts
    said = how_to_run(parsed.spec, contender.net, task.name)
    student.warm_up(*sample.inputs)
    metadata = {
        "kdcli": __version__,
        "spec_hash": parsed.hash(),
        "inputs": json.dumps(student.inputs),
        "outputs": json.dumps(student.outputs),
        "input_shape": json.dumps(list(sample.inputs[0].shape[1:])),
        "mean": json.dumps(facts.mean),
        "std": json.dumps(facts.std),
        "class_names": json.dumps(student.class_names(facts)),
    }
    assert contender.source is not None
    known = training_metadata(contender.source)
    return {**metadata, **said, **student.says, **{key: known[key] for key in OF_TRAINING if key in known}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The largest difference of any value, and as a share of the largest value beside it.

    boxes: how many there were; alone: how many of them had no counterpart.
    """

    difference: float
    share: float
    boxes: int | None = None
    alone: int = 0


def prove(student: Portable, answer: Answer, inputs: Tensors, tolerance: float) -> Proof:
    """Compare over the whole batch and over one image alone.

    Raises RunError KD761 where an output differs by more than the tolerance times its largest value, or where
    there is nothing to compare.
    """
    largest, share, alone = 0.0, 0.0, 0
    boxes: int | None = None
    for batch in (inputs, tuple(value[:1] for value in inputs)):
        with torch.inference_mode():
            expected = student.eager(*(value.clone() for value in batch))
            found = answer(*(value.clone() for value in batch))
        compared = student.compared(expected, found)
        if compared.boxes is not None:
            boxes, alone = max(boxes or 0, compared.boxes), max(alone, compared.alone)
        for name, one, other in compared.pairs:
            gap = _gap(name, one, other, tolerance)
            largest, share = max(largest, gap[0]), max(share, gap[1])
    if boxes == 0:
        raise RunError.of(
            "KD761",
            f"the student finds no box in {len(inputs[0])} images, so nothing can be proved; no file is left",
            "export a trained detector, on test images that show something",
        )
    return Proof(difference=largest, share=share, boxes=boxes, alone=alone)


SMALLEST_OUTPUT = 0.01
"""Outputs that are all smaller are compared as if the largest were this: the rounding within a network, whose values
are about 1, does not become smaller with them."""


def _gap(name: str, expected: Tensor, found: Tensor, tolerance: float) -> tuple[float, float]:
    """The largest difference, and its share of the largest value."""
    if found.shape != expected.shape:
        shapes = f"{list(found.shape)} instead of {list(expected.shape)}"
        raise RunError.of("KD761", f"the exported file gives {name} {shapes}; no file is left")
    if expected.numel() == 0:
        return 0.0, 0.0
    gap, size = float((found - expected).abs().max()), float(expected.abs().max())
    share = gap / max(size, SMALLEST_OUTPUT)
    if not math.isfinite(size):
        message = f"the student's {name} are not finite, so nothing can be proved; no file is left"
        raise RunError.of(
            "KD761", message, "export weights whose outputs are numbers: did the training diverge?"
        )
    if not share <= tolerance:
        raise RunError.of(
            "KD761",
            f"the exported file answers otherwise: {name} differ by up to {gap:.3g}, {share:.2g} of the largest "
            f"value ({size:.3g}), and the tolerance is {tolerance:g}; no file is left",
            "try another format, or allow more with `--tolerance`",
        )
    return gap, share


@contextmanager
def _as_run_error(path: Path, format: str) -> Iterator[None]:
    """Convert what goes wrong while exporting into one line."""
    try:
        yield
    except KdError:
        raise
    except OSError as error:
        raise disk_error(path, error) from error
    except Exception as error:
        raise not_exported(error, format) from error


LINE_OF_CODE = re.compile(r'File "([^"]+)", line (\d+), in')


def not_exported(error: Exception, format: str) -> RunError:
    """KD762 for what an exporter raised: the first cause, the line of the network it is about, what to do.

    torch's ONNX exporter wraps its reasons in pages; of these the innermost exception says what is wrong.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    lines = LINE_OF_CODE.findall(str(error))
    place = f" (at {lines[-1][0]}:{lines[-1][1]})" if lines else ""
    written = type(error).__module__.startswith("torch.onnx") and type(error).__name__ != "TorchExportError"
    return RunError.of(
        "KD762",
        f"the student can't be exported to {format}: {type(cause).__name__}: {reason}{place}",
        "its forward could be followed, but torch's exporter can't write it as ONNX: take "
        "`--format torch-export` or `--format safetensors`"
        if written
        else "its forward must be traceable: no branch on values, no Python number made of a tensor; "
        "`--format safetensors` needs no trace",
    )
