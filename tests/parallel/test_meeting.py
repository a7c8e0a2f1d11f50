"""Processes of a run find each other, and only each other; what differs or is missing is named."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image

from kdcli import waiting as waits
from kdcli.errors import KdError, RunError
from kdcli.parallel import meeting
from kdcli.parallel.distributed import slurm_environment
from kdcli.parallel.launch import in_slurm_step
from kdcli.parallel.meeting import (
    OWNER,
    PATIENCE,
    Member,
    Together,
    absent,
    away,
    meet,
    open_store,
    patience,
    port_of,
    ranks_text,
    this_process,
    token,
    unlike,
)
from tests.parallel.launched import TRAIN, command, prepare, wait_for
from tests.training.processes import free_port


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher of any kind around this process."""
    for name in os.environ:
        if name.startswith(("SLURM", "TORCHELASTIC", "MASTER", "KDCLI", "RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name, raising=False)


def member(world_size: int = 2, host: str = "gpu01", **facts: Any) -> Member:
    return Member(host=host, pid=100, world_size=world_size, facts=facts)


def test_what_differs_is_named_with_both_values() -> None:
    spec = {"trainer": {"lr": 0.05, "betas": [0.9, 0.99]}, "net": [{"type": "a"}]}
    other = {"trainer": {"lr": 0.5, "betas": [0.9, 0.99], "clip": 1}, "net": [{"type": "a"}]}
    first = {"the spec": spec, "version of torch": "2.11"}
    members = {rank: member(4, **first) for rank in range(4)}
    assert unlike(members) is None
    members[1] = members[2] = member(4, **{**first, "the spec": other})
    assert unlike(members) == (
        "the spec differs: `trainer.clip` is absent in processes 0, 3, 1 in processes 1, 2, "
        "`trainer.lr` is 0.05 in processes 0, 3, 0.5 in processes 1, 2"
    )
    members = {0: member(**first), 1: member(**{**first, "version of torch": "2.12"})}
    assert unlike(members) == 'version of torch is "2.11" in process 0, "2.12" in process 1'
    many = {
        0: member(the_spec={str(i): 0 for i in range(9)}),
        1: member(the_spec={str(i): 1 for i in range(9)}),
    }
    assert str(unlike(many)).endswith(", and 4 more keys")


def test_who_is_missing_is_named() -> None:
    members = {rank: member(8, host=f"gpu0{rank // 4}") for rank in range(8) if rank not in (3, 6)}
    (finding,) = absent([3, 6], members, 8, 60.0).diagnostics
    assert finding.code == "KD728"
    assert finding.message == (
        "processes 3, 6 of 8 did not come within 60 s; processes 0 to 2, 4, 5, 7 came, from gpu00, gpu01"
    )
    assert ranks_text([0]) == "process 0" and ranks_text([1, 2, 3, 7]) == "processes 1 to 3, 7"


def test_steps_of_a_job_and_neighbouring_jobs_meet_at_ports_of_their_own() -> None:
    ports = [port_of(str(job), str(step)) for job in range(700, 720) for step in range(10)]
    assert len(set(ports)) >= len(ports) - 3 and all(20000 <= port < 40000 for port in ports)
    assert port_of("700", "3") == port_of("700", "3")


def test_a_run_is_known_by_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    nameless = token()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    first = token()
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert (first, token()) == ("Slurm job 12, step 0", "Slurm job 12, step 1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert "abc" in token() and nameless != first


STEP = {"SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "4", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, False),  # a batch script
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"},
            False,
        ),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", **STEP}, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", **STEP}, True),
        ({"SLURM_PROCID": "3", "SLURM_NPROCS": "4"}, True),
    ],
)
def test_slurm_tasks_are_one_run(
    variables: dict[str, str], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert in_slurm_step() is several
    if several:
        assert slurm_environment()["WORLD_SIZE"] == "4"
    if "SLURM_STEP_ID" in variables and several:
        assert slurm_environment()["MASTER_PORT"] == str(port_of("12", "4"))
        assert slurm_environment()["MASTER_ADDR"] == "gpu07"


@pytest.mark.parametrize("variables", [{"SLURM_PROCID": "3"}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "2"}])
def test_a_slurm_task_that_does_not_know_how_many_there_are_trains_not_alone(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="KD731: this is task 3 of a Slurm step"):
        in_slurm_step()
    monkeypatch.setenv("RANK", "3")
    assert not in_slurm_step() or variables.get("SLURM_NTASKS")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_the_time_to_wait_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience() == 120.0
    monkeypatch.setenv(PATIENCE, "5")
    assert patience() == 5.0
    monkeypatch.setenv(PATIENCE, text)
    with pytest.raises(RunError, match="KD732"):
        patience()


