"""`kdcli sweep` on the Fashion-MNIST pair, beside the spec as written; what trials cost beside training alone.

    python -m tests.benchmarks.sweep [DIR]

The sweep: the default space, 12 trials, 3 seeds each of the best and of the spec as written. The cost: the CPU time of
N trials without halving, over N times that of the student alone on the same data with the same steps.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "sample_configs"
TRIALS = 6


def run(*words: str) -> float:
    """Run a command of kdcli; the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kdcli.cli", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cost(folder: Path) -> float:
    """The CPU time of all trials over as many trainings of the student alone."""
    own = ("dataset.hold_out=0.1", "trainer.test_freq=100", "trainer.save_freq=100")
    alone = run(
        "train",
        str(SAMPLES / "fashion_student.yaml"),
        *own,
        f"saver.save_dir={folder / 'alone'}",
        "--no-report",
        "--no-check",
    )
    spec = str(SAMPLES / "fashion_kd.yaml")
    words = ("--seeds", "0", "--no-halving", "--dir", str(folder / "cost"), "--quiet")
    trials = run("sweep", spec, *own, "--trials", str(TRIALS), *words)
    return trials / (TRIALS * alone)


def main() -> None:
    """Print both."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    print(f"{TRIALS} trials over {TRIALS} times the student alone, CPU time: {cost(folder):.3f}")
    run(
        "sweep",
        str(SAMPLES / "fashion_kd.yaml"),
        "--trials",
        "12",
        "--seeds",
        "3",
        "--dir",
        str(folder / "fashion"),
    )


if __name__ == "__main__":
    main()
