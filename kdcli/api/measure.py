"""A run's networks measured, and its student as a module."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kdcli.api.objects import Data, given_again, objects_of, refuse_wrong, with_data
from kdcli.api.reading import checked, globals_kept, located, readable_errors
from kdcli.api.result import Measured, Result
from kdcli.api.spec import SpecLike, Texts, listed, spec_of
from kdcli.disk import is_folder
from kdcli.errors import UsageError
from kdcli.failures import doing
from kdcli.spec.in_memory import giving, with_names

if TYPE_CHECKING:
    from torch import nn

    from kdcli.parallel.distributed import Processes
    from kdcli.spec.parse import ParsedSpec
    from kdcli.tasks.saved_outputs import DetectionOutputs
    from kdcli.training.run import RunOptions

RunLike = str | PurePath | Result
"""A run folder, or the Result of a training."""


def evaluate(
    run: RunLike | SpecLike,
    *,
    student: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | nn.Module | None = None,
    data: Data | Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    changes: Texts = (),
    device: str | None = None,
    plugins: Texts = (),
    quiet: bool = False,
) -> Measured:
    """Measure a run's student and its teachers on the test data, as `kdcli eval` does.

    run: a run folder, the Result of a training, or the spec of a run. student, teachers, data: the objects that the run
    was given, again; other test data measures the student on it. weights: a file for the student in place of the run's
    best. quiet: print no notices. Returns a row for each network; raises RunError KD719 without weights for the
    student, SpecError KD870 where an object of the run is not given.

        measured = kdcli.evaluate("runs/digits_kd")
        measured["student"].metrics["top1"], measured["student"].latency_ms_batch_1
    """
    with readable_errors(), globals_kept():
        folder = _folder_of(run)
        file = None if weights is None else Path(weights)
        if folder is not None:
            if changes:
                raise UsageError.of("a run's spec can't be changed", "give the spec with these changes")
            parsed, options = _reopened(folder, device, plugins)
            given = given_again(parsed, student, teachers, data)
            parsed = with_data(parsed, given.data)
        else:
            assert not isinstance(run, Result)
            wanted = spec_of(run, changes)
            objects = objects_of(wanted, student, teachers, data)
            given = objects.given
            with giving(given):
                parsed = checked(lambda: wanted.parsed(objects.changes), listed(plugins))
            refuse_wrong(parsed, given)
            options = _options_for(parsed, device, plugins)
        with giving(given):
            measured, processes = measure(parsed, options, weights=file)
        if processes.speaks and not quiet:
            for notice in measured.notices:
                sys.stderr.write(f"{notice}\n")
        return measured


def measure(
    parsed: ParsedSpec,
    options: RunOptions,
    *,
    weights: Path | None = None,
    key: str | None = None,
    keep: DetectionOutputs | None = None,
) -> tuple[Measured, Processes]:
    """The rows of an evaluation, and the processes that made them. key: where in `weights` the student lies."""
    from kdcli.analysis.comparison import compare
    from kdcli.parallel import distributed
    from kdcli.parallel.devices import oom_as_error
    from kdcli.tasks.mimicry import primary_of_rows
    from kdcli.training.sides import Sides

    device = options.device or parsed.spec.runtime.device
    with (
        located(parsed),
        oom_as_error(parsed.spec, "test"),
        distributed.processes(device) as processes,
        doing("measuring the networks"),
    ):
        sides = Sides(parsed.spec, options.places, plugins=options.plugins)
        rows, notices = compare(parsed, options, processes, weights, keep, sides, key=key)
        primary = primary_of_rows(rows, sides.task.primary)
    said = tuple(notice.message for notice in notices)
    return Measured(networks=tuple(rows), primary=primary, notices=said), processes


def load_student(
    run: RunLike,
    *,
    weights: str | Path = "best",
    student: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | nn.Module | None = None,
    device: str = "cpu",
    plugins: Texts = (),
) -> nn.Module:
    """The student of a run as a module in eval mode, as `Result.student` is it.

    run: a run folder, or the Result of a training. weights: `best`, `last`, or a file. student: the module that the run
    was given, built anew: it is copied and gets the run's weights (teachers: only where a method such as SimKD deploys
    a part of one). Raises RunError KD719 without weights, KD750 for a folder that is no run, SpecError KD870 where the
    student was given from Python and is not given here, KD871 where it is another.

        student = kdcli.load_student("runs/digits_kd")
        student(images).argmax(1)
    """
    with readable_errors(), globals_kept():
        folder = _folder_of(run)
        if folder is None:
            raise UsageError.of(f"{run} is no run folder", "name the folder that `train` has written")
        parsed, options = _reopened(folder, device, plugins)
        with giving(given_again(parsed, student, teachers)):
            return student_in(parsed, options, weights).to(device)


def student_in(parsed: ParsedSpec, options: RunOptions, weights: str | Path) -> nn.Module:
    """The student of the run whose folder the spec names, in eval mode, on the CPU.

    weights: `best`, `last` or a file.
    """
    from kdcli.analysis.evaluated_networks import require_weights, student_of
    from kdcli.data.facts import describe
    from kdcli.spec.plugins import import_plugins
    from kdcli.tasks import build_task
    from kdcli.training.build import run_root, sample_of
    from kdcli.training.checkpoint import training_metadata
    from kdcli.training.run_folder import RunFolder

    spec, folder = parsed.spec, RunFolder(run_root(parsed))
    file = {"best": None, "last": folder.student}.get(str(weights), Path(weights))
    with located(parsed):
        import_plugins(spec, options.plugins)
        require_weights(parsed, file)
        stated = training_metadata(folder.student)
        shape = json.loads(stated.get("input_shape", "null"))
        facts = describe(spec.dataset.train)
        if shape is not None:
            facts = replace(facts, shape=tuple(shape))
        names = json.loads(stated.get("class_names", "null"))
        if names is not None:
            facts = replace(facts, class_names=tuple(names), num_classes=len(names))
        task = build_task(spec, options.places)
        sample = sample_of(task, spec, facts)
        found, _ = student_of(task, parsed, options, file, sample, facts)
    module = as_given(found.net).eval()
    return module if names is None else with_names(module, names)


def as_given(net: nn.Module) -> nn.Module:
    """A student's network as plain torch has it: its one whole model, where it is no more than that.

    A detector of torchvision's takes a list of images as the data's transforms leave them.
    """
    from kdcli.models.detection.whole import TorchvisionDetector
    from kdcli.models.module import ViewModule
    from kdcli.models.network import Network

    if not isinstance(net, Network):
        return net
    dropped = net.training_only()
    kept = [child for name, child in net.named_children() if name not in dropped]
    # What only names the answers (a post-process) has nothing of its own.
    models = [child for child in kept if not isinstance(child, ViewModule) or any(child.state_dict())]
    if len(models) == 1 and isinstance(models[0], TorchvisionDetector):
        return models[0].detector
    return models[0] if len(models) == 1 and not isinstance(models[0], ViewModule) else net


def _folder_of(run: Any) -> Path | None:
    """The run folder that a run is named by; None for a spec."""
    if isinstance(run, Result):
        return run.folder
    if isinstance(run, str | PurePath) and (is_folder(run) or not str(run).endswith((".yaml", ".yml"))):
        return Path(run)
    return None


def _reopened(folder: Path, device: str | None, plugins: Texts) -> tuple[ParsedSpec, RunOptions]:
    from kdcli.training.run_folder import reopen

    run = reopen(folder, device=device, plugins=listed(plugins))
    return run.parsed, run.options


def _options_for(parsed: ParsedSpec, device: str | None, plugins: Texts) -> RunOptions:
    from kdcli.training.run import RunOptions

    return RunOptions(device=device, plugins=listed(plugins), places=parsed.places)
