"""The stamp pair by torchdistill's `KDLoss`: run by the Python of an environment that has torchdistill and timm.

    python -m tests.benchmarks.peers.torchdistill_kd DATA TEACHER --steps 1125 --seed 1 --weight 2

DATA: the proof's photographs, TEACHER: its student.safetensors; from the root of the repository, without kdcli. Prints
one line of JSON. Data, networks, recipe and length are those of the proof's row `kd`, as in `timm_kd.py`. `config` is
what torchdistill has in YAML: loaders, loss, optimizer, clipping, schedule. The user writes it, the networks and their
weights, the loop over epochs and batches, and the test.
"""

from __future__ import annotations

import importlib
import time
from itertools import chain, repeat
from typing import Any

import torch
from torch.utils.data import RandomSampler

from tests.benchmarks.peers.timm_kd import BATCH, RATE, arguments, networks, print_line, share, sides


def config(student: Any, steps: int, weight: float) -> dict[str, Any]:
    """The training as torchdistill's box takes it: the task's loss, and `weight` times T² the divergence."""
    logits = {
        f"{side}_module_{key}": value
        for side in ("student", "teacher")
        for key, value in (("path", "."), ("io", "output"))
    }
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": BATCH, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {**logits, "temperature": 4.0, "alpha": 1.0, "beta": weight},
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
        "optimizer": {
            "key": "AdamW",
            "kwargs": {"lr": RATE, "weight_decay": 0.05},
            "max_grad_norm": 1.0,
            # The path of a parameter serves as that of a module: no other key leaves decay out by shape.
            "module_wise_configs": [
                {"module": name, "kwargs": {"weight_decay": 0.0 if parameter.ndim == 1 else 0.05}}
                for name, parameter in student.named_parameters()
            ],
        },
        "scheduler": {
            "key": "LambdaLR",
            "kwargs": {"lr_lambda": lambda step: share(step, steps)},
            "scheduling_step": 1,
        },
    }


def main() -> None:
    """Train, measure, print."""
    given = arguments()
    # Of the peer's environment; ours has none of it.
    timm: Any = importlib.import_module("timm")
    torchdistill: Any = importlib.import_module("torchdistill")
    distillation: Any = importlib.import_module("torchdistill.core.distillation")
    torch.manual_seed(given.seed)
    torch.set_num_threads(1)
    train, test = sides(given.data)
    student, teacher = networks(timm, given.teacher)
    teacher.eval()  # the box sets the student's mode, and leaves the teacher's as it is
    box = distillation.get_distillation_box(
        teacher,
        student,
        {"train": train},
        config(student, given.steps, given.weight),
        torch.device("cpu"),
        device_ids=None,
        distributed=False,
        lr_factor=1,
    )
    batches = chain.from_iterable(repeat(box.train_data_loader))
    begun = time.perf_counter(), time.process_time()
    box.pre_epoch_process()
    for _ in range(given.steps):
        images, labels, more = next(batches)
        box.pre_forward_process()
        loss = box.forward_process(images, labels, more)
        box.post_forward_process(loss)
    versions = {"torchdistill": torchdistill.__version__, "timm": timm.__version__}
    print_line(versions, given.steps, begun, {"teacher": teacher, "top1": student}, test)


if __name__ == "__main__":
    main()
