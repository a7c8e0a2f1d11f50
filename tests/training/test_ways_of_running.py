"""Plugins, timm, memory: what stands between a spec and its run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.exc
from safetensors.torch import load_file

from kdcli.check.check import CheckOptions, check
from kdcli.errors import KdError, RunError, SpecError
from kdcli.parallel.devices import oom_as_error
from kdcli.records import Alarm, Finished, Notice, Step
from kdcli.spec.check.rules import check_rules
from tests.training.runs import SPEC, run_of, spec_of, train_all

NET = "{name: model, type: '%s', kwargs: {num_classes: 4}}"


@pytest.fixture
def own_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package beside the spec that says when it is imported."""
    Path("own_nets_of_test.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('imported').touch()\n"
        "class Tiny(nn.Sequential):\n"
        "    def __init__(self, *, num_classes: int = 10):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(os.getcwd())
    yield "own_nets_of_test"


def test_own_code_runs_only_where_the_command_line_allows_it(own_code: str) -> None:
    parsed = spec_of(SPEC, "net=" + NET % f"{own_code}:Tiny", "trainer.max_iter=2")
    with pytest.raises(
        SpecError, match="is not a plugin of this run: add `--plugin own_nets_of_test`"
    ) as caught:
        train_all(parsed)
    assert caught.value.diagnostics[0].code == "KD413" and not Path("imported").exists()
    assert isinstance(train_all(parsed, plugins=(own_code,), overwrite=True)[-1], Finished)
    assert Path("imported").exists()


def test_a_whole_model_of_torchvision_is_distilled() -> None:
    net = "net={name: model, type: torchvision.squeezenet1_1, kwargs: {num_classes: 4}}"
    shape = [f"dataset.{side}.dataset.kwargs.shape=[3, 32, 32]" for side in ("train", "test")]
    crop = "dataset.train.dataset.kwargs.transformer.0.kwargs.size=32"
    teacher = "teacher0.kwargs.in_channels=3"
    records = train_all(spec_of(SPEC, net, *shape, crop, teacher, "trainer.max_iter=2"))
    assert set(next(r for r in records if isinstance(r, Step)).losses) == {
        "task.loss",
        "mimic_job0.teacher0.loss",
    }


def test_a_whole_model_of_timm_is_distilled() -> None:
    pytest.importorskip("timm")
    net = "net={name: model, type: timm.resnet10t, kwargs: {num_classes: 4, in_chans: 1}}"
    shape = [f"dataset.{side}.dataset.kwargs.shape=[1, 32, 32]" for side in ("train", "test")]
    crop = "dataset.train.dataset.kwargs.transformer.0.kwargs.size=32"
    records = train_all(spec_of(SPEC, net, *shape, crop, "trainer.max_iter=2"))
    assert isinstance(records[-1], Finished)


def test_a_full_device_is_one_line_that_says_what_to_lower() -> None:
    with pytest.raises(RunError) as caught, oom_as_error(spec_of().spec):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")
    found = caught.value.diagnostics[0]
    assert found.code == "KD724" and "batch_size 8" in found.message and "\n" not in found.message
    assert "dataset.train.batch_sampler.kwargs.batch_size" in (found.help or "")


def test_the_command_tells_of_a_full_device(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from kdcli.commands import guarded
    from kdcli.commands.options import TrainOptions
    from kdcli.commands.train import train
    from kdcli.distill.trainee import Trainee

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    Path("small.yaml").write_text(SPEC)
    monkeypatch.setattr(Trainee, "forward", full)
    assert guarded(lambda: train(TrainOptions(spec="small.yaml", device="cpu"))) == 1
    told = capsys.readouterr().err
    assert "KD724" in told and "Traceback" not in told


def losses(*changes: str) -> list[float]:
    return [r.total for r in train_all(spec_of(SPEC, "trainer.max_iter=3", *changes)) if isinstance(r, Step)]


def test_cheaper_ways_give_the_same_losses() -> None:
    plain = losses("saver.save_dir=plain")
    assert losses("saver.save_dir=folded", "runtime.fold_bn=true") == pytest.approx(plain, rel=1e-4)
    assert losses("saver.save_dir=last", "runtime.channels_last=true") == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_compiled_networks_give_the_same_losses() -> None:
    plain = losses("saver.save_dir=plain")
    assert losses("saver.save_dir=compiled", "runtime.compile=true") == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_a_compiled_baseline_trains_alike_and_its_file_is_the_same_network() -> None:
    base = ("runtime.runner.type=base", "mimic=", "teacher0=")
    plain = losses("saver.save_dir=plain", *base)
    assert losses("saver.save_dir=compiled", *base, "runtime.compile=student") == pytest.approx(
        plain, rel=1e-4
    )
    files = [load_file(f"{name}/student.safetensors") for name in ("plain", "compiled")]
    assert files[0].keys() == files[1].keys()


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(torch.compile, RuntimeError("no compiler"), [])

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    with pytest.raises(RunError) as caught:
        losses("saver.save_dir=compiled", "runtime.compile=teachers")
    assert caught.value.diagnostics[0].code == "KD726"


def test_folding_is_told_and_the_student_is_left_alone() -> None:
    with run_of(spec_of(SPEC, "runtime.fold_bn=true")) as run:
        assert any("9 BatchNorms of teacher0 are folded" in notice for notice in run.notices)
        assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in run.student.modules()) == 9
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in run.teachers["teacher0"].net.modules())


