"""Checkpoints: the state of a run, everything that decides its next step, in files that survive a kill.

They are written whole, verified when read, and never run code. A checkpoint is one file
`step_00001234-<first 16 hex digits of its SHA-256>.pt`: written beside, flushed to disk, then renamed, so
that a name always stands for exactly those bytes. Its content has a checksum inside too, which stays when the
file is renamed (kdcli.models.checksums).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kdcli import __version__
from kdcli.data.preprocess import preprocess_record
from kdcli.disk import entries_like, remove, write_whole
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import RunError, first_line
from kdcli.models.checksums import SEALED, check_seal, seal
from kdcli.models.network import Network
from kdcli.models.weights import save_safetensors
from kdcli.spec.schema import Spec

if TYPE_CHECKING:
    from kdcli.training.optim import LearningRate
    from kdcli.training.run import Run

FORMAT = 1
ANSWERS, FEATURES, UNTRAINED = "answers", "features", "untrained"
"""In the metadata of a student without a trained head: that it gives features alone; its parameters never trained."""
_NAME = re.compile(r"step_(\d{8,})-([0-9a-f]{16})\.pt")


@dataclass(slots=True)
class Progress:
    """Counters of a run. step: finished optimizer steps; stage_step: of these, in this stage.

    epoch is the pass over the data that comes next or is under way; batch counts its batches that are done. over:
    the last evaluation is done. best and last: metrics of evaluations. skipped: steps that were not taken for
    numbers gone wrong. bad_samples: side, sample, name and reason of each. probe: of the networks that a probe has
    measured once, the figures by name, and a digest of its images; empty without a probe. watch: what the watch
    remembers (kdcli.training.watch); empty in checkpoints from before there was one. untrained: parameters of the
    student that have no gradient in the run and come from no weights; features_only: whether its answers depend on
    them, or it has none.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    batch: int = 0
    over: bool = False
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: int = 0
    bad_samples: list[tuple[str, int, str, str]] = field(default_factory=list)
    watch: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    untrained: list[str] = field(default_factory=list)
    features_only: bool = False


def run_state(
    run: Run, progress: Progress, optimizer: torch.optim.Optimizer, rate: LearningRate
) -> dict[str, Any]:
    """The state of a run after a whole optimizer step; every process takes part."""
    # Here, since it imports FSDP: commands that only build a network don't wait for that.
    from kdcli.parallel.sharding import whole

    return {
        "format": FORMAT,
        "kdcli": __version__,
        # Absent before kdcli knew the layout of features: what is continued from there keeps its meaning.
        "layouts": run.found_checkpoint is None or not run.found_checkpoint.before_layouts,
        "arithmetic": run.settings.kept(),
        "progress": asdict(progress),
        "trainee": whole(run.trainee.state_dict()),
        "optimizer": whole(optimizer.state_dict()),
        "rate": rate.state_dict(),
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
        "ema": None if run.ema is None else whole(run.ema.state_dict()),
        "processes": run.processes.gather({"generators": generator_state(), "buffers": own_buffers(run)}),
        "world_size": run.processes.world_size,
        "batches": len(run.train_loader),
        "spec": run.parsed.resolved_yaml(),
        "teachers": dict(run.teacher_hashes),
        "data": {side: digest.state() for side, digest in run.digests.items()},
    }


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Convert errors while a checkpoint is restored into RunError KD721."""
    try:
        yield
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = first_line(error)
        raise RunError.of(
            "KD721", f"{path} does not fit this run: {reason}", "start without it, or over with `--overwrite`"
        ) from error


def restore_trainee(run: Run, state: dict[str, Any]) -> None:
    """Restore the networks and losses; before anything is sharded."""
    run.trainee.load_state_dict(state["trainee"])
    buffers = dict(run.trainee.named_buffers())
    if run.processes.rank < len(state["processes"]):
        for name, value in state["processes"][run.processes.rank]["buffers"].items():
            buffers[name].copy_(value)


def root_of(path: Path) -> Path:
    """The folder of the run that a checkpoint is of; where it was moved out of `checkpoints`, the folder it lies in."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def restore_average(run: Run, state: dict[str, Any] | None) -> None:
    """Restore the moving average, or start it at the current weights; after sharding."""
    from kdcli.parallel.sharding import distributed_like

    if run.ema is None:
        return
    run.ema.restart()
    if state is not None and state["ema"] is not None:
        run.ema.load_state_dict(distributed_like(state["ema"], run.ema.state_dict()))


def restore_optimizer(
    run: Run,
    state: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    rate: LearningRate,
    *,
    changed: bool = False,
) -> None:
    """Restore optimizer, learning rate, scaler and this process's random generators.

    changed: the spec asks for other settings of optimizer or schedule than the checkpoint's, which the
    user has allowed: these hold from here on, the schedule as if it had always been so.
    """
    from kdcli.parallel.sharding import distributed_like

    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = distributed_like(value, parameter)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    if changed:
        for _ in range(state["rate"]["step_count"]):
            rate.advance()
    else:
        rate.load_state_dict(state["rate"])
    if run.scaler is not None and state["scaler"] is not None:
        run.scaler.load_state_dict(state["scaler"])
    if run.processes.rank < len(state["processes"]):
        restore_generators(state["processes"][run.processes.rank]["generators"])


