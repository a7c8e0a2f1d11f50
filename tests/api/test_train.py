"""`kdcli.train`: objects in memory as first-class as a spec's, nothing of the caller's changed, exact resume."""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import kdcli
from kdcli.commands.options import TrainOptions
from kdcli.commands.train import train as command
from tests.api.objects import Net, Noisy, images, made, spec

QUICK: dict[str, Any] = {"quiet": True, "report": False, "check": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def both(**options: Any) -> dict[str, Any]:
    return {
        "student": made(),
        "teachers": made(8, seed=1),
        "data": (images(), images(16)),
        **QUICK,
        **options,
    }


def weights(found: kdcli.Result) -> dict[str, Tensor]:
    return found.student.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_few_steps() -> None:
    found = kdcli.train(spec(max_iter=2, max_epoch=None), **both(data=(images(16), images(8))))
    assert type(found.student) is Net and not found.student.training and found.step == 2
    assert not same(weights(found), made().state_dict())


@pytest.mark.parametrize("batched", [False, True])
def test_images_without_labels(batched: bool) -> None:
    alone: Any = TensorDataset(images(16).tensors[0])
    alone = DataLoader(alone, batch_size=8, shuffle=True) if batched else alone
    data = {"train": alone, "test": images(8)}
    found = kdcli.train(spec(max_iter=2, max_epoch=None), **both(data=data))
    assert "top1" in found.metrics and found.step == 2
    assert "labels: none" in (found.folder / "spec.resolved.yaml").read_text()


@pytest.mark.slow
def test_a_student_comes_back_as_it_was_given_trained_and_in_eval_mode() -> None:
    given = made()
    found = kdcli.train(spec(), **both(student=given, report=True, check=True))
    assert type(found.student) is Net and found.student is not given and not found.student.training
    assert not same(weights(found), given.state_dict())
    assert found.folder == Path("runs/spec") and found.step == 8 and len(found.evaluations) == 2
    assert (
        found.primary == "top1"
        and found.metrics["top1"] >= found.last["top1"]
        and "teacher0" in found.teachers
    )
    pixels = images(16).tensors[0]
    top1 = 100.0 * (found.student(pixels).argmax(1) == images(16).tensors[1]).double().mean()
    assert float(top1) == pytest.approx(found.metrics["top1"])
    assert found.report is not None
    shown = found._repr_html_()
    assert (
        "student best" in shown
        and "srcdoc" in shown
        and "\x1b" not in shown
        and "<script>" not in shown[:200]
    )


@pytest.mark.slow
def test_twice_in_one_process_gives_the_same_bits_and_changes_nothing_of_the_callers() -> None:
    student, teacher = made(), made(8, seed=1).train()
    teacher.fc.weight.requires_grad_(False)
    calls: list[int] = []
    teacher.conv.register_forward_hook(lambda *_: calls.append(1))
    hooks = len(teacher.conv._forward_hooks)
    before = {name: copy.deepcopy(net.state_dict()) for name, net in (("s", student), ("t", teacher))}
    state = (
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        torch.get_num_threads(),
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    arguments = both(student=student, teachers=teacher)
    first = weights(kdcli.train(spec(), changes=["runtime.threads=1"], **arguments))
    torch.manual_seed(99)
    between = torch.get_rng_state()
    second = weights(kdcli.train(spec(), changes=["runtime.threads=1"], overwrite=True, **arguments))
    assert same(first, second)
    assert torch.equal(between, torch.get_rng_state())
    torch.set_rng_state(state[0])
    assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()) == state[1:]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert same(before["s"], student.state_dict()) and same(before["t"], teacher.state_dict())
    assert student.training and teacher.training and len(teacher.conv._forward_hooks) == hooks and calls
    asks = [name for name, parameter in teacher.named_parameters() if not parameter.requires_grad]
    assert asks == ["fc.weight"] and all(p.requires_grad and p.grad is None for p in student.parameters())


@pytest.mark.slow
def test_the_command_line_trains_by_the_same_function(tmp_path: Path) -> None:
    from tests.training.runs import SPEC

    Path("cfg.yaml").write_text(SPEC)
    command(
        TrainOptions(spec="cfg.yaml", changes=("saver.save_dir=one",), quiet=True, report=False, device="cpu")
    )
    found = kdcli.train("cfg.yaml", changes=["saver.save_dir=two"], device="cpu", **{**QUICK, "check": True})
    files = [Path(run, "student.safetensors") for run in ("one", "two")]
    last = [kdcli.load_student(file.parent, weights="last").state_dict() for file in files]
    assert same(*last) and found.folder == Path("two")


class Stops(TensorDataset):
    """Asks this process to stop, as Ctrl-C does, when an item is read for the n-th time."""

    def __init__(self, inner: Any, after: int, number: int = signal.SIGINT) -> None:
        super().__init__(*images().tensors)
        self.inner, self.left, self.number = inner, after, number

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.inner[index]


def loader(data: Dataset[Any], **more: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=8, shuffle=True, **more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["items", "own noise", "loader", "loader with a generator"])
def test_after_ctrl_c_everything_is_saved_and_a_resumed_run_is_the_uninterrupted_one(kind: str) -> None:
    def train_data(inner: Dataset[Any]) -> Any:
        if kind.startswith("loader"):
            return loader(inner, generator=torch.Generator().manual_seed(7) if "generator" in kind else None)
        return inner

    inner: Any = images() if kind == "items" else Noisy()
    arguments = both(student=made(), data={"train": train_data(inner), "test": images(16)})
    whole = kdcli.train(kdcli.Spec.from_dict(spec(max_epoch=3), name="whole"), **arguments)
    cut = kdcli.Spec.from_dict(spec(max_epoch=3), name="cut")
    stopping = {
        **arguments,
        "data": {
            "train": train_data(Stops(inner, 95 if kind.startswith("loader") else 151)),
            "test": images(16),
        },
    }
    with pytest.raises(KeyboardInterrupt, match=r"everything is saved.*resume=True") as stopped:
        kdcli.train(cut, **stopping)
    step = re.search(r"stopped by SIGINT at step (\d+);", str(stopped.value))
    assert step is not None and int(step[1]) % 4, "in the middle of an epoch of four steps"
    torch.randn(3)
    resumed = kdcli.train(cut, resume=True, **arguments)
    assert resumed.step == whole.step
    last = [kdcli.load_student(run, weights="last", student=made(seed=5)) for run in (whole, resumed)]
    assert same(last[0].state_dict(), last[1].state_dict())


@pytest.mark.slow
def test_another_signal_is_an_interrupted_run_with_its_exit_code() -> None:
    data = {"train": Stops(images(), 110, signal.SIGTERM), "test": images(16)}
    with pytest.raises(kdcli.Interrupted, match="everything is saved") as stopped:
        kdcli.train(spec(), **both(data=data))
    assert stopped.value.signal_number == signal.SIGTERM


def test_a_second_ctrl_c_leaves_at_once_without_ending_the_process() -> None:
    from kdcli.parallel.interrupts import listening

    with (
        listening(leaves=False) as heard,
        pytest.raises(KeyboardInterrupt, match="not saved"),
        heard.noting(),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_thread_of_its_own_trains_too() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(kdcli.train(spec(max_epoch=1), **both())))
    thread.start()
    thread.join()
    assert found and found[0].step == 4


@pytest.mark.slow
def test_other_objects_are_not_resumed() -> None:
    kdcli.train(spec(), **both())
    longer, again = spec(max_epoch=3), {"resume": True}
    with pytest.raises(kdcli.RunError, match=r"KD716: the checkpoint was made with other weights of teacher0"
                       r"(.|\n)*allow_changed=\['teachers.teacher0'\]"):  # fmt: skip
        kdcli.train(longer, **both(teachers=made(8, seed=2)), **again)
    with pytest.raises(kdcli.RunError, match=r"KD715.*net.0.kwargs.architecture"):
        kdcli.train(longer, **both(student=made(5)), **again)
    with pytest.raises(kdcli.RunError, match=r"KD733.*training data is not what"):
        kdcli.train(longer, **both(data=(images(40), images(16))), **again)
    with pytest.raises(kdcli.RunError, match=r"KD741(.|\n)*`overwrite=True`"):
        kdcli.train(longer, **both())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([images()[index] for index in range(32)])

    def __len__(self) -> int:
        return 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "whose"),
    [
        (DataLoader(Stream(), batch_size=8), "its IterableDataset"),
        (DataLoader(images(), batch_sampler=[list(range(8))] * 4), "its own batch sampler"),
        (DataLoader(images(), batch_size=8, sampler=list(range(32))), "its own sampler"),
    ],
)
def test_what_cannot_be_resumed_exactly_is_said(
    batches: Any, whose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kdcli.train(spec(max_epoch=1), **both(data=(batches, images(16)), quiet=False))
    assert f"{whose} decides the order of the batches, which kdcli can't repeat" in capsys.readouterr().err


@pytest.mark.slow
def test_layers_of_a_given_network_are_mimicked_and_the_guard_looks_at_them() -> None:
    features = spec()
    features["mimic"] = {
        "cfgs": {"loss": {"type": "l2_loss"}},
        "adapter": "auto",
        "student": {"mimic_name": ["model.conv"]},
        "teacher0": {"mimic_name": ["model.conv"], "allow_weak_teacher": True},
    }
    assert kdcli.train(features, **both()).step == 8
    frozen = made()
    frozen.conv.requires_grad_(False)
    with pytest.raises(kdcli.RunError, match=r"KD700.*model.conv.*no gradient"):
        features["mimic"]["adapter"] = None
        features["mimic"]["teacher0"]["mimic_name"] = ["model.conv"]
        kdcli.train(features, overwrite=True, **both(student=frozen, teachers=made(4, seed=1)))


@pytest.mark.slow
def test_a_students_result_is_the_next_runs_teacher() -> None:
    alone = {**spec(), "runtime": {"random_seed": 1, "device": "cpu"}}
    del alone["mimic"]
    data = (images(), images(16))
    first = kdcli.train(kdcli.Spec.from_dict(alone, name="teacher"), student=made(8), data=data, **QUICK)
    kwargs = {"num_classes": 4, "in_channels": 1, "widths": [2, 2, 4, 4]}
    named = {**alone, "net": {"name": "model", "type": "cifar_resnet8", "kwargs": kwargs}}
    net = kdcli.train(kdcli.Spec.from_dict(named, name="net"), data=data, **QUICK).student
    for teacher in (first.student, net):
        found = kdcli.train(spec(), overwrite=True, **both(teachers={"teacher0": teacher}))
        assert found.teachers["teacher0"]["top1"] > 0


@pytest.mark.slow
def test_a_wrapper_is_taken_off_and_a_network_that_cannot_be_copied_is_said() -> None:
    wrapped = kdcli.train(spec(), **both(student=nn.DataParallel(made())))
    assert type(wrapped.student) is Net
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(kdcli.SpecError, match=r"KD872.*not built yet"):
        kdcli.train(spec(), overwrite=True, **both(student=lazy))
    old = made()
    old.fc.scale = old.fc.weight * 2.0  # as the hook of torch's old weight_norm leaves it
    with pytest.raises(kdcli.SpecError, match=r"KD872.*can't be copied"):
        kdcli.train(spec(), overwrite=True, **both(student=old))


class Fails(Net):
    def forward(self, image: Tensor) -> Tensor:
        raise ValueError("too few values")


def test_what_the_users_network_raises_is_told_with_its_line() -> None:
    with pytest.raises(kdcli.KdError, match=r"too few values \(.*test_train.py:\d+, in forward\)"):
        kdcli.train(spec(), **both(student=Fails()))


@pytest.mark.slow
def test_nothing_is_coloured_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    kdcli.train(spec(), **both(quiet=False))
    told = capsys.readouterr()
    assert told.out == "" and "\x1b" not in told.err and "\r" not in told.err
    assert "epoch 2/2" in told.err and "next: kdcli.evaluate(run) with the same objects" in told.err
    kdcli.train(spec(), overwrite=True, **both())
    *alarms, last = capsys.readouterr().err.splitlines()
    usual = ("warning: KD788", "warning: teacher0 answers every image with ")
    assert last.startswith("student: ") and all(line.startswith(usual) for line in alarms)
