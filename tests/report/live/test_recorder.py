"""The recorder: every listener hears a run, the report comes before the last line and never fails it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdcli.api.train import write_up
from kdcli.errors import RunError
from kdcli.records import Alarm, Notice
from kdcli.report import charts
from kdcli.report.live.recorder import Recorder
from kdcli.report.loggers.background import Loggers
from kdcli.report.report_page import report_pictures
from kdcli.spec.parse import ParsedSpec
from kdcli.training.run import RunOptions
from tests.report.run_folders import make_run, report_data
from tests.report.samples import plan
from tests.report.test_loggers import MADE, Listening, evaluation, finished, logged, own, step

__all__ = ["own"]


def record(folder: Path, names: Sequence[str] = (), resumed: int = 0) -> list[bool]:
    """A run of four steps; whether pictures were asked for, at each report."""
    asked: list[bool] = []

    def write_up(drawn: bool) -> tuple[list[Notice], dict[str, bytes]]:
        asked.append(drawn)
        assert '"finished"' in (folder / "metrics.jsonl").read_text(), "its last numbers are on disk"
        return [Notice(message="report: here")], {"report/reliability": b"png"}

    with Recorder(
        metrics=folder / "metrics.jsonl",
        log=folder / "train.log",
        spec=["cfg.yaml", "trainer.max_epoch=1"],
        quiet=False,
        loggers=Loggers(names, logged(folder), metrics=folder / "metrics.jsonl"),
        write_up=write_up,
    ) as recorder:
        recorder.take(replace(plan(), resumed_step=resumed))
        for number in range(resumed + 1, 5):
            recorder.take(step(number))
        recorder.take(evaluation(4))
        recorder.take(
            Alarm(message="KD788: oh", step=4, code="KD788", name="n", numbers={"top1": 9.0}, remedy="r")
        )
        recorder.take(finished(folder))
    return asked


def test_the_last_line_is_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(tmp_path) == [False]
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].endswith("next: kdcli eval cfg.yaml trainer.max_epoch=1")
    assert "report: here" in lines
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["step"] * 4 + ["evaluation", "alarm", "finished"]
    log = (tmp_path / "train.log").read_text()
    assert "warning: KD788: oh" in log and "warning: KD788: oh" in lines
    assert "report: here" in log and "finished 4 steps" in log


@pytest.mark.usefixtures("own")
def test_loggers_get_the_pictures(tmp_path: Path) -> None:
    assert record(tmp_path, ["mylab_logs:Listening"]) == [True]
    assert ("pictures", ["report/reliability"]) in MADE[0].heard
    assert isinstance(MADE[0], Listening) and MADE[0].heard[-1] == ("end", True)


def test_a_resumed_run_goes_on_in_every_file(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, resumed=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4]
    assert (tmp_path / "train.log").read_text().count("finished 4 steps") == 2


def written_up(folder: Path, parsed: ParsedSpec | None = None, beside: Path | None = None) -> list[Notice]:
    """What a user is told of the report of a run whose networks can't be built again."""
    options = RunOptions()
    notices, _ = write_up(parsed, options, folder, torch.device("cpu"), False, beside)  # type: ignore[arg-type]
    return notices


def test_without_the_plotting_library_a_notice_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise RunError.of(
            "KD755", "drawing curves needs matplotlib", "install it with `pip install 'kdcli[report]'`"
        )

    monkeypatch.setattr(charts, "need_matplotlib", missing)
    (notice,) = written_up(tmp_path)
    assert notice.level == "info" and "kdcli[report]" in notice.message


@pytest.mark.slow
def test_a_report_that_fails_is_told_and_the_curves_stay(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run", epochs=1)
    notices = written_up(run)
    assert [notice.level for notice in notices] == ["warning", "info"]
    assert "curves alone" in notices[0].message and (run / "report.html").exists()
    assert [notice.level for notice in written_up(tmp_path / "nothing")] == ["warning", "warning"]


@pytest.mark.slow
def test_the_report_of_a_training_has_its_baseline_or_says_why_not(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, alone = make_run(tmp_path / "run", epochs=1), make_run(tmp_path / "alone", epochs=1)
    written_up(run, beside=alone)
    assert "baseline alone" in (run / "report.html").read_text()
    messages = [notice.message for notice in written_up(run, beside=tmp_path / "nothing")]
    assert any("the report is without the baseline" in message for message in messages)
    assert "baseline alone" not in (run / "report.html").read_text()


def test_the_album_holds_what_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert report_pictures(tmp_path) == {}
    (tmp_path / "report_data.json").write_text(json.dumps(report_data()))
    pictures = report_pictures(tmp_path)
    assert {"report/accuracy_by_class", "report/reliability", "report/disagreements"} <= set(pictures)
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())
