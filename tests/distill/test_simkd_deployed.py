"""SimKD end to end: what is measured, exported and rebuilt is the student with the teacher's classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.analysis.comparison import compare
from kdcli.distill.trainee import DeployedStudent
from kdcli.errors import SpecError
from kdcli.models.weights import read_weights
from kdcli.parallel.distributed import Processes
from kdcli.records import Evaluation, Finished
from kdcli.training.checkpoint import checkpoints
from kdcli.training.evaluate import evaluate, evaluation_mode
from kdcli.training.run import RunOptions
from kdcli.training.train import train
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import run_of, train_all

HERE = Processes(device=torch.device("cpu"))


def last_of(records: list[Any]) -> dict[str, float]:
    return next(r for r in reversed(records) if isinstance(r, Finished)).last


def test_the_exported_student_ends_in_the_teachers_classifier() -> None:
    parsed = spec_with(mimic_of("simkd", TEACHER), "trainer.max_iter=12")
    with run_of(parsed) as run:
        records = list(train(run))
        classifier = run.teachers["teacher0"].net.get_submodule("model.fc").weight
        deployed, student = run.deployed, run.student
        assert isinstance(deployed, DeployedStudent)
        batch = dict(next(run.test_loader.batches(0)))
        with evaluation_mode(deployed), torch.no_grad():
            logits = deployed(batch)["logits"]
            feature = _last_map(student, batch)
            by_hand = run.teachers["teacher0"].net.get_submodule("model.fc")(
                deployed.get_submodule("_end.projector")(feature).mean((2, 3))
            )
            assert torch.allclose(logits, by_hand, atol=1e-6)
            assert not torch.allclose(logits, student(batch)["logits"])
            measured = evaluate(deployed, run.test_loader, run.task, run.processes)
    assert measured == last_of(records)
    saved = read_weights(Path("runs/small/student.safetensors"))
    assert torch.equal(saved["_end.classifier.weight"], classifier)
    assert {"model.conv1.weight", "_end.projector.0.weight", "_end.classifier.bias"} <= saved.keys()
    assert not any(key.startswith("mimickers") for key in saved)


def _last_map(student: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = student.get_submodule("model.layer3").register_forward_hook(lambda *args: seen.append(args[2]))
    student(batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("source", ["student file", "checkpoint"])
def test_eval_rebuilds_it(source: str) -> None:
    parsed = spec_with(mimic_of("simkd", TEACHER), "trainer.max_iter=12", "trainer.test_freq=100")
    records = train_all(parsed)
    if source == "checkpoint":
        Path("runs/small/student.safetensors").unlink()
        Path("runs/small/best.safetensors").unlink(missing_ok=True)
        for file in Path("runs/small").glob("*.safetensors"):
            file.unlink()
        assert checkpoints(Path("runs/small/checkpoints"))
    rows, _ = compare(parsed, RunOptions(), HERE, None)
    student = rows[0]
    assert student.network == "student"
    expected = next(r for r in reversed(records) if isinstance(r, Evaluation)).metrics
    assert student.metrics == pytest.approx(expected, abs=1e-4)
    with run_of(parsed, overwrite=True) as run:
        own = sum(p.numel() for p in run.student.parameters())
        replaced = sum(p.numel() for p in run.student.get_submodule("model.fc").parameters())
        end = sum(p.numel() for p in run.deployed.get_submodule("_end").parameters())
    assert student.parameters == own - replaced + end


def test_an_average_of_the_student_has_the_projector_too() -> None:
    parsed = spec_with(mimic_of("simkd", TEACHER), "trainer.ema.enable=true", "trainer.ema.kwargs.decay=0.5")
    with run_of(parsed) as run:
        list(train(run))
        assert run.ema is not None
        assert "_end.projector.0.weight" in run.ema.parameters
        now = run.deployed.state_dict()["_end.projector.0.weight"]
        assert not torch.equal(run.ema.parameters["_end.projector.0.weight"], now)
    saved = read_weights(Path("runs/small/student.safetensors"))
    assert not torch.equal(saved["_end.projector.0.weight"], now)


def test_the_tasks_loss_must_be_off() -> None:
    with pytest.raises(SpecError, match="task's loss would train") as caught:
        train_all(spec_with({**mimic_of("simkd", TEACHER), "task_loss": True}))
    assert caught.value.diagnostics[0].code == "KD448"
    assert caught.value.diagnostics[0].path == ("mimic", "task_loss")


def test_a_student_has_one_end() -> None:
    mimic = mimic_of("simkd", TEACHER)
    mimic["student"]["mimic_name"] *= 2
    mimic["teacher0"]["mimic_name"] *= 2
    with pytest.raises(SpecError, match="only one") as caught:
        train_all(spec_with(mimic))
    assert caught.value.diagnostics[0].code == "KD449"
