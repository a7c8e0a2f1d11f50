"""What distillation is worth: the student alone, distilled by logits, distilled by features, over seeds.

    python -m tests.benchmarks.worth [--pair demo|digits|fashion] [--seeds 5] [--jobs 2] [--folder runs/worth]

Every run is `kdcli train sample_configs/<pair>_<what>.yaml runtime.random_seed=<seed>`, one thread each;
the demo is distilled by `demo.yaml`.
Runs that are finished already are not run again. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SAMPLES = Path(__file__).parent.parent.parent / "sample_configs"
WHAT = {"student": "student alone", "kd": "distilled by logits", "feature": "distilled by features"}


def sample(pair: str, what: str) -> Path:
    """The sample that trains the student of a pair so."""
    return SAMPLES / ("demo.yaml" if (pair, what) == ("demo", "kd") else f"{pair}_{what}.yaml")


def ways(pair: str) -> list[str]:
    """What there is a sample for."""
    return [what for what in WHAT if sample(pair, what).exists()]


def train(pair: str, what: str, seed: int, folder: Path) -> None:
    """One run, unless it lies there finished."""
    out = folder / f"{pair}_{what}_{seed}"
    if (out / "finished.json").exists():
        return
    command = [sys.executable, "-m", "kdcli.cli", "train", str(sample(pair, what))]
    command += [f"runtime.random_seed={seed}", f"saver.save_dir={out}", "--overwrite"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def rows(pair: str, seeds: int, folder: Path) -> list[str]:
    """The table's rows of one pair; the teacher's figure comes from the distilled runs."""
    lines = []
    for what in ways(pair):
        name = WHAT[what]
        found = [
            json.loads((folder / f"{pair}_{what}_{s}" / "finished.json").read_text())
            for s in range(1, seeds + 1)
        ]
        last = [run["last"]["top1"] for run in found]
        best = [run["best"]["top1"] for run in found]
        lines.append(f"| {pair} | {name} | {spread(last)} | {spread(best)} |")
        teacher = found[0]["teachers"].get("teacher0")
    if teacher is not None:
        lines.append(f"| {pair} | its teacher | {teacher['top1']:.2f} | |")
    return lines


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", choices=["demo", "digits", "fashion"], action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/worth"))
    given = parser.parse_args()
    pairs = given.pair or ["demo", "digits", "fashion"]
    wanted = [(p, w, s) for p in pairs for s in range(1, given.seeds + 1) for w in ways(p)]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda one: train(*one, given.folder.absolute()), wanted))
    print("| data | student | last top-1 | best top-1 |\n| --- | --- | --- | --- |")
    for pair in pairs:
        print("\n".join(rows(pair, given.seeds, given.folder)))


if __name__ == "__main__":
    main()
