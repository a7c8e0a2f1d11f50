"""Loggers: what they are told, what survives a failure, and the real libraries, offline."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest

from kdcli.errors import SpecError
from kdcli.records import Evaluation, Finished, Record, Step
from kdcli.report.loggers import background
from kdcli.report.loggers.background import IDENTITIES, Loggers
from kdcli.report.loggers.logger import LoggedRun, check_loggers, flat
from kdcli.report.run_files import MetricsWriter

from .samples import plan

SPEC = {
    "trainer": {"optimizer": {"type": "SGD", "kwargs": {"lr": 0.1}}, "loggers": ["x"]},
    "net": [{"name": "m"}],
}


def logged(folder: Path) -> LoggedRun:
    return LoggedRun(name="digits", run_dir=folder, spec=SPEC, spec_text="trainer:\n  optimizer: SGD\n")


def step(number: int) -> Step:
    return Step(
        step=number,
        total_steps=4,
        epoch=0,
        step_in_epoch=number,
        steps_per_epoch=4,
        losses={"task.loss": 1.0 / number, "job.teacher0.kd": 2.0},
        total=1.0 / number + 2.0,
        lr=0.1,
        images=8,
        seconds=0.5,
    )


def evaluation(number: int) -> Evaluation:
    metrics = {"top1": 90.0 + number}
    return Evaluation(
        step=number, epoch=0, network="student", metrics=metrics, primary="top1", best=True, seconds=1.0
    )


def finished(folder: Path) -> Finished:
    return Finished(
        step=4,
        seconds=2.0,
        run_dir=folder,
        student_path=None,
        primary="top1",
        last={"top1": 94.0},
        best={"top1": 94.0},
        teachers={"teacher0": {"top1": 99.0}},
    )


def picture() -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def follow(names: list[str], folder: Path, *, resumed: int = 0, end: bool = True) -> list[str]:
    """A run of four steps seen by the loggers, from where it was resumed; what the user was told."""
    with MetricsWriter(folder / "metrics.jsonl") as metrics:
        loggers = Loggers(names, logged(folder), metrics=metrics.path)
        notices = loggers.load()

        def take(record: Record) -> None:
            metrics.write(record)
            notices.extend(loggers.take(record))

        metrics.truncate_after(resumed)
        take(replace(plan(), resumed_step=resumed))
        for number in range(resumed + 1, 5 if end else 4):
            take(step(number))
            take(evaluation(number))
        if end:
            take(finished(folder))
            notices += loggers.pictures(4, {"report/disagreements": picture()})
        notices += loggers.close()
    return [notice.message for notice in notices]


class Listening:
    """A user's own logger."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        MADE.append(self)

    def begin(self, run: LoggedRun) -> str | None:
        self.heard.append((run.name, run.resumed_step, run.identity))
        return "mine"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.heard.append((step, dict(values)))

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        self.heard.append(("pictures", sorted(pictures)))

    def summary(self, values: Mapping[str, float]) -> None:
        self.heard.append(("summary", dict(values)))

    def end(self, *, finished: bool) -> None:
        self.heard.append(("end", finished))


