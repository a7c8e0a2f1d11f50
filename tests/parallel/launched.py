"""`kdcli train` by the real command line, on two processes, with a student that can make trouble once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.training.processes import SECONDS
from tests.training.runs import SPEC

STUDENT = '''
"""A student that, once a checkpoint is there, does what the file `order` says: `<rank> <trouble>`."""

import ctypes
import os
import signal
import time
from pathlib import Path

from torch import nn

from kdcli.errors import RunError


class Student(nn.Sequential):
    def __init__(self, *, num_classes: int = 10, width: int = 4):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
        self.seen = 0

    def forward(self, x):
        if self.training and list(Path("out/checkpoints").glob("step_*.pt")):
            self.seen += 1
            if self.seen == 2 and Path("order").exists():
                rank, trouble = Path("order").read_text().split()
                if rank == os.environ.get("RANK", os.environ.get("SLURM_PROCID")):
                    make(trouble)
        return super().forward(x)


def make(trouble):
    Path("order").unlink()
    if trouble == "error":
        raise RunError.of("KD730", "the student is out of sorts", "let it rest")
    if trouble == "sleep":
        Path("asleep").touch()
        time.sleep(60)
    elif trouble == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble in ("hang", "clutch", "freeze"):
        # In C, without or with the lock of the interpreter, or stopped by the system.
        Path("stuck").touch()
        if trouble == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        (ctypes.CDLL if trouble == "hang" else ctypes.PyDLL)(None).sleep(100)
    else:
        os.killpg(os.getpgid(int(os.environ["KDCLI_LAUNCHER"])), getattr(signal, trouble))
'''

TEXT = (
    SPEC.replace("type: cifar_resnet8", "type: own_student:Student", 1)
    .replace("widths: [2, 2, 4, 4]", "width: 3", 1)
    .replace(", in_channels: 1, width: 3", ", width: 3")
    .replace("max_epoch: 2", "max_epoch: 4")
    .replace("T_max: 2", "T_max: 4")
    + "\n  save_freq: 1\nsaver: {save_dir: out}\n"
)
"""Twelve steps on two processes, saved after every third."""

TRAIN = ("train", "small.yaml", "--plugin", "own_student", "--no-report", "--device", "cpu")
TWO = ("--nproc", "2")


@dataclass
class Command:
    """A command that runs in a folder; its screen is a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def code(self, seconds: float = SECONDS) -> int:
        """The exit code, once it is over."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it hangs; so far:\n{self.screen()}") from None

    def screen(self) -> str:
        """What it has printed."""
        return self.log.read_text()


def prepare(folder: Path, order: str | None = None) -> Path:
    """A folder with a spec, the student's code, and what it is to do."""
    folder.mkdir()
    (folder / "own_student.py").write_text(STUDENT)
    (folder / "small.yaml").write_text(TEXT)
    if order is not None:
        (folder / "order").write_text(order)
    return folder


def command(
    folder: Path, *words: str, python: tuple[str, ...] = ("-m", "kdcli.cli"), **places: Any
) -> Command:
    """Start `python -m kdcli.cli <words>` there; places: variables of its environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KDCLI", "SLURM", "TORCHELASTIC"))
    }
    environment |= {"NO_COLOR": "1", "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in places.items()}}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    log = folder / f"screen_{time.monotonic_ns()}.txt"
    with log.open("wb") as screen:
        process = subprocess.Popen(
            [sys.executable, *python, *words],
            cwd=folder,
            env=environment,
            stdout=screen,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Command(process, log)


def wait_for(path: Path) -> None:
    """Until a file is there."""
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} does not come"
        time.sleep(0.05)
