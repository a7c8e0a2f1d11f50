"""COCO's figures on two processes are those on one, also where one of them has nothing to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kdcli.parallel.distributed import Processes
from kdcli.spec.parse import read
from kdcli.spec.places import HERE
from kdcli.tasks import build_task
from kdcli.training.build import build_data
from kdcli.training.evaluate import evaluate
from kdcli.training.sides import Sides
from tests.scenes import SAMPLES, on_scenes, write_scenes
from tests.training.processes import serve

SPEC = SAMPLES / "scenes_student.yaml"
FAR = 2**60
"""Beyond what a float64 holds exactly: ids from here are still told apart."""


def found(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Boxes near the truth, how near depends on the image; every third has another class."""
    rows = []
    for place, (boxes, given) in enumerate(zip(batch["boxes"], batch["image_ids"], strict=True)):
        image = given % FAR
        for number, box in enumerate(boxes):
            label = box[4] if (number + image) % 3 else box[4] % 10 + 1
            score = 0.9 - 0.07 * number - 0.01 * image
            rows.append([place, *(box[:4] + 0.8 * image).tolist(), score, float(label)])
    return {"dt_bboxes": torch.tensor(rows).reshape(-1, 7)}


def measured(changes: list[str], rank: int = 0, world_size: int = 1) -> dict[str, float]:
    here = Processes(device=torch.device("cpu"), rank=rank, world_size=world_size, local_rank=rank)
    spec = read(SPEC, changes).spec
    loader = build_data(Sides(spec, HERE).opened(False), spec, here)
    return evaluate(found, loader, build_task(spec), here)


def member(rank: int, jobs: list[list[str]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save([measured(changes, rank, 2) for changes in jobs], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path: Path) -> None:
    changes = on_scenes(write_scenes(tmp_path, num_test=7))
    content = json.loads((tmp_path / "test.json").read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] == 1]
    (tmp_path / "one.json").write_text(json.dumps(content))
    where = "dataset.test.dataset.kwargs"
    one = [f"{where}.meta_file={tmp_path}/one.json", f"{where}.evaluator.kwargs.gt_file={tmp_path}/one.json"]
    content = json.loads((tmp_path / "test.json").read_text())
    for row in content["images"]:
        row["id"] += FAR
    for row in content["annotations"]:
        row["image_id"] += FAR
    (tmp_path / "far.json").write_text(json.dumps(content))
    far = [change.replace("one.json", "far.json") for change in one]
    jobs = [changes, [*changes, *one], [*changes, *far]]
    mp.start_processes(member, (jobs, str(tmp_path)), nprocs=2, start_method=serve())
    alone = [measured(job) for job in jobs]
    assert 0 < alone[0]["AP"] < 100 and alone[2] == alone[0]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == alone