def generator_state() -> dict[str, Any]:
    """The state of this process's random generators."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_generators(state: dict[str, Any]) -> None:
    """Set this process's random generators to a saved state."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda"])


def own_buffers(run: Run) -> dict[str, Tensor]:
    """Buffers of mimic methods that differ from rank 0's; DDP does not synchronise those."""
    if run.processes.world_size == 1:
        return {}
    buffers = {f"mimickers.{name}": b.detach().cpu() for name, b in run.trainee.mimickers.named_buffers()}
    digests = {name: _digest(buffer) for name, buffer in buffers.items()}
    first = run.processes.broadcast(digests)
    return {name: buffer for name, buffer in buffers.items() if digests[name] != first[name]}


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, keep: int, best: int | None = None
) -> Path:
    """Write one checkpoint, then drop all but the newest `keep` and that of the step `best`.

    Raises RunError (KD740) where the disk is full or the folder can't be written; older checkpoints
    are untouched then.
    """
    buffer = io.BytesIO()
    torch.save({**state, SEALED: True}, buffer)
    digest = seal(buffer)[:16]
    path = folder / f"step_{step:08d}-{digest}.pt"
    # Given back at once: a view that a failed write's traceback keeps crashes the collector of Python 3.12.
    with buffer.getbuffer() as view:
        write_whole(path, view)
    others = [other for other in checkpoints(folder) if other != path]
    twins = [other for other in others if step_of(other) == step]
    older = [other for other in others if step_of(other) < step]
    for old in (*twins, *(other for other in older[max(keep, 1) - 1 :] if step_of(other) != best)):
        remove(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [path for path in entries_like(folder, "step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's file name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def newest_valid(folder: Path) -> Iterator[tuple[Path, dict[str, Any] | RunError]]:
    """Checkpoints from newest to oldest: a state, or why this one can't be used; ends at the first state."""
    for path in checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except RunError as error:
            yield path, error
            continue
        yield path, state
        return


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint without running code; raises RunError where it is truncated, damaged or foreign."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError.of("KD710", f"cannot read the checkpoint {path}: {error.strerror}") from None
    whole, digest = check_seal(data)
    if whole is False:
        raise _damaged(path, "its bytes do not give the checksum that it holds")
    match = _NAME.fullmatch(path.name)
    if match is not None and digest[:16] != match[2]:
        raise _damaged(path, "its bytes do not give the checksum in its name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what can't be read is refused below
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise RunError.of(
            "KD712", f"{path} is not a checkpoint that can be loaded safely: {reason}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError.of("KD713", f"{path} is not a checkpoint of this version of kdcli")
    if state.get(SEALED) is True and whole is None:
        raise _damaged(path, "the checksum that it was saved with is missing")
    progress = state.get("progress")
    step = progress.get("step") if isinstance(progress, dict) else None
    if match is not None and step not in (None, int(match[1])):
        raise _damaged(path, f"its name says step {int(match[1])}, and it holds step {step}")
    return state


def is_checked(path: Path, state: Mapping[str, Any]) -> bool:
    """Whether damage to a checkpoint would have been noticed: one of before 0.3 has its checksum in its name alone."""
    return state.get(SEALED) is True or _NAME.fullmatch(path.name) is not None


def _damaged(path: Path, reason: str) -> RunError:
    return RunError.of(
        "KD711",
        f"the checkpoint {path} is damaged: {reason}",
        "delete it and resume from the one before with `--resume`, or copy it again from where it was made",
    )


def save_student(
    run: Run, path: Path, state: dict[str, Tensor], progress: Progress, metrics: dict[str, float]
) -> None:
    """Save the student's weights, with input size, normalisation and classes as metadata."""
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
        **how_to_run(run.parsed.spec, run.deployed, run.task.name),
    }
    if progress.features_only:
        metadata |= {ANSWERS: FEATURES, UNTRAINED: json.dumps(progress.untrained)}
    save_safetensors(state, path, metadata)


def how_to_run(spec: Spec, deployed: nn.Module, task: str) -> dict[str, str]:
    """What whoever runs a student's file must know of it, as its metadata: task, preprocessing and network as JSON.

    A student whose end is a teacher's can't be built without the spec: its network is not named. Where code of the
    user's makes what the network sees, there is no preprocessing to tell.
    """
    said = {"task": task, "aligned": json.dumps(spec.runtime.aligned)}
    record = preprocess_record(spec.dataset.test, aligned=spec.runtime.aligned)
    if record is not None:
        said["preprocess"] = json.dumps(record)
    if isinstance(deployed, Network):
        modules = [module.model_dump(mode="json", exclude_defaults=True) for module in spec.net]
        said["net"] = json.dumps(modules)
    return said


def training_metadata(weights: Path) -> dict[str, str]:
    """The metadata that training wrote beside the weights; empty for files of another origin."""
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def step_info_of(progress: Progress, batches: int) -> StepInfo:
    """Where a run is, for its losses. batches: in an epoch."""
    return StepInfo(
        step=progress.step,
        stage_step=progress.stage_step,
        epoch=progress.epoch + progress.batch / max(batches, 1),
    )
