"""Numbers as people read them."""

from __future__ import annotations

import pytest

from kdcli.report import quantities


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0"),
        (1797, "1,797"),
        (9999, "9,999"),
        (10_000, "10.0 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (25_557_032, "25.6 M"),
        (10**16, "10000 T"),
        (None, "-"),
    ],
)
def test_count(number: int | None, text: str) -> None:
    assert quantities.count(number) == text


def test_flops_and_bytes() -> None:
    assert quantities.flops(4_089_184_256) == "4.09 GFLOPs" and quantities.flops(12) == "12 FLOPs"
    assert quantities.size(512) == "512 B" and quantities.size(102_530_333) == "103 MB"


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0.0000"), (97.2222, "97.22"), (0.12345, "0.1235"), (3e-7, "3.000e-07"), (float("nan"), "nan")],
)
def test_measure(value: float, text: str) -> None:
    assert quantities.measure(value) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (4.21, "4.2 s"),
        (59.96, "1 min 00 s"),
        (187, "3 min 07 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86399, "1 d 00 h"),
        (float("inf"), "-"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert quantities.duration(seconds) == text


def test_difference_has_a_sign_and_the_places_of_its_sides() -> None:
    assert quantities.difference(97.25, 98.5) == "-1.25" and quantities.difference(0.5, 0.25) == "+0.2500"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("top1", "top-1 accuracy, %"),
        ("top5", "top-5 accuracy, %"),
        ("head0_top1", "head0: top-1 accuracy, %"),
        ("many_shot_acc_top1", "top-1 accuracy, %, classes with many images"),
        ("distill_loss.job.kd", "distillation loss: job.kd"),
        ("AP50", "AP at overlap 0.5, %"),
        ("my_own_metric", "my own metric"),
    ],
)
def test_metrics_have_words(name: str, words: str) -> None:
    assert quantities.metric_words(name) == words
