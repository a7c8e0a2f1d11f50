"""The same batches for any number of workers, processes and resume points."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from kdcli import waiting
from kdcli.data.batches import BatchKey
from kdcli.errors import RunError, SpecError

AUGMENT: list[dict[str, Any]] = [
    {"type": "torch_random_crop", "kwargs": {"size": 12, "padding": 2}},
    {"type": "torch_random_horizontal_flip"},
    {"type": "torchvision.RandomErasing", "kwargs": {"p": 0.5}},
    {"type": "to_tensor"},
    {"type": "normalize", "kwargs": {"mean": [0.5], "std": [0.5]}},
    {"type": "cutout", "kwargs": {"size": 3}},
]
MIXUP = {"type": "batch_mixup", "kwargs": {"alpha": 1.0, "num_classes": 4}}


def side(part: Any, **dataloader: Any) -> Any:
    return part(
        "fake",
        num_samples=30,
        num_classes=4,
        shape=[3, 12, 12],
        transformer=AUGMENT,
        dataloader={"batch_fn": MIXUP, **dataloader},
    )


def run(loader: Any, epoch: int = 0, start: int = 0) -> list[dict[str, Tensor]]:
    return [dict(batch) for batch in loader.batches(epoch, start)]


def same(left: list[dict[str, Tensor]], right: list[dict[str, Tensor]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(left, right, strict=True)
    )


def test_batches_look_as_promised(part: Any, loader: Any) -> None:
    made = loader(part("fake", num_samples=30, num_classes=4, shape=[3, 12, 12]))
    batches = list(made.batches(0))
    assert len(made) == len(batches) == 4 and made.batch_size == 8
    for batch in batches:
        assert batch["image"].dtype == torch.float32 and batch["image"].shape[1:] == (3, 12, 12)
        assert batch["image"].is_contiguous()
        assert batch["labels"].dtype == batch["indices"].dtype == torch.int64
        with pytest.raises(TypeError):
            batch["image"] = 0
    assert sorted(torch.cat([b["indices"] for b in batches]).tolist()) == sorted([*range(30)])


def test_the_same_pixels_in_memory_one_by_one_and_in_workers(part: Any, loader: Any) -> None:
    wanted = run(loader(side(part)), 1)
    assert same(wanted, run(loader(side(part, in_memory=False)), 1))
    for workers in (1, 2):
        made = loader(side(part, in_memory=False, num_workers=workers))
        assert same(wanted, run(made, 1))
        assert same(wanted[2:], run(made, 1, start=2)), "persistent workers, resumed"


@pytest.mark.parametrize("dataloader", [{}, {"in_memory": False}])
def test_epochs_differ_repeat_and_resume(part: Any, loader: Any, dataloader: dict[str, Any]) -> None:
    made = loader(side(part, **dataloader))
    first, second, again = run(made, 0), run(made, 1), run(made, 0)
    assert same(first, again) and not same(first, second)
    assert same(first[3:], run(loader(side(part, **dataloader)), 0, start=3))
    assert not same(first, run(loader(side(part, **dataloader), seed=1), 0))


def test_a_broken_off_epoch_leaves_nothing_behind(part: Any, loader: Any) -> None:
    made = loader(side(part, in_memory=False, num_workers=2))
    wanted = run(made, 0)
    next(made.batches(0))
    assert same(wanted, run(made, 0))
    made.close()
    assert same(wanted, run(made, 0))


def test_two_ranks_see_together_what_one_process_sees(part: Any, loader: Any) -> None:
    def pixels(batch_size: int, **rank: int) -> dict[int, Tensor]:
        one = part("fake", num_samples=30, shape=[3, 12, 12], transformer=AUGMENT, batch_size=batch_size)
        batches = run(loader(one, **rank), 2)
        return {int(i): image for b in batches for i, image in zip(b["indices"], b["image"], strict=True)}

    alone = pixels(8)
    shared = pixels(4, rank=0, world_size=2) | pixels(4, rank=1, world_size=2)
    assert alone.keys() == shared.keys() and all(torch.equal(alone[i], shared[i]) for i in alone)


def test_views_repeat_augmentation_but_not_order(part: Any, loader: Any) -> None:
    plain = part("fake", num_samples=30, shape=[3, 12, 12], transformer=AUGMENT, batch_size=30)
    made = loader(plain, views=2)
    first, third = run(made, 0)[0], run(made, 2)[0]
    assert not torch.equal(first["indices"], third["indices"])
    back = [x["image"][x["indices"].argsort()] for x in (first, third)]
    assert torch.equal(*back)
    assert not torch.equal(back[0], run(made, 1)[0]["image"][run(made, 1)[0]["indices"].argsort()])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_main_generators_are_left_alone(part: Any, loader: Any, workers: int) -> None:
    def state() -> tuple[Any, ...]:
        return torch.rand(2).tolist(), np.random.rand(), random.random()

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    wanted = state()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    run(loader(side(part, in_memory=False, num_workers=workers)))
    assert state() == wanted


def test_a_thread_ahead_gives_the_same_batches(part: Any, loader: Any) -> None:
    made = loader(part("fake", num_samples=30, shape=[3, 12, 12], transformer=AUGMENT[:2]))
    wanted = run(made, 0)
    made._prefetch = True
    assert same(wanted, run(made, 0))
    next(made.batches(0))


def test_workers_ignore_the_signals_that_end_a_run(part: Any, loader: Any) -> None:
    made = loader(side(part, in_memory=False, num_workers=2))
    batches = made.batches(0)
    got = [dict(next(batches))]
    for worker in made._workers._iterator._workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    got += [dict(batch) for batch in batches]
    assert same(got, run(loader(side(part)), 0))


@pytest.mark.slow
def test_python_ends_though_nobody_closed_the_loader(part: Any, tmp_path: Path) -> None:
    code = """if True:
        import sys, pickle
        from kdcli.data.build import build_loader, build_source, open_source
        part = pickle.load(open(sys.argv[1], "rb"))
        side = {"train": True, "path": ("dataset", "train")}
        loader = build_loader(open_source(build_source(part, **side), part, **side), seed=0)
        batches = loader.batches(0)
        next(batches)
        raise SystemExit("over")
    """
    (tmp_path / "part").write_bytes(pickle.dumps(side(part, in_memory=False, num_workers=2)))
    command = [sys.executable, "-c", code, str(tmp_path / "part")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "over"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "told_by_the_system"),
    [("fork", True), ("forkserver", True), ("forkserver", False), ("spawn", True)],
)
def test_workers_end_with_a_main_process_that_is_killed(
    part: Any, tmp_path: Path, method: str, told_by_the_system: bool
) -> None:
    code = """if True:
        import multiprocessing, os, pickle, sys, time
        from kdcli.data.build import build_loader, build_source, open_source
        from kdcli.data import loaders
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[2])
            part = pickle.load(open(sys.argv[1], "rb"))
            side = {"train": True, "path": ("dataset", "train")}
            loader = build_loader(open_source(build_source(part, **side), part, **side), seed=0)
            batches = loader.batches(0)
            next(batches)
            print(*[worker.pid for worker in loader._workers._iterator._workers], flush=True)
            time.sleep(60)
    """
    if not told_by_the_system:
        code = f"import os; del os.pidfd_open\n{code}"
    (tmp_path / "main.py").write_text(code)
    (tmp_path / "part").write_bytes(pickle.dumps(side(part, in_memory=False, num_workers=2)))
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "part"), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2 and all(map(lives, workers))
        main.kill()
    until = time.monotonic() + 30.0
    while any(map(lives, workers)):
        assert time.monotonic() < until, "data workers outlive their run"
        time.sleep(0.1)


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_dead_worker_is_one_clear_error(part: Any, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch looks for dead workers whenever a batch takes longer than this; 5 seconds as it comes.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    made = loader(part("fake", num_samples=4000, dataloader={"in_memory": False, "num_workers": 1}))
    batches = made.batches(0)
    next(batches)
    os.kill(made._workers._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RunError, match="KD516"):
        list(batches)


def test_readers_can_be_sent_to_other_processes(part: Any, loader: Any) -> None:
    made = loader(side(part, in_memory=False))
    key = BatchKey(0, 0, 0, np.array([1, 2]))
    assert same([pickle.loads(pickle.dumps(made._reader))[key][0]], [made._reader[key][0]])


def test_test_data_is_seen_once_over_the_ranks(part: Any, loader: Any) -> None:
    one = part("fake", num_samples=13, batch_size=4)
    seen = [
        torch.cat([b["indices"] for b in loader(one, train=False, rank=rank, world_size=3).batches(0)])
        for rank in range(3)
    ]
    assert sorted(torch.cat(seen).tolist()) == list(range(13))


def test_nothing_left_of_an_epoch_is_an_error(part: Any, loader: Any) -> None:
    with pytest.raises(SpecError, match="KD509"):
        loader(part("fake", num_samples=5, batch_sampler={"kwargs": {"batch_size": 8, "drop_last": True}}))


def test_mixing_wants_as_many_classes_as_the_labels(part: Any, loader: Any) -> None:
    with pytest.raises(SpecError, match="KD515"):
        loader(part("fake", num_classes=5, dataloader={"batch_fn": MIXUP}))


def test_mixed_labels_are_of_the_datas_classes_where_the_spec_does_not_say(part: Any, loader: Any) -> None:
    mixing = {"type": "batch_mixup", "kwargs": {"alpha": 1.0}}
    made = loader(part("fake", num_classes=5, dataloader={"batch_fn": mixing}))
    assert next(made.batches(0))["mixed_labels"].shape[1] == 5


# files


def folder(place: Path, sizes: list[tuple[int, int]], bad: tuple[int, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for number, (w, h) in enumerate(sizes):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(place / name)
        if number in bad:
            (place / name).write_bytes((place / name).read_bytes()[:100])
        lines.append(f"{name} {number % 3}")
    (place / "list.txt").write_text("\n".join(lines))
    return place


def files(part: Any, place: Path, size: list[int] | None = None, **dataloader: Any) -> Any:
    transformer: list[dict[str, Any]] = [
        {"type": "torch_random_horizontal_flip"},
        {"type": "torch_color_jitter", "kwargs": {"contrast": 0.4, "hue": 0.1}},
    ]
    if size:
        transformer.insert(0, {"type": "torch_resize", "kwargs": {"size": size}})
    return part(
        "cls",
        batch_size=4,
        meta_file=str(place / "list.txt"),
        image_reader={"type": "fs_pillow", "kwargs": {"image_dir": str(place)}},
        transformer=transformer,
        dataloader=dataloader,
    )


def test_files_in_memory_are_the_files(part: Any, loader: Any, tmp_path: Path) -> None:
    folder(tmp_path, [(10, 8), (9, 9), (150, 200), (20, 30), (5, 6), (8, 8)])
    wanted = run(loader(files(part, tmp_path, [12, 12])), 1)
    assert wanted[0]["image"].shape == (4, 3, 12, 12)
    assert same(wanted, run(loader(files(part, tmp_path, [12, 12], in_memory=True)), 1))
    assert same(wanted, run(loader(files(part, tmp_path, [12, 12], num_workers=2)), 1))


def test_sizes_that_do_not_match_are_named(part: Any, loader: Any, tmp_path: Path) -> None:
    folder(tmp_path, [(10, 8), (10, 9)])
    with pytest.raises(SpecError, match=r"KD508.*1\.png"):
        loader(files(part, tmp_path, in_memory=True))
    with pytest.raises(RunError, match=r"KD517.*3x8x10"):
        run(loader(files(part, tmp_path)))


@pytest.mark.parametrize("dataloader", [{}, {"num_workers": 2}, {"in_memory": True}])
def test_a_bad_sample_stops_with_its_name(
    part: Any, loader: Any, tmp_path: Path, dataloader: dict[str, Any]
) -> None:
    folder(tmp_path, [(8, 8)] * 9, bad=(5,))
    with pytest.raises(RunError, match=r"KD511.*5\.png"):
        run(loader(files(part, tmp_path, **dataloader)))


def test_skipped_bad_samples_are_replaced_counted_and_told(part: Any, loader: Any, tmp_path: Path) -> None:
    folder(tmp_path, [(8, 8)] * 9, bad=(4, 5, 8))
    ways: list[dict[str, Any]] = [{}, {"num_workers": 2}, {"in_memory": True}]
    runs = []
    for way in ways:
        made = loader(files(part, tmp_path, on_bad_sample="skip", **way))
        runs.append(run(made, 0))
        run(made, 1)
        assert sorted(bad.sample for bad in made.bad_samples) == [4, 5, 8]
        assert made.bad_samples[0].name.endswith(".png") and made.bad_samples[0].reason
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])
    indices = sorted(torch.cat([b["indices"] for b in runs[0]]).tolist())
    assert indices == [0, 0, 1, 2, 3, 6, 6, 6, 7]
    for way in ways:
        made = loader(files(part, tmp_path, on_bad_sample="skip", **way), train=False)
        seen = torch.cat([b["indices"] for b in run(made)])
        assert seen.tolist() == [0, 1, 2, 3, 6, 7], "test samples are left out"


@pytest.mark.parametrize("way", [{}, {"in_memory": True}])
def test_more_bad_samples_than_the_budget_stop(
    part: Any, loader: Any, tmp_path: Path, way: dict[str, Any]
) -> None:
    folder(tmp_path, [(8, 8)] * 9, bad=(4, 5, 8))
    with pytest.raises(RunError, match="KD512"):
        run(loader(files(part, tmp_path, on_bad_sample="skip", bad_sample_budget=2, **way)))


@pytest.mark.parametrize(("budget", "stops"), [(0.3, True), (0.34, False), (2, True), (3, False)])
def test_a_budget_may_be_a_share_of_all_samples(
    part: Any, loader: Any, tmp_path: Path, budget: float, stops: bool
) -> None:
    folder(tmp_path, [(8, 8)] * 9, bad=(4, 5, 8))
    made = loader(files(part, tmp_path, on_bad_sample="skip", bad_sample_budget=budget))
    if not stops:
        run(made)
        return
    said = r"30% of 9 = 2" if budget == 0.3 else "2"
    with pytest.raises(RunError, match=rf"KD512: 3 samples can't be read.* allows \({said}\)"):
        run(made)


@pytest.mark.parametrize("way", [{}, {"num_workers": 2}])
@pytest.mark.parametrize("train", [True, False])
def test_where_no_sample_can_be_read_it_stops(
    part: Any, loader: Any, tmp_path: Path, way: dict[str, Any], train: bool
) -> None:
    folder(tmp_path, [(8, 8)] * 9, bad=tuple(range(9)))
    with pytest.raises(RunError, match=r"KD512: of \d samples that make a batch none can be read \(\d of 9"):
        run(loader(files(part, tmp_path, [8, 8], on_bad_sample="skip", **way), train=train))


@pytest.mark.slow
def test_a_stopped_data_worker_is_named_with_what_it_reads(
    part: Any,
    loader: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(waiting, "TICK_SECONDS", 0.02)
    folder(tmp_path, [(8, 8)] * 40)
    made = loader(files(part, tmp_path, [8, 8], num_workers=1), train=False)
    batches = made.batches(0)
    next(batches)
    (worker,) = made._workers._iterator._workers
    os.kill(worker.pid, signal.SIGSTOP)
    waking = threading.Timer(1.0, os.kill, (worker.pid, signal.SIGCONT))
    waking.start()
    assert 1 + len(list(batches)) == 10
    made.close()
    said = capsys.readouterr().err
    state = ", stopped by a signal" if sys.platform == "linux" else ""
    assert re.search(
        rf"waiting for data worker 0 \(pid {worker.pid}{state}\); it reads `.*\d+\.png` \(\d+ s", said
    )
    assert "s for data worker 0" in said


@pytest.mark.parametrize(
    ("on_cuda", "said", "pinned"), [(False, True, False), (True, None, True), (True, False, False)]
)
def test_memory_is_pinned_for_a_cuda_device_alone(
    on_cuda: bool, said: bool | None, pinned: bool, part: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a GPU is there does not matter: the run may be on the CPU beside it."""
    pins: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pins.append(tensor.numel()) or tensor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pixels = part("fake", num_samples=8, shape=[3, 4, 4], num_classes=2, dataloader={"pin_memory": said})
    next(loader(pixels, on_cuda=on_cuda).batches(0))
    assert bool(pins) is pinned
