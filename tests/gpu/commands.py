"""Checks of the command line on a GPU, and of two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.gpu.lines import Lines, Machine, Skipped, images_spec, text_of

ROOT = Path(__file__).parents[2]

SLURM_TASK = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_GPUS_PER_TASK": "1",
    "RANK": "0",
    "WORLD_SIZE": "1",
}
"""The last of four tasks that `srun --gpus-per-task=1` starts, each of which sees one GPU. RANK and WORLD_SIZE
let it train by itself."""

FIRST_LOSS, LOSSES = 2e-4, 1e-2
"""How far a loss of two processes may be from that of one, in parts of it: that of the first step, any of six. On the
CPU six are off by 3e-7; by 3e-2 where gradients are summed in place of averaged, by 1e-2 and more, the first too, where
a half of the batch stands for both."""


def kdcli(*words: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit status and output of a command in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "kdcli.cli", *words],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _line(
    lines: Lines, words: tuple[str, ...], expected: int, folder: Path, code: str = "", **environment: str
) -> None:
    status, output = kdcli(*words, folder=folder, **environment)
    ok = status == expected and "Traceback" not in output and code in output
    shown = " ".join(f"{key}={value}" for key, value in environment.items())
    name = " ".join(part for part in (shown, "kdcli", *words) if part)
    lines.add(name[:60], f"exit {status}", f"exit {expected} {code}".strip(), ok)
    if not ok:
        print(output[-1500:], flush=True)


def commands(machine: Machine, lines: Lines) -> None:
    """validate, train, eval and report end to end; which GPUs a run takes."""
    folder = machine.new_folder()
    folder.mkdir()
    spec = images_spec(machine, batch=machine.size(64, 8), steps=4)
    spec["saver"]["save_dir"] = "run"
    (folder / "a.yaml").write_text(text_of(spec))
    device = ("--device", machine.device.type)
    _line(lines, ("validate", "a.yaml"), 0, folder)
    _line(lines, ("train", "a.yaml", *device), 0, folder)
    _line(lines, ("eval", "a.yaml", *device), 0, folder)
    _line(lines, ("report", "run"), 0, folder)
    own = {} if not machine.cuda else {"CUDA_VISIBLE_DEVICES": "0"}
    _line(lines, ("train", "a.yaml", "--overwrite", *device), 0, folder, **own, **SLURM_TASK)
    if not machine.cuda:
        lines.skip("--gpus needs CUDA")
        return
    count = torch.cuda.device_count()
    _line(lines, ("train", "a.yaml", "--overwrite", "--gpus", "0,"), 0, folder)
    _line(lines, ("train", "a.yaml", "--overwrite", "--gpus", f"{count},"), 1, folder, "KD")
    _line(lines, ("train", "a.yaml", "--overwrite", "--gpus", f"{count + 1}"), 1, folder, "KD")
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    _line(lines, ("train", "a.yaml", "--overwrite", "--gpus", "1"), 0, folder, CUDA_VISIBLE_DEVICES=uuid)


def losses(folder: Path, run: str) -> list[float]:
    """The total loss of each step, as a run has recorded it."""
    rows = [json.loads(row) for row in (folder / run / "metrics.jsonl").read_text().splitlines()]
    return [row["total"] for row in rows if row.get("kind") == "step"]


def synchronised(machine: Machine) -> list[dict[str, Any]]:
    """A student whose BatchNorms take their statistics over all processes."""
    backbone = {
        "out_layers": [2],
        "out_strides": [8],
        "width": machine.size(16, 8),
        "normalize": {"type": "sync_bn"},
    }
    return [
        {"name": "backbone", "type": "resnet18", "kwargs": backbone},
        {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 10}},
    ]


def two_cards(machine: Machine, lines: Lines) -> None:
    """Two GPUs train as one with the batch of both; one of two can be chosen. On the CPU two processes."""
    if machine.cuda and torch.cuda.device_count() < 2:
        raise Skipped("needs two GPUs, here is one")
    folder = machine.new_folder()
    folder.mkdir()
    many = ("--gpus", "2") if machine.cuda else ("--device", "cpu", "--nproc", "2")
    alone = ("--gpus", "1") if machine.cuda else ("--device", "cpu")
    batch = machine.size(64, 8)
    sides: dict[str, list[float]] = {}
    for name, size, words in (("one", batch, alone), ("two", batch // 2, many)):
        spec: dict[str, Any] = images_spec(machine, batch=batch, steps=6)
        spec["dataset"]["batch_sampler"]["kwargs"]["batch_size"] = size
        # The same batches on both: no draw that differs by process, and statistics over all.
        spec["dataset"]["train"]["dataset"]["kwargs"]["transformer"] = [{"type": "to_tensor"}]
        spec["net"] = synchronised(machine)
        # Nor a difference of rounding by what cuDNN finds fastest for each batch size.
        spec["runtime"] |= {"precision": "fp32", "tf32": False, "cudnn_benchmark": False}
        spec["trainer"] |= {
            "log_freq": 1,
            "lr_scheduler": {
                "type": "CosineAnnealingLR",
                "warmup_register_type": "no_scale_lr",
                "kwargs": {"T_max": 1},
            },
        }
        spec["saver"]["save_dir"] = name
        (folder / f"{name}.yaml").write_text(text_of(spec))
        _line(lines, ("train", f"{name}.yaml", *words), 0, folder)
        sides[name] = losses(folder, name)
    off = [abs(one - two) / one for one, two in zip(sides["one"], sides["two"], strict=True)]
    lines.add("steps told", len(off), "6", len(off) == 6)
    lines.most("first loss of two to one", off[0], FIRST_LOSS)
    lines.most("loss of two to one, worst of all", max(off), LOSSES)
    if machine.cuda:
        _line(lines, ("train", "one.yaml", "--overwrite", "--gpus", "1,"), 0, folder)
