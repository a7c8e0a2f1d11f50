"""The baseline beside the student: of a run, or recorded with the sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.commands.baseline import RECORDED, baseline_of, recorded_baseline
from kdcli.commands.samples import sample_specs
from kdcli.errors import KdError, RunError
from kdcli.records import Baseline, Finished
from kdcli.report.console import as_text
from kdcli.report.results_table import finished_table, result_rows
from kdcli.spec.parse import read
from tests.report.run_folders import make_run
from tests.report.samples import finished


@pytest.mark.parametrize("name", RECORDED)
def test_a_sample_has_what_is_recorded_of_its_student_alone(name: str) -> None:
    found = recorded_baseline(
        read(sample_specs()[name], ["runtime.random_seed=7", "saver.save_dir=elsewhere"])
    )
    assert found is not None and found.last == RECORDED[name].last
    assert found.source.startswith(f"recorded, not run here: sample {RECORDED[name].sample}")
    assert read(sample_specs()[name]).spec.net == read(sample_specs()[RECORDED[name].sample]).spec.net


def test_a_copy_of_a_sample_is_the_sample(tmp_path: Path) -> None:
    copied = tmp_path / "mine.yaml"
    copied.write_text(sample_specs()["demo"].read_text())
    assert recorded_baseline(read(copied)) is not None


@pytest.mark.parametrize(
    "change", ["trainer.max_epoch=9", "net.model.kwargs.in_channels=3", "mimic.loss_weight=3"]
)
def test_a_sample_that_was_changed_has_none(change: str) -> None:
    assert recorded_baseline(read(sample_specs()["demo"], [change])) is None


def test_the_baseline_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "alone", top1=81.0)
    parsed = read(sample_specs()["demo"])
    found = baseline_of(run, parsed)
    assert found is not None and found.last["top1"] == 81.0 and found.source == str(run)
    said = capsys.readouterr().err
    assert f"not the same experiment as `--baseline {run}`: test data: digits" in said
    assert "student network: cifar_resnet8 (widths 8, 8, 16, 32)" in said
    with pytest.raises(RunError) as caught:
        baseline_of(tmp_path, parsed)
    assert caught.value.diagnostics[0].code == "KD750"


def test_a_run_without_an_evaluation_is_no_baseline(tmp_path: Path) -> None:
    run = make_run(tmp_path / "alone")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"kind": "step"' in line))
    with pytest.raises(KdError) as caught:
        baseline_of(run, read(sample_specs()["demo"]))
    assert "has not been evaluated" in caught.value.diagnostics[0].message


def test_rows_say_how_far_they_are_from_the_best_teacher() -> None:
    rows = [
        ("student last", {"top1": 90.0}),
        ("student best", {"top1": 91.0}),
        ("a", {"top1": 95.0}),
        ("b", {"top1": 97.0}),
    ]
    alone = Baseline(last={"top1": 80.0}, source="x")
    columns, cells = result_rows(rows, "top1", alone)
    assert columns == ["top1", "to b"]
    assert [(row[0], row[-1]) for row in cells] == [
        ("student last", "-7.00"),
        ("student best", "-6.00"),
        ("baseline", "-17.00"),
        ("a", ""),
        ("b", ""),
    ]
    columns, cells = result_rows(rows[:3], "top1")
    assert columns == ["top1", "to teacher"] and [row[-1] for row in cells] == ["-5.00", "-4.00", ""]


def test_of_a_loss_the_best_teacher_is_the_one_with_the_least() -> None:
    rows = [
        ("s", {"distill_loss": 2.0}),
        ("s", {"distill_loss": 2.0}),
        ("a", {"distill_loss": 1.0}),
        ("b", {"distill_loss": 3.0}),
    ]
    assert result_rows(rows, "distill_loss")[0][-1] == "to a"


def test_the_last_table_has_the_baseline_and_no_gain_of_a_teacher() -> None:
    done: Finished = finished()
    text = as_text(finished_table(done, baseline=Baseline(last={"top1": 91.25}, source="runs/alone")))
    assert "gain (" not in text
    assert [line.split() for line in text.splitlines() if line.startswith(("baseline ", "teacher0"))] == [
        ["baseline", "91.25", "-", "-7.25"],
        ["teacher0", "98.50", "0.1000"],
    ]
    assert text.endswith("baseline: runs/alone\nstudent last against baseline: top1 +5.25\n")
