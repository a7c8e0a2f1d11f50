"""Trainings that a benchmark needs: each is run once, and goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

Spec = dict[str, Any]


def trained(spec: Spec, out: Path, files: Sequence[Path] = (), *, threads: int | None = 1) -> Spec:
    """The results of `kdcli train` of a spec, which goes on where it was interrupted, unless it lies there finished.

    What lies there by another spec, or is older than one of the files that the spec reads, is trained anew. threads:
    of the process; None: as the environment says.
    """
    file = out.parent / f"{out.name}.yaml"
    newest = max((one.stat().st_mtime for one in files if one.exists()), default=0.0)
    same = is_written(spec, file) and file.stat().st_mtime >= newest
    if not (same and (out / "finished.json").exists()):
        out.parent.mkdir(parents=True, exist_ok=True)
        begun = same and any((out / "checkpoints").glob("*.pt"))
        if not same:
            (out / "finished.json").unlink(missing_ok=True)
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
            file.write_text(yaml.safe_dump(spec, sort_keys=False))
        command = [sys.executable, "-m", "kdcli.cli", "train", str(file), "--quiet", "--no-report"]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        with (out.parent / f"{out.name}.log").open("a") as log:
            subprocess.run(
                [*command, "--resume" if begun else "--overwrite"],
                check=True,
                env=environment,
                stdout=log,
                stderr=log,
            )
    finished: Spec = json.loads((out / "finished.json").read_text())
    return finished


def is_written(spec: dict[str, Any], file: Path) -> bool:
    """Whether this very spec lies in the file: what was run by another one is not its result."""
    return file.exists() and bool(yaml.safe_load(file.read_text()) == yaml.safe_load(yaml.safe_dump(spec)))
