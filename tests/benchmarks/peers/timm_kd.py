"""The stamp pair by timm's own logit distillation: run by the Python of an environment that has timm, not by kdcli's.

    python tests/benchmarks/peers/timm_kd.py DATA TEACHER --steps 1125 --seed 1 --weight 2

DATA: the proof's photographs, TEACHER: its student.safetensors. Prints one line of JSON. Data, networks, recipe and
length are those of the proof's row `kd`; the loop is what timm's pages leave to the user, `timm.task` has the loss.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import resource
import time
from itertools import chain, repeat
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

BATCH, SIZE, RATE = 64, 96, 0.002


def share(step: int, steps: int) -> float:
    """The rate of a step over RATE, as kdcli's spec has it: linear from 0 to RATE at the last step of the warm-up.

    From there on the cosine, as if it had run since step 0.
    """
    warm = max(1, steps // 10)
    if 1 < warm and step < warm:
        return step / (warm - 1)
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def top1(net: Any, data: Any) -> float:
    """In percent."""
    net.eval()
    with torch.inference_mode():
        hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in DataLoader(data, BATCH))
    return 100.0 * hits / len(data)


def sides(data: str) -> tuple[Any, Any]:
    """The photographs to train on, cropped and flipped, and those to test on."""
    pixels = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    crops = [transforms.RandomResizedCrop(SIZE, (0.4, 1.0)), transforms.RandomHorizontalFlip()]
    train = ImageFolder(f"{data}/train", transforms.Compose([*crops, *pixels]))
    return train, ImageFolder(f"{data}/test", transforms.Compose(pixels))


def networks(timm: Any, weights: str) -> tuple[Any, Any]:
    """The student from scratch, and the teacher from kdcli's file, frozen; channels last, as in the row."""
    teacher = timm.create_model("tf_efficientnet_lite0", num_classes=8)
    teacher.load_state_dict({k.removeprefix("model."): v for k, v in load_file(weights).items()})
    student = timm.create_model("mobilenetv3_small_100", num_classes=8)
    teacher.requires_grad_(False)
    return student.to(memory_format=torch.channels_last), teacher.to(memory_format=torch.channels_last)


def print_line(
    versions: dict[str, str], steps: int, begun: tuple[float, float], networks: dict[str, Any], test: Any
) -> None:
    """One line of JSON: what the steps took since `begun` (wall clock, CPU time), then the top-1 of the networks."""
    seconds, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    line = {
        "versions": {**versions, "torch": torch.__version__},
        "images_per_second": steps * BATCH / seconds,
        "images_per_cpu_second": steps * BATCH / cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{name: top1(network, test) for name, network in networks.items()},
    }
    print(json.dumps(line))


def arguments() -> argparse.Namespace:
    """What the command is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("teacher")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weight", type=float, default=2.0)
    return parser.parse_args()


def main() -> None:
    """Train, measure, print."""
    given = arguments()
    # Of the peer's environment; ours may have none.
    timm: Any = importlib.import_module("timm")
    optim: Any = importlib.import_module("timm.optim")
    tasks: Any = importlib.import_module("timm.task")
    torch.manual_seed(given.seed)
    torch.set_num_threads(1)
    train, test = sides(given.data)
    loader = DataLoader(train, BATCH, shuffle=True, drop_last=True)
    student, teacher = networks(timm, given.teacher)
    # timm makes the teacher's pixels from the student's: both are normalised with 0.5 here.
    student.pretrained_cfg["mean"] = student.pretrained_cfg["std"] = (0.5, 0.5, 0.5)
    task = tasks.LogitDistillationTask(
        student_model=student,
        teacher_model=teacher,
        criterion=torch.nn.CrossEntropyLoss(),
        distill_loss_weight=given.weight,
        task_loss_weight=1.0,
        temperature=4.0,
        device=torch.device("cpu"),
        verbose=False,
    )
    optimizer = optim.create_optimizer_v2(student, opt="adamw", lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, given.steps))
    batches = chain.from_iterable(repeat(loader))
    begun = time.perf_counter(), time.process_time()
    student.train()
    for _ in range(given.steps):
        images, labels = next(batches)
        optimizer.zero_grad()
        task(images, labels)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print_line({"timm": timm.__version__}, given.steps, begun, {"teacher": teacher, "top1": student}, test)


if __name__ == "__main__":
    main()
