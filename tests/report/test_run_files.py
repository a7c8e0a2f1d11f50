"""metrics.jsonl: written, torn, resumed, read again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from kdcli.errors import RunError
from kdcli.records import Step
from kdcli.report.run_files import CLOCK_FIELDS, MetricsWriter, TrainLog, read_metrics

from .samples import evaluation, finished, plan, records, step


def written(path: Path, *told: object) -> Path:
    with MetricsWriter(path) as writer:
        for record in told:
            writer.write(record)  # type: ignore[arg-type]
    return path


def test_every_record_but_the_plan_is_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "run" / "metrics.jsonl", *records(steps_per_epoch=4, epochs=2))
    kinds = [record["kind"] for record in read_metrics(path)]
    assert kinds == [
        "evaluation",
        "notice",
        *["step"] * 4,
        "evaluation",
        "saved",
        *["step"] * 4,
        "evaluation",
        "saved",
        "notice",
        "finished",
    ]
    first = read_metrics(path)[2]
    assert first["losses"] == {"task.ce": 1.0, "job0.teacher0.l2": 0.5} and first["lr"] == 0.1
    assert first["images_per_second"] == pytest.approx(3200.0)


def test_the_first_step_has_what_a_constant_costs(tmp_path: Path) -> None:
    begun = replace(plan(), constants={"job0.teacher0.l2": 0.9})
    path = written(tmp_path / "m", begun, step(1), step(2))
    assert [record.get("constants") for record in read_metrics(path)] == [{"job0.teacher0.l2": 0.9}, None]
    resumed = replace(begun, resumed_step=2)
    path = written(path, resumed, step(3))
    assert [record.get("constants") for record in read_metrics(path)][2:] == [None]


def test_two_runs_differ_in_the_clock_only(tmp_path: Path) -> None:
    def content(name: str, seconds: float) -> list[dict[str, object]]:
        told = [replace(r, seconds=seconds) if isinstance(r, Step) else r for r in records(4, 2)]
        path = written(tmp_path / name, *told)
        return [
            {key: value for key, value in record.items() if key not in CLOCK_FIELDS}
            for record in read_metrics(path)
        ]

    assert content("a", 1.0) == content("b", 2.0)


def test_all_processes_count_in_the_speed(tmp_path: Path) -> None:
    path = written(tmp_path / "m", plan(processes=2), step(1))
    assert read_metrics(path)[0]["images_per_second"] == pytest.approx(6400.0)


def test_numbers_that_are_not_finite_stay_json(tmp_path: Path) -> None:
    odd = replace(step(1), losses={"a": math.nan, "b": math.inf, "c": -math.inf})
    path = written(tmp_path / "m", odd)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    losses = read_metrics(path)[0]["losses"]
    assert math.isnan(losses["a"]) and losses["b"] == math.inf and losses["c"] == -math.inf


def test_resume_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = written(tmp_path / "m", *(step(n) for n in range(1, 8)), evaluation(7, 50.0), finished(7))
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    with MetricsWriter(path) as writer:
        writer.truncate_after(4)
        writer.write(step(5))
    assert [(record["kind"], record["step"]) for record in read_metrics(path)] == [
        ("step", n) for n in range(1, 6)
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_resume_of_a_finished_run_forgets_that_it_had_finished(tmp_path: Path) -> None:
    path = written(tmp_path / "m", step(1), finished(1))
    with MetricsWriter(path) as writer:
        writer.truncate_after(1)
    assert [record["kind"] for record in read_metrics(path)] == ["step"]


@pytest.mark.parametrize("torn", ['{"kind": "st', "x" * 10_000, ""])
def test_appending_after_a_kill_spoils_no_line(tmp_path: Path, torn: str) -> None:
    path = written(tmp_path / "m", step(1))
    with path.open("a") as file:
        file.write(torn)
    assert len(read_metrics(path)) == 1
    written(path, step(2))
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    path.write_text(torn)
    written(path, step(3))
    assert [record["step"] for record in read_metrics(path)] == [3]


def test_lines_that_are_not_ours_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'\xff\xfe\n[1]\n{"a": 1}\nnull\n{"kind": "step", "step": 3}\n')
    assert [record["step"] for record in read_metrics(path)] == [3]


def test_every_line_reaches_the_disk_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "m")
    writer.write(step(1))
    assert len(read_metrics(writer.path)) == 1
    writer.write(step(2))
    assert len(read_metrics(writer.path)) == 2
    writer.write(evaluation(2, 50.0))
    assert len(read_metrics(writer.path)) == 3
    writer.close()


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(RunError, match="KD740: cannot write /dev/full: No space left"):
        written(full, evaluation(1, 1.0))


def test_the_log_goes_on_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "run" / "train.log"
    for told in (list(records(4, 2))[:8], list(records(4, 2))[8:]):
        with TrainLog(path) as log:
            for record in told:
                log.show(record)
    text = path.read_text()
    assert text.startswith("digits_kd") and "epoch 2/2" in text and "finished 8 steps" in text
    assert "\x1b" not in text
    if Path("/dev/full").exists():
        with pytest.raises(RunError, match="KD740"), TrainLog(Path("/dev/full")) as log:
            log.show(evaluation(1, 1.0))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="KD740: cannot write"):
        MetricsWriter(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(RunError, match="KD521: cannot use"):
        read_metrics(tmp_path / "nothing")
