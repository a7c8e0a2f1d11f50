"""A command of a peer's own environment: what it takes, and which versions lie there; nothing of it is imported."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a command took. peak_mb: of the largest of its processes; cpu_seconds: of all of them."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Used:
    """Run it, its output added to `log`; environment: beside ours. Raises CalledProcessError where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), f"see {log}")
    return Used(
        seconds=time.perf_counter() - begun,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
    )


def versions(environment: Path, *names: str) -> dict[str, str]:
    """Of packages that are installed in an environment."""
    (site,) = (environment / "lib").glob("python*/site-packages")
    found = {
        one.name.lower().replace("_", "-"): one.version for one in metadata.distributions(path=[str(site)])
    }
    return {name: found[name] for name in names}
