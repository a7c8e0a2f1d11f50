"""Tiny detection data: a few scenes composed from blocks that pass for Fashion-MNIST."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.data.detection.fashion_scenes import make_scenes

SAMPLES = Path(__file__).parent.parent / "sample_configs"


def write_garments(folder: Path) -> Path:
    """Twenty images of each split, idx files."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = np.zeros((20, 28, 28), dtype=np.uint8)
        for image in images:
            height, width = draw.integers(12, 26, 2)
            image[1 : 1 + height, 1 : 1 + width] = draw.integers(120, 256, (height, width))
        labels = (np.arange(20) % 10).astype(np.uint8)
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(">BBBB", 0, 0, 8, data.ndim) + struct.pack(f">{data.ndim}I", *data.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + data.tobytes()))
    return folder


def write_scenes(folder: Path, *, num_train: int = 4, num_test: int = 3) -> Path:
    """Scenes in `train/`, `test/`, `train.json`, `test.json`."""
    garments = write_garments(folder / "garments")
    make_scenes(folder, root=str(garments), num_train=num_train, num_test=num_test)
    return folder


def on_scenes(folder: Path) -> list[str]:
    """What makes a sample of the scenes run on these, with a tiny student, for one step."""
    changes = [
        "trainer.max_iter=1",
        "trainer.lr_scheduler.warmup_iter=0",
        "dataset.batch_sampler.kwargs.batch_size=2",
        "net.backbone.kwargs.width=4",
        "net.neck.kwargs.outplanes=8",
        "net.roi_head.kwargs.feat_planes=8",
        "net.bbox_head.kwargs.feat_planes=16",
    ]
    for side in ("train", "test"):
        where = f"dataset.{side}.dataset.kwargs"
        changes += [
            f"{where}.meta_file={folder}/{side}.json",
            f"{where}.image_reader.kwargs.image_dir={folder}/{side}",
        ]
    return [*changes, f"dataset.test.dataset.kwargs.evaluator.kwargs.gt_file={folder}/test.json"]


def random_teacher(width: int = 4) -> list[str]:
    """A small teacher of the scenes' samples, with random weights."""
    return [
        "mimic.teacher.teacher_weight=null",
        "mimic.teacher.allow_random=true",
        "mimic.warm_up_iters=-1",
        f"teacher.backbone.kwargs.width={width}",
    ]


def changed(file: Path, change: Callable[[dict[str, Any]], object], name: str) -> str:
    """A copy of an annotation file with a change, in this folder."""
    content = json.loads(file.read_text())
    change(content)
    Path(name).write_text(json.dumps(content))
    return name