def in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """What each action returns or raises, all at once."""
    outcomes: list[Any] = [None] * len(actions)

    def act(number: int) -> None:
        try:
            outcomes[number] = actions[number]()
        except KdError as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_all_learn_the_same_of_each_other() -> None:
    store = dist.HashStore()
    said = [this_process(3, {"the spec": {"lr": 0.1 if rank < 2 else 0.2}}) for rank in range(3)]
    alike = [replace(one, facts=said[0].facts) for one in said]
    outcomes = in_threads(*(lambda rank=rank: meet(store, rank, alike[rank], 5.0) for rank in range(3)))
    assert outcomes == [dict(enumerate(alike))] * 3
    store = dist.HashStore()
    outcomes = in_threads(*(lambda rank=rank: meet(store, rank, said[rank], 5.0) for rank in range(3)))
    assert outcomes == ["KD727: the spec differs: `lr` is 0.1 in processes 0, 1, 0.2 in process 2"] * 3
    assert {"version of kdcli", "version of torch"} < said[0].facts.keys()


def test_processes_that_would_share_a_gpu_do_not_train() -> None:
    def on(*gpus: str | None) -> list[Any]:
        store = dist.HashStore()
        said = [replace(member(len(gpus), host=f"gpu0{rank // 2}"), gpu=gpu) for rank, gpu in enumerate(gpus)]
        return in_threads(
            *(lambda rank=rank: meet(store, rank, said[rank], 5.0) for rank in range(len(gpus)))
        )

    # Two machines may give the same name, and processes on CPUs have none.
    assert all(isinstance(one, dict) for one in [*on("GPU-a", "GPU-b", "GPU-a"), *on(None, None)])
    assert (
        on("GPU-a", "GPU-b", "GPU-c", "GPU-c")
        == ["KD720: processes 2, 3 of 4 would share one CUDA device of gpu01: GPU-c"] * 4
    )


def test_whoever_is_of_another_run_or_another_size_or_there_twice_is_turned_away() -> None:
    store = dist.HashStore()
    store.set(OWNER, "Slurm job 12, step 0")
    (said,) = in_threads(lambda: meet(store, 1, member(), 1.0))
    assert said.startswith("KD729: the processes of another run meet at") and "(Slurm job 12, step 0)" in said
    assert not store.check(["kdcli/said/1"])
    store = dist.HashStore()
    outcomes = in_threads(lambda: meet(store, 0, member(2), 1.0), lambda: meet(store, 1, member(3), 1.0))
    assert "this process is one of 3, and process 0 one of 2: WORLD_SIZE differs" in outcomes[1]
    store = dist.HashStore()
    outcomes = in_threads(*[lambda: meet(store, 0, member(2), 0.3)] * 2)
    assert sorted(outcome[:5] for outcome in outcomes) == ["KD728", "KD729"]
    assert any("a process 0 of this run is here already (gpu01, pid 100)" in outcome for outcome in outcomes)


def test_a_place_where_nobody_is_or_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="KD732: the processes don't know where to meet"):
        open_store(1, 2, 1.0)
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(RunError, match=f"KD728: process 1 of 2 waited 0 s for process 0 at 127.0.0.1:{port}"):
        open_store(1, 2, 0.2)


HERE = {rank: member(3, host=f"gpu0{rank}") for rank in range(3)}


@pytest.mark.parametrize(
    ("waiting", "speaker", "words"),
    [
        ({0: ("step 5", True), 2: ("step 5", True)}, 0, "process 1 (gpu01, pid 100), to come to step 5"),
        (
            {0: ("step 5", True), 1: ("data worker 2", False), 2: ("step 5", True)},
            0,
            "process 1 (gpu01, pid 100), which waits for data worker 2, to come to step 5",
        ),
        (
            {1: ("step 5", True)},
            1,
            "process 0 (gpu00, pid 100); process 2 (gpu02, pid 100), to come to step 5",
        ),
        (
            {0: ("step 5", True), 1: ("step 5", True), 2: ("step 6", True)},
            0,
            "process 2 (gpu02, pid 100), which waits for step 6, to come to step 5",
        ),
    ],
)
def test_who_keeps_the_others_waiting_is_named_by_one(
    waiting: dict[int, tuple[str, bool]], speaker: int, words: str
) -> None:
    said = {rank: away(waiting[rank][0], rank, HERE, waiting) for rank in waiting if waiting[rank][1]}
    assert {rank for rank, text in said.items() if text is not None} == {speaker}
    assert said[speaker] == words


