"""The number that `num_workers: auto` is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcli.data import build, workers
from kdcli.data.workers import automatic_workers, local_processes, usable_cores

LARGE = {"images": 100_000, "batches": 800, "in_memory": False}


@pytest.mark.parametrize(
    ("cores", "processes", "on_cuda", "number"),
    [
        (8, 1, True, 7),  # one core drives the device
        (64, 8, True, 7),
        (128, 1, True, 16),
        (1, 1, True, 1),
        (0.5, 1, True, 1),
        (2, 8, True, 1),
        (2, 1, False, 0),  # on the CPU the training is what takes long
        (4, 1, False, 1),
        (16, 1, False, 4),
        (128, 1, False, 4),
        (16, 4, False, 1),
    ],
)
def test_the_number_by_cores(cores: float, processes: int, on_cuda: bool, number: int) -> None:
    assert automatic_workers(cores=cores, processes=processes, on_cuda=on_cuda, **LARGE) == number


def test_the_number_by_data() -> None:
    few: dict[str, Any] = {"cores": 32, "processes": 1, "in_memory": False}
    assert automatic_workers(on_cuda=True, images=40, batches=3, **few) == 3
    assert automatic_workers(on_cuda=True, images=1, batches=1, **few) == 1
    assert automatic_workers(on_cuda=False, images=999, batches=100, **few) == 0
    assert automatic_workers(on_cuda=False, images=1000, batches=2, **few) == 2
    held: dict[str, Any] = {**few, "in_memory": True, "images": 60_000, "batches": 500}
    assert automatic_workers(on_cuda=False, **held) == 0
    assert automatic_workers(on_cuda=True, **held) == 1


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_quota_counts_whichever_group_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(tmp_path) == 8
    files(tmp_path, proc__self__cgroup="0::/a/b\n", sys__fs__cgroup__a__cpu_dot_max="150000 100000\n")
    assert usable_cores(tmp_path) == 1.5
    files(tmp_path, sys__fs__cgroup__a__b__cpu_dot_max="max 100000\n")
    assert usable_cores(tmp_path) == 1.5
    files(tmp_path, sys__fs__cgroup__cpu_dot_max="50000 100000\n")
    assert usable_cores(tmp_path) == 0.5


def test_a_quota_of_the_first_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    files(tmp_path, proc__self__cgroup="4:memory:/x\n3:cpu,cpuacct:/docker/1\n")
    top = "sys__fs__cgroup__cpu__cpu_dot_cfs_"
    files(tmp_path, **{f"{top}quota_us": "-1\n", f"{top}period_us": "100000\n"})
    assert usable_cores(tmp_path) == 8
    files(tmp_path, **{f"{top}quota_us": "250000\n"})
    assert usable_cores(tmp_path) == 2.5


def test_processes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert local_processes(8) == 8
    for said, number in (("4", 4), ("9", 8), ("0", 8), ("x", 8)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", said)
        assert local_processes(8) == number


def test_the_loader_says_what_auto_is(part: Any, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "usable_cores", lambda: 4.0)

    def said(**dataloader: Any) -> tuple[int, tuple[str, ...]]:
        samples = dataloader.pop("num_samples", 20)
        kwargs = {"in_memory": False, **dataloader}
        made = loader(part("fake", num_samples=samples, shape=[1, 2, 2], dataloader=kwargs))
        return made.workers, made.notices

    assert said(num_samples=1200) == (1, ("`num_workers: auto` is 1 here: 4 cores, 150 batches",))
    assert said() == (0, ())
    assert said(num_workers="auto") == (0, ("`num_workers: auto` is 0 here: 4 cores, 3 batches",))
    assert said(num_workers=2) == (2, ())
    assert said(num_samples=1200, in_memory=True) == (0, ())
