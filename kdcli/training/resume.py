"""Resuming a run from its newest valid checkpoint, where spec, teachers and data are still those it was made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from kdcli.data.digest import (
    Digest,
    Listing,
    changes,
    in_words,
    listing_from,
    names_in_words,
    other_pixels,
    probed_ids,
    unpacked,
)
from kdcli.disk import exists, is_file, is_folder
from kdcli.errors import Diagnostic, KdError, RunError, SpecError, SpecPath, cut_off
from kdcli.parallel.distributed import Processes
from kdcli.records import Notice
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.schema import Spec
from kdcli.spec.text.nodes import leaves
from kdcli.training.checkpoint import (
    Progress,
    checkpoints,
    fitting,
    is_checked,
    load_checkpoint,
    newest_valid,
    root_of,
)
from kdcli.training.join_jobs import jobs_of, requirements_of
from kdcli.training.optim import average_of, same_meaning
from kdcli.training.run import FoundCheckpoint, Run, RunOptions
from kdcli.training.run_folder import RunFolder

MAY_DIFFER = (
    "saver",
    "hooks",
    "runtime.threads",
    "runtime.uint8_images",
    "runtime.cudnn_benchmark",
    "trainer.log_freq",
    "trainer.keep_checkpoints",
    "trainer.save_freq",
    "trainer.save_every_minutes",
    "trainer.only_save_latest",
    "trainer.test_freq",
    "trainer.loggers",
    "trainer.on_nonfinite",
    "trainer.nonfinite_budget",
    "trainer.on_collapse",
    "dataset.probe.freq",
    *(
        f"dataset.{side}.dataloader.kwargs.{key}"
        for side in ("train", "test", "probe.train", "probe.test")
        for key in ("num_workers", "pin_memory", "bad_sample_budget")
    ),
)
"""Keys that decide nothing about the next step."""

AVERAGE = "trainer.ema"
"""The key of the moving average; it decides nothing where neither side keeps one."""

LENGTHS = ("trainer.max_iter", "trainer.max_epoch")
"""Keys that may be larger than the checkpoint's: what was done until then is the same."""

SCHEDULE = ("trainer.optimizer", "trainer.lr_scheduler", "mimic.stages")
"""Keys whose change asks for the schedule to be worked out anew."""

RESUME_MODEL: SpecPath = ("saver", "resume_model")

WHAT = {
    "train": "the training data is not what the checkpoint was trained on",
    "test": "the test data is not what the checkpoint was measured on",
}

PLACES = ("root", "meta_file", "image_dir", "gt_file", "cls_freq")
"""Keys that say where data lies: with others its pixels may be the same."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint to continue from. new_schedule: the user allows another optimizer or schedule."""

    path: Path
    state: dict[str, Any]
    progress: Progress
    new_schedule: bool


@dataclass(frozen=True, slots=True)
class UnbuiltRun:
    """The facts of a run before it is built: enough to compare a checkpoint with it.

    data: the digest of each side, on rank 0; empty where the data is not to be compared.
    """

    parsed: ParsedSpec
    options: RunOptions
    folder: RunFolder
    processes: Processes
    data: Mapping[str, Digest]

    @property
    def spec(self) -> Spec:
        """The spec as parsed."""
        return self.parsed.spec


