"""What the user's network, data, scheduler or machine raises in a command is one message with stage, line and fix."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdcli.models.weights import read_weights
from kdcli.records import Saved
from kdcli.training.train import train
from tests.training.conftest import Kdcli
from tests.training.runs import SPEC, run_of, spec_of

NETS = """\
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

class Base(nn.Module):
    steps = 0
    def __init__(self, num_classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.more = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, num_classes)
    def count(self):
        if self.training:
            type(self).steps += 1
        return type(self).steps
    def forward(self, image):
        return self.fc(self.middle(self.body(image)).mean((2, 3)))

class Late(Base):
    def middle(self, x):
        if self.count() > LATE:
            raise KeyError("late")
        return x

class Hungry(Base):
    def middle(self, x):
        if self.count() > LATE:
            torch.empty(10**15)
        return x

class Reentrant(Base):
    def middle(self, x):
        return checkpoint(self.more, x, use_reentrant=True)

class Plain(Base):
    def middle(self, x):
        return self.more(x)

class Ends(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        if self.last_epoch > 0:
            raise ValueError(f"no step {self.last_epoch}")
        return self.base_lrs

class Skips(Base):
    def middle(self, x):
        return x + self.more(x) if torch.rand(()) < 0.5 or not self.training else x

class Torn:
    random = False
    def __init__(self, late):
        self.late = late
    def __call__(self, image, draws=None):
        raise OSError(5, "Input/output error", "/data/cat.png")

LATE = 6  # looks before training, and the first steps
"""

OWN = ("mimic.student.mimic_name=[logits]", "net.model.kwargs={num_classes: 4}", "--plugin", "kd_failing")


def line_of(code: str) -> int:
    return next(number for number, line in enumerate(NETS.splitlines(), 1) if code in line)


def net(name: str) -> tuple[str, ...]:
    return (f"net.model.type=kd_failing:{name}", *OWN)


@pytest.fixture
def run(kdcli: Kdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What `kdcli train` says when it fails."""
    Path("small.yaml").write_text(SPEC)
    Path("kd_failing.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("kd_failing", None)

    def say(*words: str, code: int = 1) -> str:
        left, _, errors = kdcli("train", "small.yaml", "--no-report", *words)
        assert left == code, errors
        assert "Traceback" not in errors or "--traceback" in words
        return errors

    return say


def test_the_users_network_fails_in_a_step(run: Callable[..., str]) -> None:
    errors = run(*net("Late"))
    assert (
        "KD496: epoch 1, training step " in errors and "of 10, the student's forward pass failed: " in errors
    )
    assert "code of the plugin `kd_failing` failed: KeyError: 'late'" in errors
    assert f"kd_failing.py:{line_of('raise KeyError')}, in middle)" in errors


@pytest.mark.slow
def test_traceback_shows_how_it_came_to_that(run: Callable[..., str]) -> None:
    errors = run(*net("Late"), "--traceback")
    assert "Traceback" in errors and "in middle" in errors and "kdcli/training/train.py" in errors


def test_the_machine_has_too_little_memory(run: Callable[..., str]) -> None:
    errors = run(*net("Hungry"))
    assert "KD724: the machine ran out of memory (batch_size 8 per process): epoch 1" in errors
    assert f"kd_failing.py:{line_of('torch.empty')}, in middle)" in errors
    assert "dataset.train.batch_sampler.kwargs.batch_size" in errors


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpointing_trains_like_the_other_kind(run: Callable[..., str]) -> None:
    weights = []
    for kind in ("Reentrant", "Plain"):
        run(*net(kind), "trainer.max_epoch=1", f"saver.save_dir=runs/{kind}", code=0)
        weights.append(read_weights(f"runs/{kind}/student.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_scheduler_that_fails_in_mid_run(run: Callable[..., str]) -> None:
    errors = run("trainer.lr_scheduler={type: 'kd_failing:Ends'}", "--plugin", "kd_failing")
    assert (
        "argument 1:1:9: error KD496: epoch 1, training step 5 of 10, the scheduler `kd_failing:Ends` failed"
        in errors
    )
    assert "ValueError: no step 1 (" in errors and f"kd_failing.py:{line_of('no step')}, in get_lr)" in errors


SMALL = ("dataset.train.dataset.kwargs.num_samples=33",)
VECTOR = ("mimic.cfgs.loss={type: srd}",)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        pytest.param(
            "--check", "KD480: the last batch", marks=pytest.mark.slow
        ),  # also in tests/check/golden.txt
        ("--no-check", "KD450: epoch 1"),
    ],
)
def test_a_last_batch_of_one_sample(check: str, said: str, run: Callable[..., str]) -> None:
    errors = run(*SMALL, *VECTOR, check)
    assert said in errors and "srd` normalises each channel over the batch" in errors
    assert "small.yaml:" in errors or "argument" in errors
    assert Path("runs/small/metrics.jsonl").exists() == (check == "--no-check")


@pytest.mark.slow
def test_a_last_batch_of_one_sample_may_be_left_out(run: Callable[..., str]) -> None:
    run(*SMALL, *VECTOR, "dataset.batch_sampler.kwargs.drop_last=true", "trainer.max_epoch=1", code=0)


def test_a_place_for_results_is_proved_before_training(run: Callable[..., str]) -> None:
    errors = run("saver.results_dir=small.yaml")
    assert "argument 1:1:19: error KD740: cannot write small.yaml: " in errors
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("saver.save_dir={}", "the name is too long"),
        ("saver.save_dir='~nosuchuser/x'", "there is no user `nosuchuser`"),
        ('saver.save_dir="a\\0b"', "a path has no NUL character"),
        ("saver.results_dir='~nosuchuser/x'", "there is no user `nosuchuser`"),
        ("mimic.teacher0.teacher_weight={}", "the name is too long"),
        ('mimic.teacher0.teacher_weight="a\\0b"', "a path has no NUL character"),
    ],
)
def test_a_path_that_no_system_takes_is_told_at_its_key(
    change: str, said: str, run: Callable[..., str]
) -> None:
    errors = run(change.format("n" * 5000))
    assert "argument 1:1:" in errors and "KD521: cannot use `" in errors and said in errors
    assert len(errors) < 900 and not Path("runs").exists()