def test_batch_statistics_cannot_be_folded() -> None:
    with pytest.raises(KdError) as caught:
        parsed = spec_of(SPEC, "runtime.fold_bn=true", "mimic.teacher0.teacher_bn_mode=train")
        raise SpecError(list(check_rules(parsed.spec)))
    assert [d.code for d in caught.value.diagnostics] == ["KD221"]


def test_threads_are_set() -> None:
    cores = os.cpu_count() or 1
    with run_of(spec_of(SPEC, f"runtime.threads={cores}")):
        assert torch.get_num_threads() == cores


def test_more_threads_than_the_machine_has_are_refused_by_validate_and_train() -> None:
    parsed = spec_of(SPEC, "runtime.threads=1024")
    found = check(parsed, CheckOptions()).findings
    with pytest.raises(SpecError) as caught, run_of(parsed):
        pass
    for one in (*(one for one in found if one.severity == "error"), *caught.value.diagnostics):
        assert (one.code, one.path) == ("KD206", ("runtime", "threads"))
        assert f"at most {os.cpu_count()} on this machine" in one.message
    assert [one.code for one in found if one.severity == "error"] == ["KD206"]


def test_one_cycle_that_ends_before_the_training() -> None:
    cycle = "trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 0.1, total_steps: %d}}"
    steps = train_all(spec_of(SPEC, cycle % 1000, "trainer.max_iter=3"))[-1]
    assert steps is not None
    parsed = spec_of(SPEC, cycle % 2, "trainer.max_iter=3", "saver.save_dir=short")
    assert [one.code for one in check(parsed, CheckOptions()).findings if one.severity == "error"] == [
        "KD443"
    ]
    with pytest.raises(SpecError) as caught:
        train_all(parsed)
    assert [one.code for one in caught.value.diagnostics] == ["KD443"]
    train_all(spec_of(SPEC, cycle % 3, "trainer.max_iter=3", "saver.save_dir=long_enough"))


def test_a_finished_run_may_be_made_longer() -> None:
    train_all(spec_of(SPEC, "trainer.max_epoch=1"))
    records = train_all(
        spec_of(SPEC, "trainer.max_epoch=2"), resume=True, allow_changed=("trainer.max_epoch",)
    )
    assert [r.step for r in records if isinstance(r, Step)] == [6, 7, 8, 9, 10]
    warnings = [r for r in records if isinstance(r, Notice) and r.level == "warning"]
    told = [one.message for one in warnings if not isinstance(one, Alarm)]
    assert told == [
        "changed from here on: `trainer.max_epoch` is 2, it was 1",
        "teacher0 answers every image with class 3, whatever is on it",  # its weights are random
    ]
