"""A task of one's own is new files and lines in tables: a number for each image, learnt, measured, compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcli.data import DATASETS
from kdcli.models import MODULES
from kdcli.spec.tables import Target, TaskRecord
from kdcli.tasks import TASKS
from tests.recipes import text_of
from tests.training.conftest import Kdcli

DATA, MODULE, TASK, SPEC = (
    text_of("A task", file)
    for file in (
        "kdcli/data/levels.py",
        "kdcli/models/level_net.py",
        "kdcli/tasks/regression.py",
        "levels.yaml",
    )
)
"""The code of kdcli/CONTRIBUTING.md, here in a package of its own."""


@pytest.fixture
def levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The spec of a run whose task, data and network are a package of their own."""
    package = tmp_path / "own" / "levels_of_grey"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("data", DATA), ("module", MODULE), ("task", TASK)):
        (package / f"{name}.py").write_text(text)
    (tmp_path / "levels.yaml").write_text(SPEC)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(DATASETS, "levels", Target("levels_of_grey.data:levels"))
    monkeypatch.setitem(MODULES, "level_net", Target("levels_of_grey.module:LevelNet"))
    record = TaskRecord(
        target=Target("levels_of_grey.task:Regression"),
        datasets=frozenset({"levels"}),
        words=("regression",),
        not_compiled="levels can't be compiled",
    )
    monkeypatch.setitem(TASKS, "regression", record)
    yield "levels.yaml"
    for name in [name for name in sys.modules if name.startswith("levels_of_grey")]:
        del sys.modules[name]


@pytest.mark.slow
def test_it_is_validated_trained_measured_and_reported(kdcli: Kdcli, levels: str) -> None:
    code, out, err = kdcli("validate", levels, "--files")
    assert code == 0, out + err
    assert "the spec is right" in out
    code, out, err = kdcli("inspect-features", levels)
    assert code == 0 and "body.2" in out, out + err
    alone = ("runtime.runner.type=base", "mimic=", "teacher0=", "net.kwargs.width=6", "saver.save_dir=large")
    code, out, err = kdcli("train", levels, "--quiet", *alone)
    assert code == 0, err
    weight = "mimic.teacher0.teacher_weight=large/student.safetensors"
    code, out, err = kdcli("train", levels, "--quiet", weight)
    assert code == 0, err
    run = Path("runs/levels")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"] for line in lines if line["kind"] == "step"]
    assert len(losses) == 32 and len(losses[0]) == 2
    for name in losses[0]:
        by_epoch = [sum(line[name] for line in losses[start : start + 8]) for start in range(0, 32, 8)]
        assert by_epoch[-1] < by_epoch[0], (name, by_epoch)
    code, out, err = kdcli("eval", str(run), "--format", "json")
    assert code == 0, err
    told = json.loads(out)
    assert told["primary"] == "minus_mse"
    finished = json.loads((run / "finished.json").read_text())
    student = told["networks"][0]
    assert student["metrics"]["minus_mse"] == pytest.approx(finished["best"]["minus_mse"])
    assert student["agreement"] is None
    teacher = told["networks"][1]
    assert teacher["metrics"]["minus_mse"] == pytest.approx(finished["teachers"]["teacher0"]["minus_mse"])
    code, out, err = kdcli("report", str(run))
    assert code == 0 and err == "", err
    shown = json.loads((run / "report_data.json").read_text())
    assert shown["primary"] == "minus_mse" and set(shown) == {"version", "primary", "comparison"}
    assert shown["comparison"][0]["metrics"] == finished["best"]


def test_what_it_has_not_is_said_in_a_line(kdcli: Kdcli, levels: str) -> None:
    code, _, err = kdcli("export", levels, "--format", "safetensors")
    assert code == 2 and "students of the task regression can't be exported" in err, err
    code, _, err = kdcli("eval", levels, "--show", "shown")
    assert code == 2 and "`--show` is for detectors, and this spec's task is regression" in err, err
    code, out, _ = kdcli("validate", levels, "runtime.compile=true")
    assert code == 1 and "KD222: levels can't be compiled" in out, out


def test_a_task_name_comes_before_the_data(kdcli: Kdcli, levels: str) -> None:
    changes = ("runtime.task_names=regression", "runtime.compile=true")
    fake = [
        f"dataset.{side}.dataset={{type: fake, kwargs: {{transformer: [{{type: to_tensor}}]}}}}"
        for side in ("train", "test")
    ]
    code, out, _ = kdcli("validate", levels, *changes, *fake)
    assert code == 1 and "KD222: levels can't be compiled" in out, out
