"""The proof of `validate --files`, made by `train` before it starts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdcli import __version__
from kdcli.check.check import CheckOptions, check
from kdcli.errors import Diagnostic, KdError, SpecError
from kdcli.parallel.distributed import Processes
from kdcli.spec.parse import ParsedSpec
from kdcli.training.build import run_root
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import PROVED
from kdcli.training.sides import Sides

LAUNCHER_PROVED = "KDCLI_PROVED"
"""Set for workers: their launcher has proved the spec."""


def proved(
    parsed: ParsedSpec,
    options: RunOptions,
    sides: Sides,
    processes: Processes,
    started: int | None = None,
    *,
    count: bool = False,
) -> tuple[RunOptions, list[Diagnostic]]:
    """Prove a run before it starts; returns its options with the proof, and notices.

    Rank 0 looks and tells the others: lists and labels are read, 64 images of each side decoded, and the run is
    rehearsed as `validate` does it. Raises SpecError with every finding where one is an error. Nothing is done
    where a launcher has, the user says `--no-check`, or a run goes on that was proved: the same spec, data and
    version. started: how many processes a launcher is about to start. count: count the networks' FLOPs too.
    """
    if not options.prove:
        return options, []
    findings: tuple[Diagnostic, ...] = ()
    done = bool(os.environ.get(LAUNCHER_PROVED)) or _was_proved(parsed, options, sides)
    if processes.speaks and not done:
        look = CheckOptions(
            plugins=options.plugins,
            places=options.places,
            look="start",
            on_cuda=processes.device.type == "cuda",
            plan=False,
            count=count,
            shown=options.shown,
            processes=started or processes.world_size,
        )
        try:
            checked = check(parsed, look, sides)
            findings = checked.findings
            options = replace(options, flops=checked.flops, flops_size=checked.flops_size)
        except KdError as error:  # the others wait for what is found
            findings = error.diagnostics
    findings = processes.broadcast(findings)
    if any(finding.severity == "error" for finding in findings):
        raise SpecError(findings)
    return replace(options, proof=proof_of(parsed, sides)), list(findings)


def proof_of(parsed: ParsedSpec, sides: Sides) -> dict[str, Any]:
    """What a run folder records of a proof: everything that it depends on."""
    return {
        "spec": parsed.hash(),
        "kdcli": __version__,
        "torch": torch.__version__,
        "samples": {side: len(sides.source(side == "train")) for side in ("train", "test")},
        "classes": {side: _names(sides, side == "train") for side in ("train", "test")},
    }


def _names(sides: Sides, train: bool) -> list[str] | None:
    names = sides.opened(train).facts.class_names
    return None if names is None else list(names)


def _was_proved(parsed: ParsedSpec, options: RunOptions, sides: Sides) -> bool:
    """Whether a resumed run has been proved before."""
    if not (options.resume or parsed.spec.saver.auto_resume):
        return False
    try:
        recorded = json.loads(Path(run_root(parsed), PROVED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(recorded == proof_of(parsed, sides))