class Falling(Listening):
    """Fails at the second step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise ValueError("no such number\nand more")


MADE: list[Listening] = []


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    module = ModuleType("mylab_logs")
    module.Listening, module.Falling = Listening, Falling  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mylab_logs", module)
    MADE.clear()
    yield "mylab_logs"


def test_an_own_logger_hears_everything_by_name(own: str, tmp_path: Path) -> None:
    assert follow([f"{own}:Listening"], tmp_path) == []
    heard = MADE[0].heard
    assert heard[0] == ("digits", 0, None)
    assert heard[1] == (
        1,
        {
            "loss/task.loss": 1.0,
            "loss/job.teacher0.kd": 2.0,
            "loss/total": 3.0,
            "lr": 0.1,
            "epoch": 0.0,
            "images_per_second": 16.0,
        },
    )
    assert heard[2] == (1, {"test/top1": 91.0})
    assert heard[-4:] == [
        (4, {"test/teacher0/top1": 99.0}),
        ("summary", {"best/top1": 94.0}),
        ("pictures", ["report/disagreements"]),
        ("end", True),
    ]


def test_a_resumed_run_is_told_who_it_was(own: str, tmp_path: Path) -> None:
    follow([f"{own}:Listening"], tmp_path, end=False)
    follow([f"{own}:Listening"], tmp_path, resumed=2)
    assert MADE[0].heard[-1] == ("end", False)
    # Steps 1 to 3 were sent; the checkpoint was taken after step 2.
    assert MADE[1].heard[0] == ("digits", 3, "mine")
    assert [heard[0] for heard in MADE[1].heard[1:4]] == [4, 4, 4]  # step, evaluation, teachers
    assert json.loads((tmp_path / IDENTITIES).read_text())[f"{own}:Listening"]["identity"] == "mine"


def test_a_run_that_begins_anew_is_another_one_for_its_loggers(own: str, tmp_path: Path) -> None:
    follow([f"{own}:Listening"], tmp_path, end=False)
    follow([f"{own}:Listening"], tmp_path)
    assert MADE[1].heard[0] == ("digits", 0, None)
    assert MADE[1].heard[1][0] == 1  # type: ignore[index]


def test_a_logger_that_comes_with_a_resume_gets_the_steps_before(own: str, tmp_path: Path) -> None:
    follow([], tmp_path, end=False)
    follow([f"{own}:Listening"], tmp_path, resumed=2)
    assert MADE[0].heard[0] == ("digits", 0, None)
    steps = [heard[0] for heard in MADE[0].heard if isinstance(heard[0], int)]  # type: ignore[index]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 4]


def test_a_failing_logger_says_so_once_and_the_others_go_on(own: str, tmp_path: Path) -> None:
    told = follow([f"{own}:Falling", f"{own}:Listening"], tmp_path)
    assert told == [
        f"logger `{own}:Falling` failed and is left out, training goes on: ValueError: no such number"
    ]
    assert MADE[1].heard[-1] == ("end", True)


def test_a_logger_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "kdcli.report.loggers.wandb", raising=False)
    (message,) = follow(["wandb"], tmp_path)
    assert "pip install 'kdcli[wandb]'" in message


def test_names_are_checked_before_anything_is_imported() -> None:
    with pytest.raises(SpecError) as caught:
        check_loggers(["tensorbord", "wandb", "mylab.logs:Logger"], [])
    first, second = caught.value.diagnostics
    assert (first.code, first.path) == ("KD390", ("trainer", "loggers", 0))
    assert first.help == "did you mean `tensorboard`?"
    assert second.path == ("trainer", "loggers", 2) and "add `--plugin mylab`" in second.message
    check_loggers(["mylab.logs:Logger"], ["mylab"])


def test_a_spec_becomes_flat_facts() -> None:
    assert dict(flat(SPEC)) == {
        "trainer.optimizer.type": "SGD",
        "trainer.optimizer.kwargs.lr": 0.1,
        "trainer.loggers": "['x']",
        "net.0.name": "m",
    }


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_files_read_back_across_a_resume(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert follow(["tensorboard"], tmp_path, end=False) == []
    assert follow(["tensorboard"], tmp_path, resumed=1) == []  # steps 2 and 3 are removed and come again
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/top1")] == [(1, 91), (2, 92), (3, 93), (4, 94)]
    assert [e.step for e in events.Scalars("loss/job.teacher0.kd")] == [1, 2, 3, 4]
    assert events.Scalars("test/teacher0/top1")[0].value == 99.0
    assert events.Tags()["images"] == ["report/disagreements"]
    (tmp_path / IDENTITIES).unlink()
    assert follow(["tensorboard"], tmp_path) == []
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run waits for as long as a library takes on a busy machine."""
    monkeypatch.setattr(background, "STUCK_SECONDS", 60.0)
    monkeypatch.setattr(background, "END_SECONDS", 60.0)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for told in (follow(["wandb"], tmp_path, end=False), follow(["wandb"], tmp_path, resumed=2)):
        assert len(told) == 1 and f"kept offline, `wandb sync {tmp_path}/wandb/offline-run-*`" in told[0]
    identity = json.loads((tmp_path / IDENTITIES).read_text())["wandb"]["identity"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files
    said = b"".join(file.read_bytes() for file in files)
    assert b"test/top1" in said and b"loss/job.teacher0.kd" in said
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/report/disagreements*.png"))


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_in_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: store)
    assert follow(["mlflow"], tmp_path, end=False) == []
    assert follow(["mlflow"], tmp_path, resumed=2) == []
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("kdcli").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.optimizer.kwargs.lr"] == "0.1"
    assert run.data.metrics["best/top1"] == 94.0
    history = client.get_metric_history(run.info.run_id, "test/top1")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (1, 91),
        (2, 92),
        (3, 93),
        (4, 94),
    ]
    assert "report" in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_validate_finds_an_unknown_logger() -> None:
    from kdcli.commands.samples import sample_specs
    from kdcli.commands.validate import examine

    found, plan = examine(str(sample_specs()["digits_kd"]), ["trainer.loggers=[wandbb]"])
    assert [one.code for one in found] == ["KD390"] and plan is None
    assert found[0].span is not None and found[0].help == "did you mean `wandb`?"
