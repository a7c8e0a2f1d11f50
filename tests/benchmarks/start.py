"""From the start of the process to the first step, over importing torch and torchvision.

python -m tests.benchmarks.start [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.measure import Row

ROOT = Path(__file__).parent.parent.parent
SPEC = "sample_configs/digits_kd.yaml"


def seconds(command: list[str], compiled: str) -> float:
    """How long a command of this Python takes; compiled: a folder for what Python compiles at its first run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPYCACHEPREFIX"] = compiled
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command],
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def rows(rounds: int) -> list[Row]:
    """The median of what the first step takes more than the two imports, taken in turns."""
    from tests.benchmarks.measure import Row

    more, firsts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            imports = seconds(["-c", "import torch, torchvision"], f"{folder}/compiled")
            first = seconds(["-m", "tests.benchmarks.start", "first", f"{folder}/run"], f"{folder}/compiled")
            if number:
                more.append(first - imports)
                firsts.append(first)
    total, over = statistics.median(firsts), statistics.median(more)
    what = "digits sample, process start to first step: seconds over the imports"
    return [Row(what, f"{total:.2f} s in all", over, 1.0, least=False)]


def first_step(folder: str) -> None:
    """`kdcli train` as it is, ended at its first step."""
    from kdcli import cli
    from kdcli.records import Record, Step
    from kdcli.report.live.recorder import Recorder

    def take(_self: Recorder, record: Record) -> None:
        if isinstance(record, Step):
            os._exit(0)

    Recorder.take = take  # type: ignore[assignment]
    sys.argv = ["kdcli", "train", SPEC, f"saver.save_dir={folder}", "trainer.log_freq=1", "--overwrite"]
    cli.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["first"]:
        first_step(sys.argv[2])
    else:
        # Not above: it imports torch, which the measured process must do by itself.
        from tests.benchmarks.measure import machine, table

        print(machine())
        print(table("Start", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
