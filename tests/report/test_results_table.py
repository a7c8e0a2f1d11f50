"""The table of `kdcli eval`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from kdcli.records import Comparison
from kdcli.report.results_table import (
    ResultColumn,
    against_baseline,
    cost_sentence,
    eval_text,
    headline,
    result_lines,
)

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
        "CPU latency, batch 1          0.50 ms    2.00 ms\n"
        "CPU latency, batch 64         3.25 ms   40.00 ms\n"
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


def row(name: str, parameters: int, latency: float) -> Comparison:
    return replace(ROWS[0], network=name, parameters=parameters, latency_ms_batch_1=latency)


@pytest.mark.parametrize(
    ("primary", "student", "teachers", "rows", "said"),
    [
        (
            "top1",
            {"top1": 97.12},
            {"teacher0": {"top1": 98.9}},
            (row("student", 1000, 1.0), row("teacher0", 32_000, 2.5)),
            "The student reaches 97.1 of the teacher's 98.9 (top-1 accuracy, %): 32x fewer parameters, 2.5x faster.",
        ),
        (
            "AP",
            {"AP": 43.0},
            {"teacher0": {"AP": 41.25}},
            (row("student", 3000, 2.0), row("teacher0", 2000, 1.0)),
            "The student is better than its teacher: 43.0, above the teacher's 41.2 (average precision (AP), %):"
            " 1.5x more parameters, 2.0x slower.",
        ),
        (
            "top1",
            {"top1": 90.0},
            {"teacher0": {"top1": 90.0}},
            (row("student", 1000, 1.0), row("teacher0", 1000, 1.02)),
            "The student reaches the teacher's 90.0 (top-1 accuracy, %): as many parameters, about as fast.",
        ),
        (
            "top1",
            {"top1": 90.01},
            {"teacher0": {"top1": 90.02}, "teacher1": {"top1": 80.0}},
            (),
            "The student reaches 90.01 of teacher0's 90.02 (top-1 accuracy, %).",
        ),
        ("top1", {"top1": 90.0}, {}, (), "The student reaches 90.00 (top-1 accuracy, %)."),
        (
            "distill_loss",
            {"distill_loss": 0.2},
            {"teacher0": {"distill_loss": 0.3}},
            (),
            "The student is better than its teacher: 0.2000, below the teacher's 0.3000 (distillation loss).",
        ),
        (
            "explained_variance",
            {"explained_variance": 0.831},
            {},
            (),
            "The student explains 83.1 % of the variance of the teacher's features.",
        ),
        (
            "agreement",
            {"agreement": 93.06},
            {},
            (),
            "The student gives the teacher's class for 93.1 % of the images.",
        ),
        ("top1", {}, {"teacher0": {"top1": 90.0}}, (), ""),
        ("top1", {"top1": math.nan}, {}, (), ""),
    ],
)
def test_the_headline_has_the_right_words(
    primary: str,
    student: dict[str, float],
    teachers: dict[str, dict[str, float]],
    rows: tuple[Comparison, ...],
    said: str,
) -> None:
    assert headline(primary, student, teachers, rows) == said


def test_a_baseline_is_beside_it_in_words() -> None:
    def said(own: float, other: float, alone: bool = True) -> str:
        return against_baseline("top1", {"top1": own}, {"top1": other}, "baseline b", alone=alone)

    assert said(97.1, 95.7) == "Trained alone (baseline b) it reaches 95.7, 1.4 less."
    assert said(90.0, 91.11, alone=False) == "The baseline b reaches 91.1, 1.1 more."
    assert said(90.0, 90.0) == "Trained alone (baseline b) it reaches the same, 90.0."
    assert against_baseline("top1", {"top1": 1.0}, {}, "b", alone=True) == ""


def test_networks_of_one_size_are_as_large() -> None:
    same = (row("student", 1000, 1.0), row("teacher0", 1000, 1.0))
    assert cost_sentence(same) == (
        "student has as many parameters as teacher0 and is as fast at batch 1 as teacher0"
    )
    assert cost_sentence((row("student", 1000, 2.0), row("teacher0", 1000, 1.0))).endswith(
        "as many parameters as teacher0 and is 2.00x slower at batch 1 than teacher0"
    )
    assert "2.00x fewer parameters than teacher0 and is as fast" in cost_sentence(
        (row("student", 1000, 1.0), row("teacher0", 2000, 1.0))
    )


def test_a_table_in_words_leaves_out_what_nobody_has() -> None:
    student = ResultColumn("student", {"top1": 97.5, "a.b": 1.0}, None, last={"top1": 96.0})
    teacher = ResultColumn("teacher0", {"top1": 99.0}, ROWS[1])
    baseline = ResultColumn("baseline", {"top1": 95.0}, ROWS[0], timed=False)
    lines = {name: cells for name, *cells in result_lines([student, teacher, baseline], "top1")}
    assert lines["top-1 accuracy, %"] == ["97.50", "99.00", "95.00"]
    assert lines["the same at the last evaluation"] == ["96.00", "", ""]
    assert lines["parameters"] == ["-", "1.23 M", "9,999"]
    assert lines["CPU latency, batch 1"] == ["-", "2.00 ms", "-"]
    assert "a.b" not in lines