def find_checkpoint(run: UnbuiltRun) -> FoundCheckpoint | None:
    """Find the checkpoint to continue from, if any; rank 0 decides for all, nothing is written.

    Raises RunError KD715 where the checkpoint belongs to another spec, KD717 to another number of processes,
    KD725 to a moving average of another meaning, KD733 and KD734 to other data, KD718 where there is none.
    """
    if not (run.options.resume or run.spec.saver.auto_resume or run.spec.saver.resume_model):
        return None
    path: Path | None = None
    notices: list[Notice] = []
    failure: KdError | None = None
    before_layouts, arithmetic = False, {}
    if run.processes.speaks:
        try:
            state, path, notices = _read(run)
            if state is not None and path is not None:
                with fitting(path):
                    notices += _check(run, state, path)
                before_layouts, arithmetic = not state.get("layouts"), dict(state.get("arithmetic") or {})
        except KdError as error:
            failure = error
    outcome = (path, notices, before_layouts, arithmetic, None if failure is None else failure.diagnostics)
    path, notices, before_layouts, arithmetic, diagnostics = run.processes.broadcast(outcome)
    if diagnostics is not None:
        raise failure or RunError(diagnostics)
    return None if path is None else FoundCheckpoint(path, tuple(notices), before_layouts, arithmetic)


def resume(run: Run) -> tuple[Resumed | None, list[Notice]]:
    """Load the checkpoint that was found, and collect notices.

    Raises RunError KD716 where it belongs to another teacher, KD721 where it does not fit.
    """
    if run.found_checkpoint is None:
        return None, []
    # Read again on rank 0, where it was looked at before the build: kept since then it would double the memory.
    path, state = run.found_checkpoint.path, load_checkpoint(run.found_checkpoint.path)
    with fitting(path):
        accepted = _check_teachers(run, state)
        progress = _progress(run, state)
        differing = differing_keys(state["spec"], run.parsed.resolved_yaml())
    resumed = Resumed(path, state, progress, any(_among(key, SCHEDULE) for key in differing))
    why = "a process died and all are started again: " if run.options.restarted else ""
    return resumed, [
        *run.found_checkpoint.notices,
        *accepted,
        Notice(message=f"{why}continuing at step {progress.step}"),
    ]


def _read(run: UnbuiltRun) -> tuple[dict[str, Any] | None, Path | None, list[Notice]]:
    own, named = run.folder.checkpoints, _named(run)
    # After a restart by the launcher, and under auto_resume, the run's own newest one wins.
    own_first = run.options.restarted or run.spec.saver.auto_resume
    if named is not None and not (own_first and checkpoints(own)):
        if is_file(named):
            state = load_checkpoint(named)
            return state, named, [] if is_checked(named, state) else [_unchecked(named)]
        if not exists(named) and not isinstance(run.options.resume, Path):
            raise _no_resume_model(run)
        own = named / "checkpoints" if is_folder(named / "checkpoints") else named
    notices: list[Notice] = []
    for path, found in newest_valid(own):
        if isinstance(found, dict):
            return found, path, notices
        notices.append(Notice(message=f"{found}; trying the one before", level="warning"))
    if own_first and named is None and not notices:
        return None, None, notices
    raise RunError.of(
        "KD718",
        f"there is no valid checkpoint in {own}"
        + (f"; the newest: {notices[0].message.removesuffix('; trying the one before')}" if notices else ""),
        "start without `--resume`, or over with `--overwrite`",
    )


def _named(run: UnbuiltRun) -> Path | None:
    """The checkpoint that the user named, as a file or its folder."""
    if isinstance(run.options.resume, Path):
        return run.options.resume
    if run.options.resume or run.spec.saver.resume_model is None:
        return None
    return run.options.places.find(run.spec.saver.resume_model, RESUME_MODEL)


def _unchecked(path: Path) -> Notice:
    message = f"{path} was renamed and has no checksum inside, as kdcli 0.2 made it: whether it is whole can't be told"
    return Notice(message=message, level="warning")


def _no_resume_model(run: UnbuiltRun) -> SpecError:
    name = run.spec.saver.resume_model or ""
    message = f"there is no checkpoint `{name}`"
    return SpecError.at(RESUME_MODEL, "KD718", message, run.options.places.missing(name, RESUME_MODEL))


