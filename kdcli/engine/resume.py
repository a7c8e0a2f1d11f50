"""Continuing a run where its newest valid checkpoint was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdcli.engine.checkpoint import load_checkpoint, newest_valid
from kdcli.engine.records import Notice
from kdcli.engine.run import Run
from kdcli.errors import RunError

MAY_DIFFER = (
    "saver",
    "hooks",
    "runtime.threads",
    "trainer.log_freq",
    "trainer.keep_checkpoints",
    "trainer.save_freq",
    "trainer.save_every_minutes",
    "trainer.only_save_latest",
    "trainer.test_freq",
    "trainer.loggers",
)
"""Keys that decide nothing about the next step."""


def resume(run: Run) -> tuple[dict[str, Any] | None, list[Notice]]:
    """The state to continue from, if any, and what the user should know; every process reads the same file.

    Raises RunError KD715 where the checkpoint belongs to another spec, KD716 to another teacher, KD717
    to another number of processes.
    """
    wanted = run.options.resume or run.spec.saver.auto_resume
    if not wanted:
        return None, []
    state, notices = _read(run)
    if state is None:
        return None, notices
    _check(run, state)
    step = state["progress"]["step"]
    return state, [*notices, Notice(message=f"continuing at step {step}")]


def _read(run: Run) -> tuple[dict[str, Any] | None, list[Notice]]:
    if isinstance(run.options.resume, Path):
        path = run.options.resume
        if path.is_file():
            return load_checkpoint(path), []
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    else:
        folder = run.folder.checkpoints
    notices = []
    for path, found in newest_valid(folder):
        if isinstance(found, dict):
            return found, notices
        notices.append(Notice(message=f"{found}; trying the one before", level="warning"))
    if run.options.resume and not run.spec.saver.auto_resume:
        raise RunError.of("KD718", f"there is no valid checkpoint in {folder}", "start without `--resume`")
    return None, notices


def _check(run: Run, state: dict[str, Any]) -> None:
    allowed = (*MAY_DIFFER, *run.options.allow_changed)
    differing = [
        key
        for key in differing_keys(state["spec"], run.parsed.resolved_yaml())
        if not any(key == name or key.startswith(name + ".") for name in allowed)
    ]
    if differing:
        raise RunError.of(
            "KD715",
            f"the checkpoint was made by another spec; these keys differ: {', '.join(differing)}",
            "put them back, start over with `--overwrite`, or accept each with `--allow-changed KEY`",
        )
    for name, digest in run.teacher_hashes.items():
        if state["teachers"].get(name) != digest and f"teachers.{name}" not in run.options.allow_changed:
            raise RunError.of(
                "KD716",
                f"the checkpoint was made with other weights of {name}",
                f"put them back, or accept it with `--allow-changed teachers.{name}`",
            )
    if state["world_size"] != run.processes.world_size and "world_size" not in run.options.allow_changed:
        raise RunError.of(
            "KD717",
            f"the checkpoint was made by {state['world_size']} process(es), this run has {run.processes.world_size}",
            f"use {state['world_size']}, or accept it with `--allow-changed world_size`",
        )


def differing_keys(before: str, now: str) -> list[str]:
    """The dotted keys at which two resolved specs differ."""
    old, new = _flat(yaml.safe_load(before)), _flat(yaml.safe_load(now))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}{name}.").items()}
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): value}
