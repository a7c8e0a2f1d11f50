"""Every method on one small pair of Fashion-MNIST, with equally many steps, over seeds: a markdown table.

    python -m tests.benchmarks.methods [--steps 300] [--seeds 3] [--methods dkd at ...] [--limit 9600]
                                       [--test-limit 4000] [--jobs 2] [--folder runs/methods]
                                       [--teacher sample_configs/weights/fashion_teacher.safetensors]

Networks and recipe are those of sample_configs/fashion_kd.yaml, the losses' kwargs the authors' defaults but
for KWARGS. Runs that lie finished in the folder are not run again; the table goes to <folder>/table.md. A
batch is 64 images.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.distill.methods import METHODS, mimic_of

SAMPLES = Path(__file__).parent.parent.parent / "sample_configs"
ALONE, KD = "student alone", "kd_loss"
BATCH = 64

KWARGS: dict[str, dict[str, Any]] = {
    "kd_loss": {"T": 4},
    "gkd_loss": {"T": 4},
    "ce_loss": {"T": 4},
    "dkd": {"warmup_epochs": 0},
    "review": {"warmup_epochs": 0},
    "rld": {"warmup_epochs": 0},
}
"""What is not the authors' default: T 4 where ours is 1; no warm-up over more epochs than there are."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd_loss, standardised (LSKD)": ("kd_loss", {"standardize": True}),
    "kd_loss, learned T (CTKD)": ("kd_loss", {"temperature": {"learned": True, "cosine_epochs": 3}}),
}
"""Options of a job, as rows of their own: (loss, keys of the job)."""

MUTUAL = "mutual learning (DML)"
"""Two students, each the other's teacher; no teacher beside."""

VARIANT_KWARGS = {"kd_loss, standardised (LSKD)": {"T": 2, "loss_weight": 9}, "kd_loss, learned T (CTKD)": {}}

LEFT_OUT = {"ft_paraphrase", "fgd"}
"""The first stage of `ft` (a third of the steps, beside the student's own), and what is for detectors."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every run gets."""

    steps: int
    limit: int
    test_limit: int
    teacher: Path

    @property
    def key(self) -> list[int]:
        """What a run that lies there must have had, so as not to be run again."""
        return [self.steps, self.limit, self.test_limit]

    def text(self, seeds: int) -> str:
        """For the table's head."""
        return (
            f"{self.steps} steps of {BATCH} images, from the first {self.limit} training images; "
            f"measured after each pass on the first {self.test_limit} test images; {seeds} seeds: mean ± std."
        )


def folder_of(root: Path, row: str, seed: int) -> Path:
    """Where one run lies."""
    name = "".join(c if c.isalnum() else "_" for c in row).strip("_")
    return root / f"{name}_{seed}"


