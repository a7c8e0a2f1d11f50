"""What `--resume [PATH]` takes, what it refuses, and how often there is something to resume from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.errors import RunError
from kdcli.models.weights import read_weights
from kdcli.records import Finished, Notice, Saved, Step
from kdcli.training import train as loop
from kdcli.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, step_of
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all


def begun(*changes: str, steps: int = 5) -> Path:
    """A run that was left after the save at this step; its newest checkpoint."""
    with run_of(spec_of(SPEC, *changes)) as run:
        for record in train(run):
            if isinstance(record, Saved) and record.step == steps:
                break
        return checkpoints(run.folder.checkpoints)[0]


def refused(code: str, *changes: str, **options: object) -> str:
    """What is said where the run is not continued."""
    with pytest.raises(RunError) as caught:
        train_all(spec_of(SPEC, *changes), **options)
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.code == code
    return f"{diagnostic.message} {diagnostic.help}"


def test_a_path_is_a_checkpoint_or_a_folder_with_some() -> None:
    begun("saver.save_dir=one", "trainer.save_every_minutes=1e-9", "trainer.log_freq=2", steps=6)
    older = checkpoints(Path("one/checkpoints"))[1]
    assert step_of(older) == 5
    finals = []
    for number, (path, first) in enumerate(((older, 6), (older.parent, 7), (Path("one"), 7))):
        records = train_all(spec_of(SPEC, f"saver.save_dir=to{number}"), resume=path)
        assert next(r.step for r in records if isinstance(r, Step)) >= first
        finals.append(read_weights(Path(f"to{number}/student.safetensors")))
    assert all(torch.equal(finals[0][key], other[key]) for other in finals[1:] for key in other)
    assert "no valid checkpoint in nowhere" in refused("KD718", "saver.save_dir=x", resume=Path("nowhere"))
    Path("empty").mkdir()
    assert "no valid checkpoint in empty" in refused("KD718", "saver.save_dir=x", resume=Path("empty"))


def test_every_key_that_differs_is_named_and_each_has_to_be_allowed() -> None:
    begun()
    changes = ("trainer.optimizer.kwargs.lr=0.01", "trainer.clip_grad_norm=1", "mimic.warm_up_iters=4")
    said = refused("KD715", *changes, resume=True)
    keys = ("trainer.optimizer.kwargs.lr", "trainer.clip_grad_norm", "mimic.warm_up_iters")
    assert all(key in said for key in keys) and "--allow-changed" in said
    said = refused("KD715", *changes, resume=True, allow_changed=keys[:2])
    assert keys[2] in said and keys[0] not in said
    train_all(spec_of(SPEC, *changes), resume=True, allow_changed=(*keys[:2], "mimic"))


def test_keys_that_decide_nothing_may_differ() -> None:
    begun()
    train_all(spec_of(SPEC, "trainer.log_freq=1", "trainer.save_freq=2", "runtime.threads=1"), resume=True)


def test_another_teacher_is_refused() -> None:
    with run_of(spec_of(SPEC, "saver.save_dir=made")) as run:
        weights = run.teachers["teacher0"].net.state_dict()
    torch.save(weights, "teacher.pth")
    own = "mimic.teacher0.teacher_weight=teacher.pth"
    begun(own)
    torch.save(
        {name: value * 1.001 if value.is_floating_point() else value for name, value in weights.items()},
        "teacher.pth",
    )
    assert "other weights of teacher0" in refused("KD716", own, resume=True)
    train_all(spec_of(SPEC, own), resume=True, allow_changed=("teachers.teacher0",))


def test_another_number_of_processes_is_refused_and_goes_on_at_the_same_share_of_the_epoch() -> None:
    newest = begun("trainer.save_every_minutes=1e-9", "trainer.log_freq=2", steps=2)
    state = load_checkpoint(newest)
    assert (state["batches"], state["progress"]["batch"]) == (5, 2)
    state["world_size"], state["processes"] = 2, state["processes"] * 2
    state["batches"], state["progress"]["batch"] = 10, 6
    shutil.rmtree(newest.parent)
    newest.parent.mkdir()
    save_checkpoint(newest.parent, 2, state, keep=1)
    said = refused("KD717", resume=True)
    assert "2 process(es), this run has 1" in said and "--allow-changed world_size" in said
    records = train_all(spec_of(SPEC, "trainer.log_freq=1"), resume=True, allow_changed=("world_size",))
    first = next(r for r in records if isinstance(r, Step))
    assert (first.step, first.step_in_epoch) == (3, 4)


def test_minutes_are_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at where the log is written, counted from the last save of whatever kind."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    spec = spec_of(
        SPEC,
        "trainer={max_iter: 20, log_freq: 2, save_freq: 3, save_every_minutes: 5, "
        "optimizer: {type: SGD, kwargs: {lr: 0.01}}}",
    )
    saved = []
    with run_of(spec) as run:
        for record in train(run):
            if isinstance(record, Step):
                now[0] += 60.0
            if isinstance(record, Saved):
                saved.append(record.step)
    # A minute a step: at 5 since the start, after the third epoch (15), at 5 since then, and at the end.
    assert saved == [6, 12, 15, 20]


ENDLESS = SPEC.replace("kwargs: {T_max: 2}", "kwargs: {T_max: 9}")
"""With a cosine that does not end within the runs here."""


def losses_and_weights(records: list[Any], folder: str) -> tuple[list[Any], dict[str, torch.Tensor]]:
    steps = [(r.step, r.epoch, r.step_in_epoch, r.losses, r.lr) for r in records if isinstance(r, Step)]
    return steps, read_weights(Path(folder) / "student.safetensors")


EMA = "trainer.ema={enable: true, ema_type: linear, kwargs: {decay: 0.9}}"
PLATEAU = "trainer.lr_scheduler={type: ReduceLROnPlateau, kwargs: {patience: 0, factor: 0.5}}"


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's accuracy rises until 13 batches, then it falls: what a schedule that follows it has to notice."""
    real = loop.evaluate

    def measured(net: Any, *rest: Any, **options: Any) -> dict[str, float]:
        metrics = real(net, *rest, **options)
        if options.get("name") != "the student":
            return metrics
        batches = next(b for name, b in net.named_buffers() if name.endswith("num_batches_tracked"))
        return {**metrics, "top1": -abs(float(batches) - 13.0)}

    monkeypatch.setattr(loop, "evaluate", measured)