@pytest.mark.slow
def test_checkpoints_that_can_no_longer_be_written(run: Callable[..., str]) -> None:
    with run_of(spec_of(SPEC)) as running:
        records = train(running)
        next(record for record in records if isinstance(record, Saved))
        running.folder.checkpoints.rename("elsewhere")
        Path("runs/small/checkpoints").write_text("a file in the way")
        from kdcli.errors import RunError

        with pytest.raises(RunError, match="KD740: cannot write runs/small/checkpoints"):
            list(records)


# in processes of their own

NOT_WRITTEN = {"KD540:", "KD740:"}
"""Codes of a file that can't be written: weights, and all others."""


def limited(*words: str, before: Callable[[], None], env: dict[str, str] | None = None) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "kdcli.cli", "train", "small.yaml", "--no-report", *words],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), "."]),
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        },
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=before,
    )
    return done.returncode, done.stderr


def limit(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 3_000, 20_000])
def test_files_that_may_not_grow(most: int, folder: Path) -> None:
    Path("small.yaml").write_text(SPEC)
    code, errors = limited(before=limit(resource.RLIMIT_FSIZE, most))
    assert code == 1 and NOT_WRITTEN & set(errors.split()) and "Traceback" not in errors, errors


@pytest.mark.slow
@pytest.mark.parametrize("most", [8, 16, 24])
def test_too_many_open_files(most: int, folder: Path) -> None:
    Path("small.yaml").write_text(SPEC)
    workers = [
        f"dataset.{side}.dataloader.kwargs={{num_workers: 6, in_memory: false}}" for side in ("train", "test")
    ]
    code, errors = limited(*workers, before=limit(resource.RLIMIT_NOFILE, most))
    assert code == 1 and "KD521" in errors and "oo many open files" in errors, errors
    assert "own fault" not in errors


@pytest.mark.slow
def test_little_address_space(folder: Path) -> None:
    Path("small.yaml").write_text(SPEC)
    large = ("net.model.kwargs.widths=[512, 512, 1024, 2048]", "dataset.batch_sampler.kwargs.batch_size=40")
    code, errors = limited(*large, before=limit(resource.RLIMIT_AS, 3 << 30))
    if "cannot allocate memory for thread-local data" in errors:
        return  # the C library ends the process itself, with 127, where a thread finds no room
    assert code in (0, 1) and "own fault" not in errors, errors


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 64, 128])
def test_a_full_disk(kilobytes: int, folder: Path) -> None:
    Path("small.yaml").write_text(SPEC)
    Path("disk").mkdir()
    options = f"size={kilobytes}k"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", "disk"], capture_output=True
    ).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        code, errors = limited("saver.save_dir=disk/run", before=lambda: None)
        assert code == 1 and NOT_WRITTEN & set(errors.split()) and "No space left" in errors, errors
        assert "Traceback" not in errors, errors
    finally:
        subprocess.run(["umount", "disk"], check=True)


@pytest.mark.slow
def test_a_block_that_one_process_skips(folder: Path) -> None:
    Path("small.yaml").write_text(SPEC)
    Path("kd_failing.py").write_text(NETS)
    seen = set()
    for seed in range(8):
        words = (
            *net("Skips"),
            "--device",
            "cpu",
            "--nproc",
            "2",
            "--overwrite",
            f"runtime.random_seed={seed}",
        )
        code, errors = limited(*words, before=lambda: None)
        assert code in (0, 1) and "own fault" not in errors and "terminate called" not in errors, errors
        seen.add("KD746" in errors)
    assert True in seen


@pytest.mark.slow
def test_a_data_worker_hands_its_error_on(folder: Path) -> None:
    Path("small.yaml").write_text(SPEC)
    Path("kd_failing.py").write_text(NETS)
    torn = "{type: 'kd_failing:Torn', kwargs: {late: 1}}"
    change = f"dataset.train.dataset.kwargs.transformer=[{{type: to_tensor}}, {torn}]"
    workers = "dataset.train.dataloader.kwargs={num_workers: 1, in_memory: false}"
    for more in ((), (workers,)):
        code, errors = limited(change, *more, "--plugin", "kd_failing", "--no-check", before=lambda: None)
        assert code == 1 and "Traceback" not in errors and "Input/output error" in errors, errors
