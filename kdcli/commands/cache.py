"""`kdcli cache`: store what the teachers of a spec show, before any training."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def cache(spec: str, changes: Sequence[str], *, device: str | None, plugins: Sequence[str]) -> None:
    """Fill the caches of a spec and say where they lie."""
    from kdcli.commands.reading import read_checked

    parsed = read_checked(spec, changes, plugins)
    from kdcli.commands import located
    from kdcli.parallel.devices import memory_told
    from kdcli.parallel.distributed import processes
    from kdcli.report.console import write
    from kdcli.training.make_caches import make_caches
    from kdcli.training.run import RunOptions

    options = RunOptions(device=device, plugins=tuple(plugins), places=parsed.places)
    with (
        located(parsed),
        memory_told(parsed.spec),
        processes(device or parsed.spec.runtime.device) as here,
    ):
        for notice in make_caches(parsed, options, here):
            write(notice.message + "\n", sys.stderr)
