"""Run folders, good and bad: one clear line for each kind of bad."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import pytest

from kdcli.errors import RunError
from kdcli.report.recorded_run import Curve, read_run
from kdcli.report.report_data import read_report_data

from .run_folders import make_run, report_data


def test_a_good_one(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "digits_kd", seed=3, top1=91.0))
    assert (run.name, run.primary, run.student) == ("digits_kd", "top1", "student")
    assert run.last["top1"] == run.best["top1"] == 91.0 and run.teachers["teacher0"]["top1"] == 98.5
    assert run.progress == "finished 100 steps" and run.steps.count == 100


def test_the_last_word_about_a_step_counts(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", end=False)
    again = (path / "metrics.jsonl").read_text().splitlines()[-1].replace('"top1": 90.0', '"top1": 12.5')
    with (path / "metrics.jsonl").open("a") as file:
        file.write(again + '\n{"kind": "step", "st')
    run = read_run(path)
    assert run.last["top1"] == 12.5 and len(run.evaluations["student"]) == 5
    assert run.progress == "stopped or running at step 100 of 100"


def test_a_short_curve_is_as_recorded_and_begins_anew_where_a_run_was_resumed() -> None:
    points = [(float(x), float(x * x % 7)) for x in range(1, 301)]
    assert Curve(points).points() == ([x for x, _ in points], [y for _, y in points])
    again = Curve([*points[:50], (31.0, 5.0), (32.0, math.nan)])
    xs, ys = again.points()
    assert xs == [float(x) for x in range(1, 33)] and ys[:30] == [y for _, y in points[:30]]
    assert ys[30] == 5.0 and math.isnan(ys[31])


def test_a_long_curve_is_bounded_and_keeps_its_ends_and_extremes() -> None:
    """Means of equal intervals, as by hand; one spike up, one down, one interval without a number."""
    values = [math.sin(x / 500) for x in range(20000)]
    values[777], values[15001] = 9.5, -7.25
    values[4096:4224] = [math.nan] * 128
    curve = Curve((float(x), y) for x, y in enumerate(values))
    assert curve.every == 128 and len(curve.intervals) == 157
    xs, ys = curve.points()
    known = dict(zip(xs, ys, strict=True))
    assert xs == sorted(xs) and len(xs) == 157 + 4
    assert (known[777.0], known[15001.0], known[0.0], known[19999.0]) == (9.5, -7.25, values[0], values[-1])
    assert known[63.5] == pytest.approx(sum(values[:128]) / 128) and math.isnan(known[4096 + 63.5])


def test_a_run_of_any_length_is_read_in_the_same_memory(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    step = json.loads(next(line for line in lines if '"kind": "step"' in line))
    read_run(path)  # what is imported or kept once is no part of it
    peaks = []
    for count in (1000, 4000):
        with (path / "metrics.jsonl").open("w") as file:
            for number in range(1, count + 1):
                file.write(json.dumps({**step, "step": number, "total": 1 / number}) + "\n")
        tracemalloc.start()
        run = read_run(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.steps.count == count and run.steps.seconds == pytest.approx(0.05 * count)
        xs, ys = run.steps.total.points()
        assert (xs[-1], ys[-1], ys[0]) == (count, 1 / count, 1.0)
    # All rows of a file four times as long would take four times as much.
    assert peaks[1] < 2 * peaks[0]


def refused(path: Path, code: str, words: str) -> None:
    with pytest.raises(RunError) as caught:
        read_run(path)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code and words in diagnostic.message and "\n" not in diagnostic.message


def test_not_a_run(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "KD750", "there is no folder")
    refused(tmp_path, "KD750", "is empty")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "KD750", "is a file")
    refused(tmp_path, "KD750", "is no run of kdcli")


def test_half_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    (path / "metrics.jsonl").write_text('{"kind": "st')
    refused(path, "KD751", "no step and no evaluation yet")
    (path / "metrics.jsonl").unlink()
    refused(path, "KD751", "no step and no evaluation yet")
    (path / "spec.resolved.yaml").write_text("net: [")
    refused(path, "KD752", "spec.resolved.yaml is broken")
    (path / "env.json").write_text("{")
    refused(path, "KD752", "env.json is broken")
    path = make_run(tmp_path / "other")
    (path / "spec.resolved.yaml").unlink()
    refused(path, "KD752", "has no spec.resolved.yaml")


def test_another_version(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    (path / "env.json").write_text(json.dumps({"kdcli": "9.0", "run_format": 2}))
    refused(path, "KD753", "has run format 2; this kdcli reads format 1")
    path = make_run(tmp_path / "other")
    (path / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 3}\n')
    refused(path, "KD752", "unknown shape")


def test_report_data_good_and_bad(tmp_path: Path) -> None:
    path = tmp_path / "report_data.json"
    assert read_report_data(path).cka == ()
    path.write_text(json.dumps(report_data()))
    data = read_report_data(path)
    assert data.class_accuracy is not None and data.class_accuracy.networks["student"][9] is None
    for text, code in (("{", "KD752"), ("[]", "KD753"), ('{"version": 2}', "KD753")):
        path.write_text(text)
        with pytest.raises(RunError, match=code):
            read_report_data(path)


@pytest.mark.parametrize(
    "section, broken",
    [
        ("comparison", [{"network": "student"}]),
        ("class_accuracy", {"classes": ["a"], "networks": {"student": [0.5, 0.5]}}),
        ("reliability", {"student": [{"confidence": 0.5}]}),
        ("disagreements", [{"image": "x", "answers": {}}]),
        ("features", [{"rows": []}]),
        ("cka", [{"teacher": "t", "student_layers": ["a"], "teacher_layers": ["b"], "values": [[1, 2]]}]),
        ("detections", [{"image": 1, "boxes": []}]),
        ("cka", 7),
    ],
)
def test_a_section_of_another_shape_is_named(tmp_path: Path, section: str, broken: object) -> None:
    path = tmp_path / "report_data.json"
    path.write_text(json.dumps({**report_data(), section: broken}))
    with pytest.raises(RunError, match=f"KD752: `{section}` in"):
        read_report_data(path)


ODD = (None, "x", math.nan, [], {"a": 1}, {"a": None}, {"a": {"b": "c"}}, 10**400, 2**70, True)
"""Values that no figure of a record has."""


@pytest.mark.parametrize("kind", ["step", "evaluation", "finished"])
def test_odd_values_in_records_are_told_or_can_be_shown(kind: str, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    file = path / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    at = next(index for index, record in enumerate(records) if record["kind"] == kind)
    few = [
        record for index, record in enumerate(records) if index == at or record["kind"] != "step" or index < 2
    ]
    at = next(index for index, record in enumerate(few) if record["kind"] == kind)
    odd = [{**few[at], key: value} for key in few[at] for value in ODD]
    if kind != "finished":
        few.pop()  # how far a run is, its last step says
    odd += [{name: value for name, value in few[at].items() if name != key} for key in few[at]]
    shown = 0
    for record in odd:
        lines = [record if index == at else other for index, other in enumerate(few)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        try:
            run = read_run(path)
        except RunError as error:
            assert error.diagnostics[0].code in ("KD751", "KD752")
            continue
        shown += 1
        figures = [run.last, run.best, *run.teachers.values()]
        assert all(isinstance(value, float) for metrics in figures for value in metrics.values())
        assert run.primary is not None and run.progress
    assert shown
