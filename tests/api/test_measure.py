"""`kdcli.evaluate` and `kdcli.load_student`: a run measured and read again, with the objects that it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcli
from kdcli.api.measure import as_given
from kdcli.commands import guarded
from kdcli.commands.options import EvalOptions, ExportOptions, ReportOptions
from kdcli.commands.report import evaluate as eval_command
from kdcli.commands.report import report as report_command
from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec
from tests.api.objects import Net, images, made, spec
from tests.training.runs import SPEC, spec_of, train_all

QUICK: dict[str, Any] = {"quiet": True, "report": False, "check": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_network_of_one_whole_model_is_that_model() -> None:
    post = build_network([ModuleSpec(name="post", type="base_cls_postprocess")], path=("net",)).post
    net = made()
    assert as_given(Network({"model": net, "post": post})) is net  # type: ignore[dict-item]
    both = Network({"model": net, "other": made()})
    assert as_given(both) is both and as_given(net) is net


@pytest.mark.slow
def test_a_run_is_measured_and_read_with_its_objects(capsys: pytest.CaptureFixture[str]) -> None:
    data = kdcli.Data(train=images(), test=images(16), classes=["a", "b", "c", "d"])
    found = kdcli.train(spec(), student=made(), teachers=made(8, seed=1), data=data, **QUICK)
    objects = {"student": made(seed=9), "teachers": made(8, seed=1), "data": data}
    before = torch.get_rng_state()
    measured = kdcli.evaluate(found, **objects, quiet=True)
    assert measured.metrics == found.metrics and [one.network for one in measured] == ["student", "teacher0"]
    assert measured["teacher0"].metrics == found.teachers["teacher0"] and len(measured) == 2
    with pytest.raises(KeyError, match="there are: student, teacher0"):
        measured["teacher1"]
    assert "same_top1" in str(measured) and measured._repr_html_().startswith("<pre>")
    loaded = kdcli.load_student("runs/spec", student=made(seed=9))
    assert type(loaded) is Net and not loaded.training
    pixels = images(16).tensors[0]
    assert torch.equal(loaded(pixels), found.student(pixels)) and torch.equal(before, torch.get_rng_state())
    other = kdcli.evaluate(found, **{**objects, "data": {"test": images(8)}}, quiet=True)
    assert len(other) == 2 and other.metrics["top1"] != pytest.approx(-1)
    without = kdcli.evaluate(found, student=made(), data=data)
    assert len(without) == 1 and "teacher0 is left out" in capsys.readouterr().err
    with pytest.raises(kdcli.SpecError, match="KD871"):
        kdcli.load_student(found, student=made(5))
    with pytest.raises(kdcli.SpecError, match=r"KD870: the network of `net` was given from Python"):
        kdcli.load_student(found)


@pytest.mark.slow
def test_the_command_line_says_that_objects_are_pythons(capsys: pytest.CaptureFixture[str]) -> None:
    from kdcli.commands.export import export

    kdcli.train(spec(), student=made(), teachers=made(8, seed=1), data=(images(), images(16)), **QUICK)
    capsys.readouterr()
    assert guarded(lambda: eval_command(EvalOptions(spec="runs/spec", device="cpu"))) == 1
    said = capsys.readouterr().err
    assert (
        "KD870: the test data was given from Python" in said
        and "`data={'test': ...}` of `kdcli.train`, `kdcli.evaluate`" in said
    )
    assert guarded(lambda: export(ExportOptions(spec="runs/spec"))) == 1
    assert "KD870" in capsys.readouterr().err
    assert guarded(lambda: report_command(ReportOptions(spec="runs/spec", device="cpu"))) == 0
    assert "curves alone, the networks can't be run: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_the_command_line_is_python_s_too() -> None:
    train_all(spec_of(SPEC, "saver.save_dir=runs/small"))
    recorded = json.loads(Path("runs/small/finished.json").read_text())["best"]
    measured = kdcli.evaluate("runs/small", quiet=True)
    assert measured.metrics == recorded
    student = kdcli.load_student("runs/small")
    assert not student.training
    with pytest.raises(kdcli.UsageError, match="builds the network of `net` itself"):
        kdcli.load_student("runs/small", student=made())
    given = kdcli.evaluate("runs/small", data={"test": images(16)}, quiet=True)
    assert given.metrics.keys() == recorded.keys() and given.metrics != recorded
    # What is finished is not transformed once more: `to_tensor` would divide by 255 again.
    doubled = [(image * 255).round().to(torch.uint8) for image, _ in images(16)]
    bytes_ = [(image, label) for image, (_, label) in zip(doubled, images(16), strict=True)]
    floats = [(image.float() / 255, label) for image, label in bytes_]
    both = [kdcli.evaluate("runs/small", data={"test": one}, quiet=True).metrics for one in (bytes_, floats)]
    assert both[0] == both[1]
    with pytest.raises(kdcli.RunError, match="KD750"):
        kdcli.load_student("runs/nowhere")
    with pytest.raises(kdcli.UsageError, match="a run's spec can't be changed"):
        kdcli.evaluate("runs/small", changes=["trainer.max_epoch=1"])


@pytest.mark.slow
def test_a_damaged_best_student_is_told_with_the_last_one() -> None:
    train_all(spec_of(SPEC))
    best = Path("runs/small/student_best.safetensors")
    best.write_bytes(best.read_bytes()[:400])
    with pytest.raises(
        kdcli.RunError, match=r"(?s)KD532.*other weights too: `weights='runs/small/student.safetensors'`"
    ):
        kdcli.load_student("runs/small")
    assert kdcli.load_student("runs/small", weights="runs/small/student.safetensors")
    Path("runs/small/student.safetensors").unlink()
    with pytest.raises(kdcli.RunError, match="KD532") as told:
        kdcli.load_student("runs/small")
    assert "other weights" not in str(told.value)


def test_a_student_that_a_method_gives_another_end() -> None:
    simkd = spec()
    simkd["mimic"] = {
        "task_loss": False,
        "cfgs": {"loss": {"type": "simkd"}},
        "student": {"mimic_name": ["model.bn"]},
        "teacher0": {"mimic_name": ["model.bn"], "allow_weak_teacher": True},
    }
    objects = {"student": made(), "teachers": made(8, seed=1)}
    data = (images(), images(16))
    found = kdcli.train(simkd, data=data, **objects, **QUICK)
    pixels = {"image": images(16).tensors[0]}
    loaded = kdcli.load_student(found, **objects)
    assert torch.equal(loaded(pixels)["logits"], found.student(pixels)["logits"])
    assert kdcli.evaluate(found, data=data, **objects, quiet=True).metrics == found.metrics
