"""Run folders on disk for the tests of report and compare."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import yaml

from kdcli.records import Evaluation, Step
from kdcli.report.run_files import MetricsWriter

from .samples import finished, plan


def make_run(
    path: Path,
    *,
    seed: int = 0,
    top1: float = 90.0,
    epochs: int = 5,
    end: bool = True,
    spec: dict[str, Any] | None = None,
    constants: dict[str, float] | None = None,
) -> Path:
    """A run of a few epochs whose student ends at `top1`."""
    from dataclasses import replace

    path.mkdir(parents=True)
    content = {
        "net": [{"name": "model"}],
        **(spec or {}),
        "runtime": {"random_seed": seed, "runner": {"type": "kd"}, **(spec or {}).get("runtime", {})},
        "saver": {"save_dir": str(path)},
    }
    (path / "spec.resolved.yaml").write_text(yaml.safe_dump(content))
    (path / "env.json").write_text(json.dumps({"kdcli": "0.1.0", "run_format": 1, "torch": "2.14.1"}))
    with MetricsWriter(path / "metrics.jsonl", clock=lambda: 1.8e9) as writer:
        writer.write(replace(plan(steps_per_epoch=20, epochs=epochs), constants=constants or {}))
        teacher = {"top1": 98.5, "cross_entropy": 0.05}
        writer.write(
            Evaluation(
                step=0, epoch=0, network="teacher0", metrics=teacher, primary="top1", best=False, seconds=1.0
            )
        )
        for number in range(1, epochs * 20 + 1):
            losses = {
                "task.cross_entropy": 2.3 / number**0.5,
                "mimic_job0.teacher0.kd_loss": 5.0 / number,
                "mimic_job0.teacher0.l2_loss": 0.3,
            }
            writer.write(
                Step(
                    step=number,
                    total_steps=epochs * 20,
                    epoch=(number - 1) // 20,
                    step_in_epoch=(number - 1) % 20 + 1,
                    steps_per_epoch=20,
                    losses=losses,
                    total=sum(losses.values()),
                    lr=0.1 * (1 - number / (epochs * 20)),
                    images=64,
                    seconds=0.05,
                )
            )
            if number % 20 == 0:
                reached = top1 - 40.0 * (1 - number / (epochs * 20))
                metrics = {"top1": reached, "cross_entropy": 1 - reached / 100}
                writer.write(
                    Evaluation(
                        step=number,
                        epoch=number // 20 - 1,
                        network="student",
                        metrics=metrics,
                        primary="top1",
                        best=True,
                        seconds=1.0,
                    )
                )
        if end:
            metrics = {"top1": top1, "cross_entropy": 1 - top1 / 100}
            writer.write(
                replace(
                    finished(epochs * 20),
                    run_dir=path,
                    last=metrics,
                    best=metrics,
                    teachers={"teacher0": teacher},
                )
            )
    return path


def png(red: int, green: int, blue: int, size: int = 8) -> str:
    """A small picture as a data URI: a gradient towards one colour."""
    rows = b"".join(
        b"\0"
        + b"".join(
            bytes((red * x // size, green * y // size, blue * (x + y) // (2 * size))) for x in range(size)
        )
        for y in range(size)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()


def report_data() -> dict[str, Any]:
    """Every section, filled."""
    cost = {"flops": 1_000_000, "file_bytes": 40_000, "latency_ms_batch_1": 0.5, "latency_ms_batch": 4.0}
    layers = ["model.layer1", "model.layer2", "model.layer3"]
    return {
        "version": 1,
        "primary": "top1",
        "comparison": [
            {"network": "student", "metrics": {"top1": 90.0}, "parameters": 9_999, "batch_size": 64, **cost},
            {
                "network": "teacher0",
                "metrics": {"top1": 98.5},
                "parameters": 120_000,
                "batch_size": 64,
                "agreement": {"same_top1": 95.0},
                **{**cost, "latency_ms_batch_1": 2.0},
            },
        ],
        "class_accuracy": {
            "classes": [f"digit {i}" for i in range(10)],
            "support": [36] * 10,
            "networks": {
                "student": [0.8 + 0.02 * i for i in range(9)] + [None],
                "teacher0": [0.97] * 10,
            },
        },
        "measured": {"images": 360, "of": 450},
        "confusion": {
            "classes": ["cat", "dog"],
            "networks": {"student": [[30, 6], [2, 34]], "teacher0": [[36, 0], [0, 36]]},
            "mistaken": {
                "student": [{"label": "cat", "answer": "dog", "count": 6, "of": 36}],
                "teacher0": [],
            },
        },
        "worst_classes": [
            {
                "class": "cat",
                "support": 36,
                "shares": {"student": 30 / 36, "teacher0": 1.0},
                "pictures": [
                    {
                        "image": png(10, 200, 90),
                        "label": "cat",
                        "answers": {"student": {"answer": "dog", "confidence": 0.9}},
                    }
                ],
            }
        ],
        "precision": {
            "classes": ["cat", "dog"],
            "boxes": [7, 0],
            "sizes": {"small": 2, "medium": 5, "large": 0},
            "recalls": [0.0, 0.5, 1.0],
            "networks": {
                "student": {"ap": [31.5, None], "ap50": [62.5, None], "curves": {"0.5": [100.0, 50.0, 0.0]}}
            },
        },
        "reliability": {
            name: [
                {"confidence": 0.1 * i, "accuracy": 0.1 * i * slope, "count": 10 * i} for i in range(1, 10)
            ]
            for name, slope in (("student", 0.8), ("teacher0", 0.97))
        },
        "disagreements": [
            {
                "image": png(255, 40 * i, 200),
                "label": str(i),
                "answers": {
                    "student": {"answer": "3", "confidence": 0.7},
                    "teacher0": {"answer": str(i), "confidence": 0.99},
                },
            }
            for i in range(6)
        ],
        "features": [
            {
                "term": "mimic_job0.teacher0.l2_loss",
                "student_layer": "model.layer3",
                "teacher": "teacher0",
                "teacher_layer": "model.layer3",
                "rows": [{"image": png(255, 255, 255), "student": png(255, 0, 0), "teacher": png(0, 255, 0)}]
                * 2,
            }
        ],
        "cka": [
            {
                "teacher": "teacher0",
                "student_layers": layers[:2],
                "teacher_layers": layers,
                "values": [[0.9, 0.5, 0.1], [0.4, 0.8, 0.6]],
            }
        ],
        "detections": [
            {
                "image": png(120, 120, 120, 32),
                "width": 32,
                "height": 32,
                "boxes": {"truth": [[4, 4, 20, 20, "cat", None]], "student": [[5, 6, 19, 22, "cat", 0.8]]},
            }
        ],
    }