@pytest.mark.parametrize(
    "key, changes",
    [
        ("max_iter", ["trainer.accumulate_steps=2", EMA, PLATEAU]),
        pytest.param("max_iter", [], marks=pytest.mark.slow),
        pytest.param(
            "max_iter", ["trainer.accumulate_steps=2", "trainer.test_freq=2"], marks=pytest.mark.slow
        ),
        pytest.param("max_iter", [PLATEAU], marks=pytest.mark.slow),
        pytest.param("max_epoch", [EMA], marks=pytest.mark.slow),
        pytest.param("fraction", [EMA], marks=pytest.mark.slow),
    ],
)
def test_a_run_made_longer_goes_on_in_the_same_epoch(key: str, changes: list[str], restless: None) -> None:
    """7 steps of 5 an epoch (or 3), then 16: every loss, rate and weight is that of a run of 16."""
    short, long = {"max_epoch": ("1", "3"), "fraction": ("1.4", "3.2")}.get(key, ("7", "16"))
    whole_epochs, key = key == "max_epoch", "max_epoch" if key == "fraction" else key
    changes = [*changes, "saver.auto_resume=true"]
    records = train_all(spec_of(ENDLESS, f"trainer.{key}={long}", "saver.save_dir=whole", *changes))
    whole, weights = losses_and_weights(records, "whole")
    changes = [*changes, "saver.save_dir=parts"]
    first = train_all(spec_of(ENDLESS, f"trainer.{key}={short}", *changes))
    assert Path("parts/finished.json").exists()
    place = load_checkpoint(checkpoints(Path("parts/checkpoints"))[0])["progress"]
    assert (place["batch"] > 0) != whole_epochs
    rest: list[Any] = []
    with run_of(spec_of(ENDLESS, f"trainer.{key}={long}", *changes)) as run:
        for record in train(run):
            rest.append(record)
            assert isinstance(record, Finished) or not (
                isinstance(record, Step) and Path("parts/finished.json").exists()
            )
    (notice,) = [r.message for r in rest if isinstance(r, Notice) and "made longer" in r.message]
    assert f"trainer.{key} is {long}, it was {short}" in notice
    steps, ended = losses_and_weights([*first, *rest], "parts")
    assert steps == whole
    assert all(torch.equal(ended[key], weights[key]) for key in weights)


def test_a_run_is_not_made_shorter_nor_longer_and_other_unasked() -> None:
    begun("trainer.max_epoch=2")
    assert "trainer.max_epoch" in refused("KD715", "trainer.max_epoch=1", resume=True)
    both = ("trainer.max_epoch=3", "trainer.clip_grad_norm=1")
    said = refused("KD715", *both, resume=True)
    assert "these keys differ: trainer.clip_grad_norm put them" in said  # the length is no reason
    records = train_all(spec_of(SPEC, "trainer.max_epoch=3"), resume=True)
    assert records[-1].step == 15  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_run_that_kdcli_0_2_ended_in_mid_epoch_goes_on_there_too() -> None:
    whole, weights = losses_and_weights(
        train_all(spec_of(ENDLESS, "trainer.max_iter=8", "saver.save_dir=whole")), "whole"
    )
    first = train_all(spec_of(ENDLESS, "trainer.max_iter=7", "saver.save_dir=parts"))
    newest = checkpoints(Path("parts/checkpoints"))[0]
    state = load_checkpoint(newest)
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (1, 2)
    state["progress"] |= {"epoch": 2, "batch": 0}
    save_checkpoint(newest.parent, 7, state, keep=1)
    rest = train_all(spec_of(ENDLESS, "trainer.max_iter=8", "saver.save_dir=parts"), resume=True)
    steps, ended = losses_and_weights([*first, *rest], "parts")
    assert steps == whole and all(torch.equal(ended[key], weights[key]) for key in weights)