def spec_of(row: str, seed: int, root: Path, budget: Budget) -> dict[str, Any]:
    """The whole spec of one run."""
    spec: dict[str, Any] = yaml.safe_load((SAMPLES / "fashion_kd.yaml").read_text())
    spec["runtime"]["random_seed"] = seed
    spec["saver"] = {"save_dir": str(folder_of(root, row, seed))}
    spec["dataset"]["train"]["dataset"]["kwargs"]["limit"] = budget.limit
    spec["dataset"]["test"]["dataset"]["kwargs"]["limit"] = budget.test_limit
    spec["dataset"]["batch_sampler"]["kwargs"]["batch_size"] = BATCH
    trainer = spec["trainer"]
    trainer.pop("max_epoch", None)
    trainer |= {"max_iter": budget.steps, "log_freq": 50, "save_freq": 10**6, "test_freq": 1}
    epochs = budget.steps / (budget.limit // BATCH)
    trainer["lr_scheduler"]["kwargs"]["T_max"] = epochs
    spec.pop("mimic")
    if row == ALONE:
        spec["runtime"]["runner"]["type"] = "base"
        spec.pop("teacher0")
        return spec
    if row == MUTUAL:
        spec.pop("teacher0")
        peer = {"network": spec["net"]["type"], "kwargs": spec["net"]["kwargs"]}
        spec["net"] = [spec["net"], {"name": "peer", "type": "peer", "kwargs": peer}]
        spec["mimic"] = {"mimic_ins_type": "Mutual", "student": {"mimic_name": ["logits", "peer_logits"]}}
        return spec
    weights = {"teacher_weight": str(budget.teacher)}
    if row == "tfkd_self":
        spec["teacher0"] = spec["net"]
        own = folder_of(root, ALONE, seed) / "student.safetensors"
        weights = {"teacher_weight": str(own), "allow_weak_teacher": True}
    if row in VARIANTS:
        loss, keys = VARIANTS[row]
        spec["mimic"] = {**mimic_of(loss, weights, **VARIANT_KWARGS[row]), **keys}
    else:
        spec["mimic"] = mimic_of(row, weights, **KWARGS.get(row, {}))
    if row == "ft":
        spec["mimic"] = _two_stages(mimic_of("ft_paraphrase", weights), spec["mimic"], budget.steps)
        trainer.pop("max_iter")
        trainer["max_epoch"] = 1
    if "teacher0" not in spec["mimic"] and row != "ft":
        spec.pop("teacher0")
    return spec


def _two_stages(first: dict[str, Any], second: dict[str, Any], steps: int) -> dict[str, Any]:
    stages = [
        {"name": "teacher", "max_iter": max(1, steps // 3), "jobs": ["mimic_job0"], "task_loss": False},
        {"name": "student", "max_iter": steps, "jobs": ["mimic_job1"]},
    ]
    return {"stages": stages, "mimic_as_jobs": True, "mimic_job0": first, "mimic_job1": second}


def run_one(row: str, seed: int, root: Path, budget: Budget) -> str:
    """One run on one thread, unless it lies there finished; what happened, in a line."""
    import torch

    from kdcli.errors import KdError
    from kdcli.parallel.distributed import Processes
    from kdcli.records import Finished, Step
    from kdcli.spec.parse import parse
    from kdcli.training.build import built
    from kdcli.training.run import RunOptions
    from kdcli.training.train import train

    out = folder_of(root, row, seed)
    result = out / "result.json"
    if result.exists() and json.loads(result.read_text()).get("budget") == budget.key:
        return f"{row} {seed}: there already"
    torch.set_num_threads(1)
    text = yaml.safe_dump(spec_of(row, seed, root, budget), sort_keys=False)
    steps: list[float] = []
    told: dict[str, Any] = {}
    try:
        parsed = parse(text, f"{out.name}.yaml", base_dir=None)
        with built(parsed, RunOptions(overwrite=True), Processes(device=torch.device("cpu"))) as run:
            for record in train(run):
                if isinstance(record, Step) and record.stage != "teacher":
                    steps.append(record.seconds)
                if isinstance(record, Finished):
                    told = {"last": record.last["top1"], "best": record.best["top1"]}
                    told["teachers"] = {name: found["top1"] for name, found in record.teachers.items()}
    except KdError as error:
        told = {"failed": str(error)}
    told["budget"] = budget.key
    told["step_ms"] = 1000.0 * statistics.median(steps) if steps else None
    out.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(told))
    return f"{row} {seed}: {told.get('last', told.get('failed'))}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def table(rows: list[str], seeds: list[int], root: Path, budget: Budget) -> str:
    """The markdown table, best last top-1 first: what loses to no distillation stands below that row."""
    found = {
        row: [json.loads((folder_of(root, row, s) / "result.json").read_text()) for s in seeds]
        for row in rows
    }
    failed = {
        row: next(r["failed"] for r in runs if "failed" in r)
        for row, runs in found.items()
        if any("failed" in r for r in runs)
    }
    whole = {row: runs for row, runs in found.items() if row not in failed}
    speed = {row: statistics.median(run["step_ms"] for run in runs) for row, runs in whole.items()}
    order = sorted(whole, key=lambda row: -statistics.mean(run["last"] for run in whole[row]))
    teacher = next(
        (
            r["teachers"]["teacher0"]
            for row in whole
            if row not in (ALONE, "tfkd_self")
            for r in whole[row]
            if r["teachers"]
        ),
        None,
    )
    lines = [budget.text(len(seeds)), ""]
    if teacher is not None:
        lines += [f"The teacher's top-1 is {teacher:.2f}.", ""]
    lines += ["| method | last top-1 | best top-1 | time per step ÷ KD's |", "| --- | --- | --- | --- |"]
    for row in order:
        last, best = ([run[key] for run in whole[row]] for key in ("last", "best"))
        time = f"{speed[row] / speed[KD]:.2f}" if KD in speed else f"{speed[row]:.0f} ms"
        name = f"**{row}**" if row == ALONE else row
        lines.append(f"| {name} | {spread(last)} | {spread(best)} | {time} |")
    lines += [f"| {row} | did not finish: {why} | | |" for row, why in failed.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=[], help="losses; all by default")
    parser.add_argument("--limit", type=int, default=9600, help="training images")
    parser.add_argument("--test-limit", type=int, default=4000, help="test images")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--teacher", type=Path, default=SAMPLES / "weights" / "fashion_teacher.safetensors")
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    given = parser.parse_args()
    known = [*(name for name in METHODS if name not in LEFT_OUT), *VARIANTS, MUTUAL]
    if unknown := [name for name in given.methods if name not in known]:
        parser.error(f"no such method: {', '.join(unknown)}")
    rows = [ALONE, *(dict.fromkeys([KD, *given.methods]) if given.methods else known)]
    seeds = list(range(1, given.seeds + 1))
    budget = Budget(
        steps=given.steps, limit=given.limit, test_limit=given.test_limit, teacher=given.teacher.absolute()
    )
    root = given.folder.absolute()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        for group in ([ALONE], rows[1:]):
            futures = [pool.submit(run_one, row, seed, root, budget) for seed in seeds for row in group]
            for future in futures:
                print(future.result(), flush=True)
    text = table(rows, seeds, root, budget)
    (root / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
