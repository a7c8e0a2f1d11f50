"""The table of `kdcli eval`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from kdcli.records import Comparison
from kdcli.report.results_table import eval_text

ROWS = (
    Comparison(
        network="student",
        metrics={"cross_entropy": 0.1234, "top1": 97.5},
        parameters=9_999,
        flops=1_234_567,
        file_bytes=41_300,
        latency_ms_batch_1=0.5,
        latency_ms_batch=3.25,
        batch_size=64,
    ),
    Comparison(
        network="teacher0",
        metrics={"cross_entropy": 0.05, "top1": 99.0},
        parameters=1_230_000,
        flops=None,
        file_bytes=None,
        latency_ms_batch_1=2.0,
        latency_ms_batch=40.0,
        batch_size=64,
        agreement={"same_top1": 97.0, "kl": 0.08},
    ),
)


def test_golden() -> None:
    assert eval_text(ROWS, primary="top1") == (
        "                              student   teacher0\n"
        "────────────────────────────────────────────────\n"
        "top1                            97.50      99.00\n"
        "cross_entropy                  0.1234     0.0500\n"
        "parameters                      9,999     1.23 M\n"
        "FLOPs                     1.23 MFLOPs          -\n"
        "file size                     41.3 kB          -\n"
        "latency, batch 1              0.50 ms    2.00 ms\n"
        "latency, batch 64             3.25 ms   40.00 ms\n"
        "with student: same_top1             -      97.00\n"
        "with student: kl                    -     0.0800\n"
        "\n"
        "student has 123.01x fewer parameters and is 4.00x faster at batch 1 than teacher0\n"
    )


def test_one_network_alone() -> None:
    text = eval_text(ROWS[:1])
    assert "with student" not in text and "than" not in text


def test_json_is_strict() -> None:
    from dataclasses import replace

    rows = (replace(ROWS[0], metrics={"top1": math.nan}), ROWS[1])
    document = json.loads(eval_text(rows, "json", primary="top1"))
    student, teacher = document["networks"]
    assert student["metrics"] == {"top1": None} and teacher["agreement"]["kl"] == 0.08
    assert (student["parameters"], student["file_bytes"], document["primary"]) == (9_999, 41_300, "top1")


def test_flops_are_told_with_the_size_of_the_images() -> None:
    student, teacher = (replace(row, flops=10**9) for row in ROWS)
    same = eval_text((replace(student, flops_size=[224, 192]), replace(teacher, flops_size=[224, 192])))
    assert [line.split() for line in same.splitlines() if "FLOPs" in line] == [
        ["FLOPs", "at", "224x192", "1.00", "GFLOPs", "1.00", "GFLOPs"]
    ]
    unlike = eval_text((replace(student, flops_size=[224, 224]), replace(teacher, flops_size=[32, 32])))
    assert [line.split() for line in unlike.splitlines() if "FLOPs" in line] == [
        ["FLOPs", "at", "224x224", "1.00", "GFLOPs", "-"],
        ["FLOPs", "at", "32x32", "-", "1.00", "GFLOPs"],
    ]