def test_where_all_wait_in_one_place_nobody_is_blamed() -> None:
    waiting = {rank: ("step 5", True) for rank in HERE}
    assert all(away("step 5", rank, HERE, waiting) is None for rank in HERE)


def test_a_wait_for_the_others_is_told_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waits, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(waits, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(meeting, "SETTLE_SECONDS", 0.02)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", free_port(), is_master=True, wait_for_workers=False
    )
    first, second = (Together(store, rank, {rank: HERE[rank] for rank in (0, 1)}) for rank in (0, 1))
    second.say("data worker 2")
    words = "waiting for process 1 (gpu01, pid 100), which waits for data worker 2, to come to step 5 ("
    said, until = "", time.monotonic() + 20.0
    with first.at("step 5"):
        while words not in said and time.monotonic() < until:
            time.sleep(0.02)
            said += capsys.readouterr().err
    assert words in said
    assert not store.check(["kdcli/waits/0"]) and store.check(["kdcli/waits/1"])
    second.say(None)
    assert not store.check(["kdcli/waits/1"])


def task(folder: Path, rank: int, *words: str, **places: Any) -> Any:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", **places}
    return command(folder, *TRAIN, *words, **variables)


@pytest.mark.slow
def test_processes_that_were_told_another_lr_do_not_train(folder: Path) -> None:
    parts, port = prepare(folder / "parts"), free_port()
    rates = [f"trainer.optimizer.kwargs.lr={rate}" for rate in (0.05, 0.5)]
    tasks = [task(parts, rank, rates[rank], MASTER_PORT=port) for rank in (0, 1)]
    assert [one.code() for one in tasks] == [1, 1], tasks[0].screen() + tasks[1].screen()
    for one in tasks:
        said = "the spec differs: `trainer.optimizer.kwargs.lr` is 0.05 in process 0, 0.5 in process 1"
        assert f"error KD727: {said}" in one.screen()
    assert not (parts / "out").exists()


@pytest.mark.slow
def test_two_steps_of_a_slurm_job_are_two_runs(folder: Path) -> None:
    parts = prepare(folder / "parts")
    tasks = {
        (step, rank): command(
            parts,
            *(*TRAIN, f"saver.save_dir=out{step}", "trainer.max_epoch=1"),
            SLURM_JOB_ID=4711,
            SLURM_STEP_ID=step,
            SLURM_NTASKS=2,
            SLURM_STEP_NODELIST="localhost",
            SLURM_PROCID=rank,
            SLURM_LOCALID=rank,
        )
        for step in (0, 1)
        for rank in (0, 1)
    }
    assert all(one.code() == 0 for one in tasks.values()), [one.screen() for one in tasks.values()]
    for step in (0, 1):
        assert (parts / f"out{step}" / "student.safetensors").exists()
        assert " 2 processes " in tasks[step, 0].screen() and tasks[step, 1].screen() == ""


@pytest.mark.slow
def test_a_stopped_process_is_named(folder: Path) -> None:
    parts, port = prepare(folder / "parts", "1 sleep"), free_port()
    tasks = [task(parts, rank, MASTER_PORT=port) for rank in (0, 1)]
    wait_for(parts / "asleep")
    until = time.monotonic() + 60.0
    while "waiting for process 1" not in tasks[0].screen() and time.monotonic() < until:
        time.sleep(0.2)
    for one in tasks:
        one.process.kill()
        one.process.wait()
    assert f", pid {tasks[1].process.pid}), to come to the gradients of step " in tasks[0].screen()


@pytest.mark.slow
def test_processes_that_find_other_data_do_not_train(folder: Path) -> None:
    parts = [prepare(folder / name) for name in ("one", "other")]
    for place, count in zip(parts, (8, 9), strict=True):
        for number in range(count):
            image = place / "images" / "ab"[number % 2] / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * number).save(image)
    data = "{type: image_folder, kwargs: {root: images, transformer: [{type: grayscale}, {type: to_tensor}]}}"
    port = free_port()
    tasks = [
        task(
            parts[rank],
            rank,
            f"dataset.train.dataset={data}",
            "net.kwargs.num_classes=2",
            "teacher0.kwargs.num_classes=2",
            f"dataset.test.dataset={data}",
            "--no-check",
            MASTER_PORT=port,
        )
        for rank in (0, 1)
    ]
    said = "process 1 found other training data than process 0: 9 samples there, 8 in process 0; one that differs is"
    assert [one.code() for one in tasks] == [1, 1], tasks[0].screen() + tasks[1].screen()
    assert all(f"error KD727: {said} `a/8.png`" in one.screen() for one in tasks), tasks[0].screen()
