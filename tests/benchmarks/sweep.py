"""`kdcli sweep` on two pairs, beside the spec as written; what trials cost beside training alone.

    python -m tests.benchmarks.sweep cost|fashion|stamps [--trials 12] [--folder runs/sweep]
                                     [--data runs/proof/stamps] [--teacher-precision bf16]

`fashion`, `stamps`: the default space, 12 trials, 3 seeds each of the best and of the spec as written; the spec of the
stamps is the row `kd` of `proof`, whose data and teacher it takes from `--data`, with 563 steps. `cost`: the CPU time
of N trials on the Fashion-MNIST pair without halving, over N times that of the student alone on the same data with the
same steps.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import yaml

from tests.benchmarks.proof_pairs import SAMPLES, Stamps

STEPS = 563
"""Of a trial on the stamps: 22 epochs."""


def run(*words: str) -> float:
    """Run a command of kdcli; the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kdcli.cli", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cost(folder: Path, trials: int) -> float:
    """The CPU time of all trials over as many trainings of the student alone."""
    own = ("dataset.hold_out=0.1", "trainer.test_freq=100", "trainer.save_freq=100")
    alone = run(
        "train",
        str(SAMPLES / "fashion_student.yaml"),
        *own,
        f"saver.save_dir={folder / 'alone'}",
        "--no-report",
        "--no-check",
        "--overwrite",
    )
    spec = str(SAMPLES / "fashion_kd.yaml")
    words = ("--seeds", "0", "--no-halving", "--dir", str(folder / "cost"), "--quiet")
    return run("sweep", spec, *own, "--trials", str(trials), *words) / (trials * alone)


def stamps_spec(folder: Path, data: Path, teacher_precision: str | None) -> Path:
    """The file of the spec that is swept: evaluated four times, as halving needs it."""
    pair = Stamps(data, teacher_precision)
    spec = pair.spec("kd", "train", weight=1.0, seed=1, steps=STEPS, on="test")
    spec["trainer"]["test_freq"] = 5
    file = folder / "stamps.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    return file


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cost", "fashion", "stamps"])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--data", type=Path, default=Path("runs/proof/stamps"), help="folder of `proof`")
    parser.add_argument("--teacher-precision", choices=["bf16"], help="of the stamps' teacher, else float32")
    given = parser.parse_args()
    folder, trials = given.folder.absolute(), given.trials
    if given.what == "cost":
        ratio = cost(folder, trials)
        print(f"{trials} trials over {trials} times the student alone, CPU time: {ratio:.3f}")
        return
    file = SAMPLES / "fashion_kd.yaml"
    if given.what == "stamps":
        file = stamps_spec(folder, given.data.absolute(), given.teacher_precision)
    run("sweep", str(file), "--trials", str(trials), "--seeds", "3", "--dir", str(folder / given.what))


if __name__ == "__main__":
    main()
