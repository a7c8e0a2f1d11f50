"""Everything that a GPU has to prove of kdcli, in under 8 minutes on one card, from a checkout's root.

    python -m tests.gpu [NAME ...] [--on cuda|cpu] [--minutes 8] [--list]

One line a check: `ok` or `FAIL`, what is measured, its value, its limit, the seconds since the line before. Lines that
begin with `--` tell what was skipped, and why. No data and no network are needed, and of packages the extra `dev`.
The check for two cards (`two_cards`) is made where there are two. NAME: these checks alone.

--on cpu runs the same code on the CPU, in tiny sizes and without what CUDA alone can measure: it proves the checks
themselves. --minutes: no check is begun after them, and what was not is named.

Exit status: 0 where every line is ok, 1 where one fails or a check was not begun in time, 2 for an unknown NAME, 4
where there is no CUDA.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.gpu import commands, costs, results
from tests.gpu.lines import Lines, Machine, Skipped

CHECKS = {
    check.__name__: check
    for check in (
        *(results.folding, results.resumed, results.waits, results.detector_waits, results.methods),
        *(costs.guard, costs.modes, costs.speed),
        *(commands.commands, commands.two_cards),
    )
}
"""By name, in the order in which they are run."""

NO_CUDA = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these checks alone")
    parser.add_argument("--on", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--list", action="store_true", help="name the checks")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in CHECKS]
    if unknown:
        print(f"no check is called {', '.join(unknown)}: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    if given.list:
        for name, check in CHECKS.items():
            print(f"{name:16s} {(check.__doc__ or '').splitlines()[0]}")
        return 0
    if given.on == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA here: nothing is proved (`--on cpu` runs the checks' own code)")
        return NO_CUDA
    return _run([name for name in CHECKS if not given.names or name in given.names], given.on, given.minutes)


def _run(names: Sequence[str], on: str, minutes: float) -> int:
    began, late = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="kdcli_gpu_") as folder:
        machine = Machine(torch.device("cuda", 0) if on == "cuda" else torch.device("cpu"), Path(folder))
        print(machine, flush=True)
        lines = Lines()
        for name in names:
            if time.monotonic() - began > 60 * minutes:
                late.append(name)
                continue
            lines.check = name
            try:
                CHECKS[name](machine, lines)
            except Skipped as reason:
                lines.skip(str(reason))
            except Exception as error:
                traceback.print_exc()
                lines.add(
                    "runs to its end", f"{type(error).__name__}: {str(error)[:160]}", "no exception", False
                )
            machine.empty()
    for name in late:
        print(f"--   {name}: not begun, the {minutes:g} minutes were over", flush=True)
    failed = sum(not ok for ok in lines.oks)
    seconds = time.monotonic() - began
    print(f"{len(lines.oks) - failed} of {len(lines.oks)} ok, {failed} failed, {seconds:.0f} s")
    return int(bool(failed or late))


if __name__ == "__main__":
    raise SystemExit(main())