def _progress(run: Run, state: dict[str, Any]) -> Progress:
    """The counters; with another number of processes the position in the epoch is the same share of it."""
    if not 0 <= state["progress"]["stage"] < len(run.stages):
        raise ValueError(f"it is in stage {state['progress']['stage']}, this run has {len(run.stages)}")
    if len(state["processes"]) != state["world_size"]:
        raise ValueError("it does not hold the state of every process")
    # Checkpoints of before the rate followed each evaluation once have the metrics that it was to see next.
    kept = {key: value for key, value in state["progress"].items() if key != "scheduled"}
    progress = Progress(**{**kept, "bad_samples": _rows(kept)})
    _continue_epoch(run, progress, state["batches"])
    before, now = state["batches"], len(run.train_loader)
    if before != now:
        progress.batch = progress.batch * now // before
    if run.processes.broadcast(_tests_otherwise(run, state)):
        # Figures on other data can't be compared: the next evaluation is the best so far.
        progress.best, progress.best_step = {}, 0
    # A finished run goes on where the user lets it be longer now.
    progress.over = progress.over and progress.stage_step >= run.stages[progress.stage].steps
    return progress


def _continue_epoch(run: Run, progress: Progress, batches: int) -> None:
    """Set the place in the epoch where a run of before 0.3 ended in mid-epoch: it had moved to the next one."""
    steps, rest = divmod(progress.stage_step, -(-batches // run.accumulate))
    if progress.over and len(run.stages) == 1 and not progress.batch and rest:
        progress.epoch, progress.batch = steps, rest * run.accumulate


def _tests_otherwise(run: Run, state: dict[str, Any]) -> bool:
    """Whether the test data differs from the checkpoint's, as far as this process knows."""
    kept = (state.get("data") or {}).get("test") or {}
    return "listing" in kept and "test" in run.digests and kept["listing"] != run.digests["test"].listing


def _rows(progress: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    return [tuple(row) for row in progress["bad_samples"]]


def _check(run: UnbuiltRun, state: dict[str, Any], path: Path) -> list[Notice]:
    """Raise RunError with all that prevents resuming; returns notices."""
    allowed = (*MAY_DIFFER, *run.options.allow_changed)
    averaged = average_of(run.spec) is not None
    if not averaged and state["ema"] is None:
        allowed = (*allowed, AVERAGE)
    elif averaged and state["ema"] is not None:
        # First, since what this asks to allow covers every key of the average that differs besides.
        if not same_meaning(state["ema"]) and not _among(AVERAGE, allowed):
            raise RunError.of(
                "KD725",
                f"the checkpoint's moving average was kept by another formula than `{AVERAGE}` has now",
                f"start over with `--overwrite`, or go on with today's by `--allow-changed {AVERAGE}`",
            )
    keys = differing_keys(state["spec"], run.parsed.resolved_yaml())
    errors: list[Diagnostic] = []
    differing = [key for key in keys if not _among(key, allowed)]
    longer = _longer(state["spec"], run.parsed.resolved_yaml(), differing)
    if longer:
        differing = []
    if differing:
        # What is only made longer is no reason.
        differing = [
            key for key in differing if not _longer(state["spec"], run.parsed.resolved_yaml(), [key])
        ]
        errors += RunError.of(
            "KD715",
            f"the checkpoint was made by another spec; these keys differ: {', '.join(differing)}",
            "put them back, start over with `--overwrite`, or accept each with `--allow-changed KEY`",
        ).diagnostics
    if state["world_size"] != run.processes.world_size and "world_size" not in run.options.allow_changed:
        errors += RunError.of(
            "KD717",
            f"the checkpoint was made by {state['world_size']} process(es), this run has {run.processes.world_size}",
            f"use {state['world_size']}, or accept it with `--allow-changed world_size`",
        ).diagnostics
    others, notices = _compare_data(run, state, path, [key for key in keys if not _among(key, MAY_DIFFER)])
    if errors or others:
        raise RunError([*errors, *others])
    accepted = [key for key in keys if _among(key, run.options.allow_changed) and not _among(key, MAY_DIFFER)]
    return [*longer, *_accepted(run, state, accepted), *notices]


def _accepted(run: UnbuiltRun, state: Mapping[str, Any], keys: Sequence[str]) -> list[Notice]:
    """A warning, which the run's record keeps, for what `--allow-changed` lets differ from the checkpoint."""
    old, new = (dict(leaves(yaml.safe_load(text))) for text in (state["spec"], run.parsed.resolved_yaml()))
    words = [f"`{key}` is {_value(new, key)}, it was {_value(old, key)}" for key in keys]
    if state["world_size"] != run.processes.world_size:
        words.append(f"the run has {run.processes.world_size} process(es), it had {state['world_size']}")
    if not words:
        return []
    return [Notice(message=f"changed from here on: {'; '.join(words)}", level="warning")]


def _value(values: Mapping[str, Any], key: str) -> str:
    """A value of a spec in a message."""
    if key not in values:
        return "not set"
    return cut_off(json.dumps(values[key], default=str))


def _longer(before: str, now: str, differing: Sequence[str]) -> list[Notice]:
    """A notice where a run is continued that differs in nothing but its length, which is larger; else none."""
    if not differing:
        return []
    old, new = dict(leaves(yaml.safe_load(before))), dict(leaves(yaml.safe_load(now)))
    if any(key.startswith("mimic.stages.") for key in new):
        return []
    if new.get("trainer.max_iter") is not None and "trainer.max_iter" not in differing:
        return []  # it decides the length, whatever `max_epoch` says
    words = []
    for key in differing:
        was, is_now = old.get(key), new.get(key)
        if key not in LENGTHS or not _is_number(was) or not _is_number(is_now) or is_now <= was:
            return []
        words.append(f"{key} is {is_now:,}, it was {was:,}")
    schedule = new.get("trainer.lr_scheduler.type")
    stays = f"; {schedule} stays as it is written, it does not grow with the run" if schedule else ""
    return [Notice(message=f"the run is made longer: {', '.join(words)}{stays}")]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _compare_data(
    run: UnbuiltRun, state: dict[str, Any], path: Path, keys: Sequence[str]
) -> tuple[list[Diagnostic], list[Notice]]:
    """KD733 for a side whose data has changed, KD734 where that can't be allowed; a notice where it was."""
    if not run.data:
        return [], []
    if not state.get("data"):
        message = "the checkpoint has no digest of its data: whether that has changed since can't be told"
        return [], [Notice(message=message, level="warning")]
    errors, notices = [], []
    for other in differences(state["data"], run.data, RunFolder(root_of(path)), keys):
        key = f"data.{other.side}"
        keeping = _keep_rows(run.spec) if other.side == "train" and len(set(other.samples)) > 1 else []
        if keeping:
            code, many = "KD734", len(keeping) > 1
            help = (
                "put the data back, or start over with `--overwrite`; to go on is no choice, since "
                f"{', '.join(keeping)} {'keep' if many else 'keeps'} a row for each of the {other.samples[0]:,} samples"
            )
        elif _among(key, run.options.allow_changed):
            best = "; the next evaluation counts as the best so far" if other.side == "test" else ""
            notices.append(Notice(message=f"{other.message}; it was accepted{best}", level="warning"))
            continue
        else:
            code = "KD733"
            help = (
                f"put the data back, start over with `--overwrite`, or accept it with `--allow-changed {key}`"
            )
        side_path: SpecPath = ("dataset", other.side)
        errors.append(Diagnostic(code=code, message=other.message, help=help, path=side_path, on_key=True))
    return errors, notices


def _keep_rows(spec: Spec) -> list[str]:
    """The jobs whose losses keep one row per training sample."""
    return [name for name, job in jobs_of(spec).items() if "num_samples" in requirements_of(job).facts]


def _check_teachers(run: Run, state: dict[str, Any]) -> list[Notice]:
    """KD716 where a teacher has other weights; a warning where that was accepted."""
    notices = []
    for name, digest in run.teacher_hashes.items():
        if state["teachers"].get(name) == digest:
            continue
        notices.append(Notice(message=f"changed from here on: the weights of {name}", level="warning"))
        if f"teachers.{name}" not in run.options.allow_changed:
            raise RunError.of(
                "KD716",
                f"the checkpoint was made with other weights of {name}",
                f"put them back, or accept it with `--allow-changed teachers.{name}`",
            )
    return notices


def _among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def differing_keys(before: str, now: str) -> list[str]:
    """Dotted keys at which two resolved specs differ."""
    try:
        old, new = dict(leaves(yaml.safe_load(before))), dict(leaves(yaml.safe_load(now)))
    except yaml.YAMLError as error:
        raise ValueError("its spec is no YAML") from error
    absent = object()
    return sorted(key for key in old.keys() | new.keys() if old.get(key, absent) != new.get(key, absent))


@dataclass(frozen=True, slots=True)
class Difference:
    """A side whose data has changed. message: in words; samples: how many there were, and are."""

    side: str
    message: str
    samples: tuple[int, int]


def differences(
    kept: Mapping[str, Any], digests: Mapping[str, Digest], folder: RunFolder, keys: Sequence[str]
) -> list[Difference]:
    """The sides whose data has changed. kept: the checkpoint's digests; folder: of the run that wrote it.

    keys: those of the spec that differ, apart from ones that decide nothing; pixels are compared where they are
    made as before.
    """
    result = []
    for side, digest in digests.items():
        before = kept[side]
        if before["listing"] != digest.listing:
            changed = _of_lists(side, before["listing"], digest, folder)
        elif pixels_made_alike(side, keys):
            changed = _of_pixels(before["probe"], digest)
        else:
            continue
        if changed:
            samples = (int(before["samples"]), digest.samples)
            result.append(Difference(side, f"{WHAT[side]}: {', '.join(changed)}", samples))
    return result


def pixels_made_alike(side: str, keys: Sequence[str]) -> bool:
    """Whether no differing key changes how an image of this side becomes pixels."""
    return not any(
        key in ("runtime.random_seed", "runtime.aligned")
        or (key.startswith(f"dataset.{side}.") and not _names_a_place(key))
        for key in keys
    )


def _names_a_place(key: str) -> bool:
    return [part for part in key.split(".") if not part.isdigit()][-1] in PLACES


def _of_lists(side: str, listing: str, digest: Digest, folder: RunFolder) -> list[str]:
    path = folder.samples(side, listing)
    before, now = _read_listing(path, listing), unpacked(digest.packed)
    assert now is not None
    if before is None:
        return [f"its list of samples differs (the one before, {path}, is missing or damaged)"]
    new = listing_from(now)
    return in_words(changes(before, new), before, new) or ["its list of samples differs"]


def _read_listing(path: Path, listing: str) -> Listing | None:
    """The old list of samples; None where its file is missing or is another one."""
    try:
        text = unpacked(path.read_bytes())
        same = text is not None and hashlib.sha256(text).hexdigest() == listing
        return listing_from(text) if text is not None and same else None
    except (OSError, ValueError):
        return None


def _of_pixels(kept: Any, digest: Digest) -> list[str]:
    places = other_pixels(kept, digest.probe)
    if places is None:
        return ["the images that were looked at have another size after the transforms, or can't be read"]
    if not places:
        return []
    assert digest.probe is not None
    text = unpacked(digest.packed)
    assert text is not None
    names, ids = listing_from(text).names, probed_ids(digest.samples)
    looked = f"{len(places)} of the {len(digest.probe)} images looked at"
    phrase = f"{looked} {'have' if len(places) > 1 else 'has'} other pixels"
    # A test sample that can't be read is left out of the probe: which is which is not known then.
    return [
        f"{phrase} ({names_in_words([names[ids[p]] for p in places])})"
        if len(ids) == len(digest.probe)
        else phrase
    ]
