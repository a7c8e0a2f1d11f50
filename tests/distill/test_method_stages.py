"""Methods of two stages: what the first learns is the second's, and the rest waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli.losses import LOSSES
from kdcli.records import Notice, Saved, Step
from kdcli.spec.check.cautions import check_cautions
from kdcli.spec.parse import ParsedSpec
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import run_of, train_all


def job(name: str, **kwargs: Any) -> dict[str, Any]:
    return mimic_of(name, TEACHER, **kwargs)


def two_stages(first: str, second: str, *assignments: str, **stage: Any) -> ParsedSpec:
    """One loss alone for three steps, then the other with the task's loss."""
    mimic = {
        "stages": [
            {"name": "one", "max_iter": 3, "jobs": ["mimic_job0"], "task_loss": False, **stage},
            {"name": "two", "max_iter": 3, "jobs": ["mimic_job1"]},
        ],
        "mimic_as_jobs": True,
        "mimic_job0": job(first),
        "mimic_job1": job(second),
    }
    return spec_with(mimic, "trainer.log_freq=1", *assignments)


def part(run: Run, name: str, prefix: str) -> dict[str, torch.Tensor]:
    found = {
        k.partition(prefix)[2]: v.clone()
        for k, v in run.trainee.state_dict().items()
        if name in k and prefix in k
    }
    assert found
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_ft_takes_over_the_paraphraser_that_its_first_stage_trained() -> None:
    with run_of(two_stages("ft_paraphrase", "ft")) as run:
        untrained = part(run, "mimic_job1", ".paraphraser.")
        student = {name: value.clone() for name, value in run.student.state_dict().items()}
        for record in train(run):
            if isinstance(record, Step) and record.step == 3:
                assert same(student, dict(run.student.state_dict()))
            if isinstance(record, Step) and record.step == 4:
                assert set(record.losses) == {"task.loss", "mimic_job1.teacher0.loss"}
        trained = part(run, "mimic_job0", ".paraphraser.")
        assert not same(untrained, trained)
        assert same(part(run, "mimic_job1", ".paraphraser."), trained)
        assert not same(student, dict(run.student.state_dict()))


def test_ft_resumes_in_its_second_stage_with_the_paraphraser() -> None:
    def steps(records: list[Any]) -> list[Any]:
        return [(r.step, r.stage, r.losses) for r in records if isinstance(r, Step)]

    whole = train_all(two_stages("ft_paraphrase", "ft", "saver.save_dir=whole"))
    parsed = two_stages(
        "ft_paraphrase",
        "ft",
        "saver.save_dir=parts",
        "saver.auto_resume=true",
        "trainer.save_every_minutes=1e-9",
    )
    first = []
    with run_of(parsed) as run:
        for record in train(run):
            first.append(record)
            if isinstance(record, Saved) and record.step == 4:
                break
    assert steps(first) + steps(train_all(parsed)) == steps(whole)


def test_ft_alone_warns_that_its_paraphraser_is_random() -> None:
    warned = [
        r.message for r in train_all(spec_with(job("ft"))) if isinstance(r, Notice) and r.level == "warning"
    ]
    assert any(
        "nothing that `ft_paraphrase` trained on `model.layer3` of teacher0" in message for message in warned
    )
    records = train_all(two_stages("ft_paraphrase", "ft", "saver.save_dir=b"))
    assert not any(isinstance(r, Notice) and "paraphraser" in r.message for r in records)


@pytest.mark.parametrize("name", ["fitnet", "fsp", "ab"])
def test_a_first_stage_trains_the_named_part_of_the_student_alone(name: str) -> None:
    trains = ["model.conv1", "model.bn1", "model.layer1", "model.layer2"]
    with run_of(two_stages(name, "kd_loss", train=trains)) as run:
        start = {n: p.detach().clone() for n, p in run.student.named_parameters()}
        moved: dict[int, set[str]] = {}
        for record in train(run):
            if isinstance(record, Step):
                moved[record.step] = {
                    n for n, p in run.student.named_parameters() if not torch.equal(p, start[n])
                }
    assert "model.layer2.0.conv1.weight" in moved[3]
    assert not any("layer3" in n or "fc" in n for n in moved[3])
    assert "model.fc.weight" in moved[6]


def test_validate_warns_of_an_untrained_paraphraser() -> None:
    def codes(parsed: ParsedSpec) -> set[str]:
        return {found.code for found in check_cautions(parsed.spec, LOSSES, [])}

    assert "KD616" in codes(spec_with(job("ft")))
    assert "KD616" not in codes(two_stages("ft_paraphrase", "ft"))
    assert "KD616" in codes(two_stages("ft", "ft_paraphrase"))
