"""Specs whose losses must not depend on how many processes share a batch, and their training in a group."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kdcli.losses import LOSSES
from kdcli.parallel.distributed import Processes
from kdcli.parallel.sharding import whole
from kdcli.records import Evaluation, Step
from kdcli.spec.parse import parse
from kdcli.spec.text.overrides import parse_assignment
from kdcli.training.build import built
from kdcli.training.checkpoint import own_buffers
from kdcli.training.run import RunOptions
from kdcli.training.train import train
from tests.training.processes import serve
from tests.training.runs import DATA

NET = """
- name: backbone
  type: resnet_custom
  kwargs:
    block: basic
    layers: [%s, 1, 1, 1]
    width: 4
    stem: cifar
    out_layers: [4]
    out_strides: [8]
    input_channel: 1
    normalize: {type: %s, kwargs: %s}
- {name: head, type: base_cls_head, kwargs: {num_classes: 4}}
"""

SPEC = """
runtime: {runner: {type: kd}, random_seed: 5}
net:
%(net)s
teacher0:
%(teacher)s
mimic:
%(mimic)s
  teacher0: {mimic_name: %(teacher_taps)s, allow_random: true, allow_weak_teacher: true}
  student: {mimic_name: %(student_taps)s}
%(data)s
trainer:
  max_iter: 3
  optimizer: {type: SGD, kwargs: {lr: 0.01, momentum: 0.9}}
  lr_scheduler: {type: MultiStepLR, warmup_register_type: no_scale_lr, kwargs: {milestones: [9]}}
"""


def _of(kind: str) -> frozenset[str]:
    return frozenset(name for name, record in LOSSES.items() if record.kind == kind)


GATHERED = frozenset({*_of("relational"), "dist", "mlkd"}) - {"crd"}
"""Losses that relate the samples of a batch: equal where they gather the rows of all processes."""

NORMALISING = frozenset({"fitnet", "ft", "ofd", "review", "simkd", "srrl", "wkd_f"})
"""Losses with a BatchNorm of their own: equal where the student's are synchronised, since theirs are then too."""

OF_THE_BATCH = frozenset({"pkd", "srd"})
"""No means over samples: z-scores over the batch (PKD), the logarithm of a sum over it (SRD)."""

CHOOSING = frozenset({"wkd_l"})
"""Pairs samples of unlike classes beforehand, those of each process by themselves."""

COMPARED = sorted(LOSSES.keys() - NORMALISING - OF_THE_BATCH - CHOOSING)


def spec_text(loss: str, norm: str = "gn", norm_kwargs: str = "{num_groups: 2}", job: str = "") -> str:
    """A small run with one loss; job: further lines of it, `mimic`'s own included."""
    maps, last, teacher_norm = "[backbone.layer2, backbone.layer3]", "[backbone.layer4]", (norm, norm_kwargs)
    student, teacher = maps, maps
    short = "gn" if norm == "gn" else "bn"
    if loss in _of("logit") or loss in ("tfkd_reg", "wkd_l"):
        student = teacher = "[logits]"
    elif loss == "ofd":
        teacher_norm = ("solo_bn", "{}")
        student, teacher = f"[backbone.layer2.0.{short}2]", "[backbone.layer2.0.bn2]"
    elif loss == "ab":
        student = teacher = f"[backbone.layer2.0.{short}1, backbone.layer3.0.{short}1]"
    elif loss in ("simkd", "srrl", "cat_kd", "uskd") or loss in _of("relational"):
        student = teacher = last
    if loss == "simkd":
        job += "\n  task_loss: false"
    kwargs = "{gather: true}" if loss in GATHERED else "{from_logits: true}" if loss == "bce_loss" else "{}"
    return SPEC % {
        "data": DATA % (32, 21),
        "net": textwrap.indent((NET % (1, norm, norm_kwargs)).strip("\n"), "  "),
        "teacher": textwrap.indent((NET % (2, *teacher_norm)).strip("\n"), "  "),
        "mimic": f"  cfgs: {{loss: {{type: {loss}, kwargs: {kwargs}}}}}{job}",
        "student_taps": student,
        "teacher_taps": teacher,
    }


def trained(text: str, name: str, *changes: str, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """The weights (of the student and the methods), losses and metrics of a run."""
    overrides = [parse_assignment(change, n) for n, change in enumerate((f"saver.save_dir={name}", *changes))]
    parsed = parse(text, "small.yaml", overrides=overrides, base_dir=None)
    here = Processes(device=torch.device("cpu"), rank=rank, world_size=world_size, local_rank=rank)
    with built(parsed, RunOptions(overwrite=True), here) as run:
        records = list(train(run))
        weights = {k: v.clone() for k, v in whole(run.trainee.state_dict()).items()}
        assert not own_buffers(run), "what a method keeps is the same on every process"
    return {
        "weights": weights,
        "losses": [r.losses for r in records if isinstance(r, Step)],
        "metrics": [r.metrics for r in records if isinstance(r, Evaluation)],
        "stages": [r.stage for r in records if isinstance(r, Step)],
    }


def in_a_group(jobs: dict[str, tuple[str, list[str]]], folder: Path, processes: int = 2) -> dict[str, Any]:
    """Train each (spec, changes) by name in one group of processes; what `trained` gives, or the error's text."""
    mp.start_processes(_member, (jobs, str(folder), processes), nprocs=processes, start_method=serve())
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=False)
    return found


def _member(rank: int, jobs: dict[str, tuple[str, list[str]]], folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    found = {}
    for number, (name, (text, changes)) in enumerate(jobs.items()):
        try:
            found[name] = trained(text, f"{folder}/many{number}", *changes, rank=rank, world_size=processes)
        except Exception as error:
            if processes > 1 and not hasattr(error, "diagnostics"):
                raise
            found[name] = str(error)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()
