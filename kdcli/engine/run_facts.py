"""What a run folder says of its run: the spec, where and on which files it ran, and its data."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from kdcli import __version__
from kdcli.engine.checkpoint import write_whole
from kdcli.engine.folder import DATA, PROVED
from kdcli.engine.records import RUN_FORMAT
from kdcli.engine.run import Run
from kdcli.spec.places import Places
from kdcli.spec.schema import Spec


def write_facts(run: Run) -> None:
    """What was run, on what, and the lists of its samples.

    spec.yaml as given, spec.resolved.yaml with all defaults, env.json, data.json, proved.json if it is proved.
    """
    here = run.processes
    where = environment(str(here.device), here.world_size, run.options.places, run.spec, run.options.plugins)
    data = {
        side: {"samples": facts.num_samples, "classes": facts.class_names}
        for side, facts in (("train", run.facts), ("test", run.test_loader.facts))
    }
    texts = {
        "spec.yaml": run.parsed.text,
        "spec.resolved.yaml": run.parsed.resolved_yaml(),
        "env.json": json.dumps(where, indent=2, ensure_ascii=False) + "\n",
        DATA: json.dumps(data, indent=2, ensure_ascii=False) + "\n",
    }
    if run.options.proof is not None:
        texts[PROVED] = json.dumps(run.options.proof, indent=2, ensure_ascii=False) + "\n"
    for name, text in texts.items():
        write_whole(run.folder.root / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    for side, digest in run.digests.items():
        path = run.folder.samples(side, digest.listing)
        if not path.exists():
            write_whole(path, lambda file, digest=digest: file.write(digest.packed))  # type: ignore[misc]


def environment(
    device: str, processes: int, places: Places, spec: Spec, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Versions, device, threads, and the state of the working directory's git repository if there is one.

    `spec_dir`: the spec's folder. `files`: what was taken for each path of the spec; it wins when the run is
    opened again. `plugins`: the packages that were allowed, which a command that opens the run names where it
    lacks one.
    """
    import torch

    return {
        "kdcli": __version__,
        "run_format": RUN_FORMAT,
        "spec_dir": None if places.folder is None else str(places.folder.resolve()),
        "files": places.record(spec),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor(),
        "processes": processes,
        "plugins": list(plugins),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        commit = subprocess.run(
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    return {"commit": commit, "changed_files": len(changed.splitlines())}
