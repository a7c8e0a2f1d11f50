"""What is to be started, who is a worker already, and which of many failures is told."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.cli.parameters import with_optional_values
from kdcli.commands.options import TrainOptions
from kdcli.commands.train import train
from kdcli.errors import KdError, RunError
from kdcli.parallel.devices import choose_device
from kdcli.parallel.distributed import first_host, slurm_environment
from kdcli.parallel.launch import (
    LAUNCHER,
    MARKS,
    PARTS,
    SHUTDOWN_SECONDS,
    Launch,
    _patience,
    _tell,
    device_index,
    expose_gpus,
    has_own_gpus,
    is_worker,
    plan_launch,
    started_again,
    tell_launcher,
)
from tests.training.runs import SPEC

PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHER, MARKS, PARTS)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher of any kind around this process."""
    for name in [*PLACES, *(n for n in os.environ if n.startswith(("SLURM", "TORCHELASTIC")))]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """As if this machine had eight, the last four visible; what CUDA_VISIBLE_DEVICES was each time CUDA was asked.

    As in CUDA itself, what is set when it is first asked holds for the whole process.
    """
    asked: list[str | None] = []

    def count() -> int:
        asked.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        text = "0,1,2,3,4,5,6,7" if asked[0] is None else asked[0]
        known = [str(number) for number in range(8)] + [f"GPU-{letter}0" for letter in "abcd"]
        # CUDA counts up to the first that it does not find, and one part of a GPU at most.
        there = list(
            itertools.takewhile(lambda name: name in known or name.startswith("MIG-"), text.split(","))
        )
        return 1 if there and there[0].startswith("MIG-") else len(there)

    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count() > 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    return asked


def planned(**options: Any) -> Launch | None:
    """As `kdcli train` does it."""
    expose_gpus(options.get("gpus"))
    return plan_launch(**options)


@pytest.mark.parametrize(
    ("options", "processes", "visible"),
    [
        ({"gpus": "3"}, 3, "4,5,6,7"),
        ({"gpus": "0,2"}, 2, "4,6"),
        ({"device": "cuda", "nproc": 4}, 4, "4,5,6,7"),
        ({"gpus": "GPU-a0,GPU-c0"}, 2, "GPU-a0,GPU-c0"),
    ],
)
def test_gpus_by_number_or_by_name(
    gpus: list[str | None], options: dict[str, Any], processes: int, visible: str
) -> None:
    assert planned(**options) == Launch(processes=processes)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        ("GPU-a0,GPU-b0,GPU-d0", "2,0", "GPU-d0,GPU-a0"),
        ("GPU-a0,GPU-b0,GPU-d0", "GPU-d,GPU-b0", "GPU-d0,GPU-b0"),
        ("MIG-1/2,MIG-3/4,MIG-5/6", "0,2", "MIG-1/2,MIG-5/6"),
        (None, "MIG-1/2,MIG-3/4", "MIG-1/2,MIG-3/4"),
        ("MIG-1/2,MIG-3/4", "2", "MIG-1/2,MIG-3/4"),
    ],
)
def test_names_of_gpus_and_of_their_parts_are_counted_and_chosen(
    gpus: list[str | None], before: str | None, text: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    assert planned(gpus=text) == Launch(processes=2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


def test_one_gpu_by_its_name_is_one_process(gpus: list[str | None]) -> None:
    assert planned(gpus="GPU-b0") is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b0"


def test_each_worker_sees_its_own_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", PARTS: "MIG-1/2,MIG-3/4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1/2,MIG-3/4")
    expose_gpus("2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-3/4"
    assert device_index(1, visible=1) == 0


def test_gpus_are_counted_without_starting_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.is_available starts CUDA, after which CUDA_VISIBLE_DEVICES counts no more."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("CUDA was started"))
    assert planned(gpus="0,1,2") == Launch(processes=3)
    assert planned(device="cuda", nproc=2) == Launch(processes=2)


@pytest.mark.parametrize("options", [{}, {"gpus": "1"}, {"gpus": "2,"}, {"nproc": 1, "device": "cpu"}])
def test_one_process_is_no_launch(gpus: list[str | None], options: dict[str, Any]) -> None:
    assert planned(**options) is None


@pytest.mark.parametrize(("before", "seen"), [("4,5,6,7", "6"), (None, "2")])
def test_a_single_gpu_is_chosen_before_cuda_is_asked(
    gpus: list[str | None], before: str | None, seen: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--gpus 2,` trained on GPU 0: CUDA had been asked how many there are, and kept what it saw then."""
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append(str(device)))
    used: list[str] = []
    Path("cfg.yaml").write_text(SPEC)
    with pytest.raises(RunError, match="building the run failed"):  # no CUDA in this build, or no driver
        train(TrainOptions(spec="cfg.yaml", gpus="2,"))
    assert used == ["cuda:0"], "the first of those visible"
    assert gpus and set(gpus) == {seen}


def test_one_process_that_is_to_be_restarted_is_one() -> None:
    assert plan_launch(device="cpu", max_restarts=2) == Launch(processes=1, max_restarts=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": "2", "device": "cpu"}, "exclude each other"),
        ({"gpus": "2", "nproc": 2}, "exclude each other"),
        ({"gpus": "two"}, "neither a number nor a list"),
        ({"gpus": "1,1"}, "twice"),
        ({"gpus": "0"}, "counts from 1"),
        ({"gpus": "5"}, "5 CUDA device"),
        ({"gpus": "0,7"}, "no CUDA device 7 among those of CUDA_VISIBLE_DEVICES=4,5,6,7"),
        ({"gpus": "GPU-a0,GPU-x"}, "no CUDA device GPU-x"),
        ({"gpus": "GPU-a0,1"}, "neither a number nor a list"),
        ({"gpus": "GPU-a0,GPU-a0"}, "twice"),
        ({"nnodes": 2}, "--rdzv-endpoint"),
        ({"nnodes": 2, "node_rank": 2, "rdzv_endpoint": "a:1"}, "from 0 to 1"),
        ({"nproc": 0}, "count from 1"),
    ],
)
def test_options_that_cannot_be(gpus: list[str | None], options: dict[str, Any], said: str) -> None:
    with pytest.raises(KdError, match=said):
        planned(**options)


def test_a_listed_gpu_that_is_not_there(gpus: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(RunError, match="no CUDA device 9"):
        planned(gpus="0,9,1")


@pytest.mark.parametrize("hidden", ["", "-1", "none"])
def test_hidden_gpus_stay_hidden(
    gpus: list[str | None], hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    for text in ("0,1", "GPU-a0,GPU-b0"):
        with pytest.raises(RunError, match=f"no CUDA device .* among those of CUDA_VISIBLE_DEVICES={hidden}"):
            planned(gpus=text)
    with pytest.raises(RunError, match=r"2 CUDA device.* 0 visible"):
        planned(gpus="2")


@pytest.mark.parametrize(("text", "said"), [("GPU-e", "GPU-e"), ("GPU-a", "GPU-a")])
def test_a_name_that_fits_none_or_several_visible_gpus(
    gpus: list[str | None], text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a0,GPU-a1")
    with pytest.raises(RunError, match=f"no CUDA device {said} among"):
        planned(gpus=text)


@pytest.mark.parametrize(
    ("places", "worker"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),  # the batch script, not a task of srun's
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ],
)
def test_under_another_launcher_nothing_is_launched(
    places: dict[str, str], worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    assert is_worker() is worker
    assert (plan_launch(device="cpu", nproc=2) is None) is worker


@pytest.mark.parametrize(
    ("said", "own"),
    [
        ({}, False),
        ({"SLURM_GPUS_PER_TASK": "1"}, True),
        ({"SLURM_TRES_PER_TASK": "cpu:8,gres/gpu:1"}, True),
        ({"SLURM_TRES_PER_TASK": "cpu=8"}, False),
        ({"SLURM_NTASKS_PER_GPU": "1"}, True),
        ({"SLURM_GPU_BIND": "single:1"}, True),
        ({"SLURM_GPUS_PER_TASK": "1", "SLURM_GPU_BIND": "none"}, False),
    ],
)
def test_a_slurm_task_with_gpus_of_its_own_takes_its_first(
    said: dict[str, str], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"} | said
    ).items():
        monkeypatch.setenv(name, value)
    assert has_own_gpus() is own
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 if own else 4)
    assert choose_device("cuda", 2) == torch.device("cuda", 0 if own else 2)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not has_own_gpus()


def test_a_slurm_task_that_sees_one_gpu_takes_it_and_others_need_one_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A binding that no variable tells; whether the one is its own shows when the processes meet."""
    for name, value in {"SLURM_PROCID": "6", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert device_index(2, visible=1) == 0
    assert [device_index(number, visible=4) for number in range(4)] == [0, 1, 2, 3]
    for visible in (0, 2):
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "4")
        if visible:
            for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
                monkeypatch.delenv(name)
        with pytest.raises(RunError, match=f"KD720: 3 CUDA device.* {visible} visible"):
            device_index(2, visible)


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu[07-09,12],login", "gpu07"), ("a,b", "a"), ("n3", "n3"), ("x[1,3]", "x1")]
)
def test_the_processes_meet_on_slurms_first_host(
    nodes: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_host(nodes) == host
    for name, value in {
        "PROCID": "3",
        "LOCALID": "1",
        "STEP_NUM_TASKS": "4",
        "JOB_ID": "12",
        "NODELIST": nodes,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_PORT", "29511")
    assert slurm_environment() == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": "29511",
    }


def failure(path: Path, rank: int, exitcode: int, **told: Any) -> Any:
    """What the launcher learns of a worker: its exit code, and what it has left in a file."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = path / f"error_{rank}.json"
    if told:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(LAUNCHER, "1")
            patch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
            assert tell_launcher(told["text"], told.get("codes", ()))
    return ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file=str(file))


def test_the_reason_is_told_and_what_follows_from_it_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = failure(folder, 0, 1, text="lost another", codes=["KD722"])
    reason = failure(folder, 1, 3, text="the reason")
    stopped, killed = failure(folder, 2, -signal.SIGTERM), failure(folder, 3, -signal.SIGKILL)
    assert _tell([lost, reason, stopped]) == 3
    assert capsys.readouterr().err == "the reason"
    with pytest.raises(RunError, match="KD723: process 3 of this machine was killed by SIGKILL"):
        _tell([lost, stopped, killed])
    assert capsys.readouterr().err == ""
    assert _tell([lost, failure(folder, 4, -signal.SIGTERM, text="told in time")]) == 1
    assert capsys.readouterr().err == "told in time"
    assert _tell([stopped, lost]) == 1
    assert capsys.readouterr().err == "lost another"


def test_before_a_restart_one_process_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tell_launcher("said by itself")
    monkeypatch.setenv(LAUNCHER, "1")
    monkeypatch.setenv(MARKS, str(folder))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert [tell_launcher("the reason"), tell_launcher("the reason")] == [False, True]
    assert tell_launcher("lost another", ["KD722"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert tell_launcher("the reason") and (folder / "error.json").exists()


def test_a_process_knows_that_one_was_there_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not started_again()
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert started_again(), "torchrun's own count"
    # Restarts that another machine asks for are not counted.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv(MARKS, str(folder))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [started_again(), started_again()] == [False, True]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not started_again()


def test_a_launcher_that_has_no_time_for_shutting_down_is_given_none() -> None:
    """torch 2.11's has not."""

    @dataclass
    class Old:
        max_restarts: int = 0

    @dataclass
    class New(Old):
        shutdown_timeout: int = 30

    assert _patience(Old) == {} and _patience(New) == {"shutdown_timeout": SHUTDOWN_SECONDS}


def test_the_command_that_continues_is_the_same_one_with_resume() -> None:
    arguments = TrainOptions(
        spec="a b.yaml",
        changes=("trainer.max_epoch=3",),
        device="cpu",
        nproc=2,
        max_restarts=1,
        overwrite=True,
        allow_changed=("saver",),
        plugins=("own",),
    )
    assert arguments.again() == (
        "kdcli train 'a b.yaml' trainer.max_epoch=3 --device cpu --nproc 2 --max-restarts 1 --plugin own --resume"
    )
    assert TrainOptions(spec="a.yaml", gpus="8").again() == "kdcli train a.yaml --gpus 8 --resume"


def test_resume_takes_a_checkpoint_or_nothing(folder: Path) -> None:
    Path("a=b.pt").touch()
    for following in (["a.yaml"], ["--quiet"], ["trainer.max_epoch=2"], []):
        assert with_optional_values(["--resume", *following], TrainOptions) == ["--resume=auto", *following]
    for following in (["auto"], ["run/checkpoints"], ["missing.pt"], ["a=b.pt"]):
        assert with_optional_values(["--resume", *following], TrainOptions) == ["--resume", *following]
    worker = TrainOptions(spec="a.yaml", resume="auto", overwrite=True).for_worker()
    assert with_optional_values(worker, TrainOptions) == worker
