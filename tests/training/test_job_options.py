"""What a job and its losses may say, through whole runs: each against the same number computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import SpecError
from kdcli.records import Plan, Step
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, saved_student, spec_of, train_all

NETS, REST = SPEC.split("mimic:\n")[0], "dataset:\n" + SPEC.split("dataset:\n", 1)[1]
TEACHERS = NETS + "teacher1: *teacher\nteacher2: *teacher\n"
RANDOM = "allow_random: true, allow_weak_teacher: true"


def jobs(text: str) -> str:
    """A spec with three teachers and these jobs."""
    return TEACHERS + "mimic:\n  mimic_as_jobs: true\n" + text + REST


TWO_JOBS = jobs(f"""
  mimic_job0:
    loss_weight: 2.0
    cfgs: {{loss: {{type: kd_loss, kwargs: {{T: 2}}}}}}
    teacher0: {{mimic_name: [logits], {RANDOM}}}
    student: {{mimic_name: [logits]}}
  mimic_job1:
    loss_weight: 0.5
    warm_up_iters: 2
    adapter: auto
    cfgs:
      near: {{type: l2_loss, kwargs: {{loss_weight: 3.0}}}}
      late: {{type: sp, start_iter: 2, end_iter: 4, decay: linear}}
    teacher0: {{mimic_name: [model.layer2], {RANDOM}}}
    teacher1: {{mimic_name: [model.layer3], {RANDOM}}}
    student: {{mimic_name: [model.layer2]}}
""")


def first_losses(
    text: str, *changes: str, weighted: bool = False
) -> tuple[Run, dict[str, torch.Tensor], Any, Any]:
    """The run (closed), its losses on its first batch, the batch and the views."""
    with run_of(spec_of(text, *changes)) as run:
        run.trainee.train()
        batch = dict(next(run.train_loader.batches(0)))
        views = {name: teacher.view(batch) for name, teacher in run.teachers.items()}
        losses = run.trainee(batch, views, StepInfo(), weighted=weighted)
        with torch.no_grad():
            student = run.trainee.view(batch)
        return run, losses, {**views, "student": student}, batch


def test_losses_are_named_weighed_and_scheduled_each_by_its_own() -> None:
    steps = [r.losses for r in train_all(spec_of(TWO_JOBS, "trainer.max_iter=5")) if isinstance(r, Step)]
    always = {"task.loss", "mimic_job0.teacher0.loss", "mimic_job1.teacher0.near", "mimic_job1.teacher1.near"}
    late = {"mimic_job1.teacher0.late", "mimic_job1.teacher1.late"}
    assert [set(losses) for losses in steps] == [always, always, always | late, always | late, always]
    assert steps[0]["mimic_job1.teacher0.near"] == 0.0  # the job's warm-up counts from its first step
    assert steps[1]["mimic_job1.teacher0.near"] > 0.0
    assert steps[2]["mimic_job1.teacher0.late"] == 0.0  # ... a later loss's from its own
    # warm-up 1/2, decay 1/2, the job's weight 1/2
    assert steps[3]["mimic_job1.teacher0.late"] > 0.0


def test_weights_of_job_and_loss_multiply() -> None:
    _, plain, views, _ = first_losses(TWO_JOBS)
    _, weighed, _, _ = first_losses(TWO_JOBS, "mimic.mimic_job1.warm_up_iters=-1", weighted=True)
    assert weighed["mimic_job0.teacher0.loss"].item() == pytest.approx(
        2.0 * plain["mimic_job0.teacher0.loss"].item()
    )
    assert weighed["mimic_job1.teacher0.near"].item() == pytest.approx(
        0.5 * plain["mimic_job1.teacher0.near"].item()
    )
    student, teacher = views["student"].features["logits"], views["teacher0"].features["logits"]
    by_hand = F.kl_div(
        F.log_softmax(student / 2, 1), F.log_softmax(teacher / 2, 1), reduction="batchmean", log_target=True
    )
    assert plain["mimic_job0.teacher0.loss"].item() == pytest.approx(4 * by_hand.item(), rel=1e-4)


def test_every_teacher_in_use_runs_once_a_step_and_only_those() -> None:
    with run_of(spec_of(TWO_JOBS, "trainer.max_iter=3")) as run:
        assert set(run.teachers) == {"teacher0", "teacher1"}  # no job uses teacher2
        calls: list[str] = []
        for record in train(run):
            if isinstance(record, Plan):
                for name, teacher in run.teachers.items():
                    layer = teacher.net.get_submodule("model.conv1")
                    layer.register_forward_hook(lambda *_, name=name: calls.append(name))
            if isinstance(record, Step) and record.step == 3:
                assert calls == ["teacher0", "teacher1"] * 3


def test_a_teacher_stops_where_no_job_needs_more() -> None:
    with run_of(spec_of(TWO_JOBS)) as run:
        run.teachers["teacher1"].view(next(run.train_loader.batches(0)))
        assert run.teachers["teacher1"].taps.stopped_at == "model.layer3"


def test_an_unused_teacher_is_a_warning() -> None:
    from kdcli.reference.tables import tables
    from kdcli.spec.check.resolve import check_references

    found = check_references(spec_of(TWO_JOBS), tables())
    assert [(d.code, d.path) for d in found if "teacher2" in d.message] == [
        ("KD605", ("teachers", "teacher2"))
    ]


def test_standardize_and_temperature() -> None:
    _, losses, views, _ = first_losses(
        SPEC, "mimic.standardize=true", "mimic.temperature=3", "mimic.cfgs.loss.kwargs=null"
    )

    def z(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) / 3

    student, teacher = views["student"].features["logits"], views["teacher0"].features["logits"]
    by_hand = 9 * F.kl_div(
        F.log_softmax(z(student), 1), F.log_softmax(z(teacher), 1), reduction="batchmean", log_target=True
    )
    assert losses["mimic_job0.teacher0.loss"].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_a_learned_temperature_trains() -> None:
    changes = ["mimic.temperature={learned: true, start: 1, range: 20}", "mimic.cfgs.loss.kwargs=null"]
    with run_of(spec_of(SPEC, *changes, "mimic.warm_up_iters=-1", "trainer.max_iter=4")) as run:
        theta = next(p for n, p in run.trainee.named_parameters() if n.endswith("theta"))
        before = theta.detach().clone()
        list(train(run))
        assert not torch.equal(before, theta)


@pytest.mark.parametrize("weighting", ["entropy", "confidence"])
def test_teacher_weighting_is_the_sum_over_teachers_of_weighed_samples(weighting: str) -> None:
    from kdcli.losses.parts import teacher_weights

    text = jobs(f"""
  mimic_job0:
    teacher_weighting: {weighting}
    cfgs: {{loss: {{type: kd_loss, kwargs: {{T: 2}}}}}}
    teacher0: {{mimic_name: [logits], {RANDOM}}}
    teacher1: {{mimic_name: [logits], {RANDOM}}}
    student: {{mimic_name: [logits]}}
""").replace(
        "teacher1: *teacher",
        "teacher1: {name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1, widths: [3, 3, 4, 8]}}",
    )
    _, losses, views, batch = first_losses(text)
    logits = [views[name].features["logits"] for name in ("teacher0", "teacher1")]
    weights = getattr(teacher_weights, weighting)(logits, batch["labels"])
    assert not torch.allclose(weights[0], weights[1])
    student = views["student"].features["logits"]
    for index, teacher in enumerate(logits):
        each = F.kl_div(
            F.log_softmax(student / 2, 1), F.log_softmax(teacher / 2, 1), reduction="none", log_target=True
        ).sum(1)
        by_hand = 4 * (weights[index] * each).mean()
        assert losses[f"mimic_job0.teacher{index}.loss"].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_weighting_needs_a_loss_that_can_weigh() -> None:
    text = TWO_JOBS.replace(
        "    loss_weight: 0.5\n", "    loss_weight: 0.5\n    teacher_weighting: entropy\n"
    )
    with pytest.raises(SpecError) as caught, run_of(spec_of(text)):
        pass
    assert caught.value.diagnostics[0].path == ("mimic", "jobs", "mimic_job1", "teacher_weighting")


@pytest.mark.parametrize("adapter", ["{type: conv, kwargs: {kernel_size: 3, relu: true}}", "auto"])
def test_an_adapter_trains_and_stays_out_of_the_student(adapter: str) -> None:
    text = SPEC.replace("kd_loss, kwargs: {T: 2}", "l2_loss").replace("[logits]", "[model.layer3]")
    with run_of(
        spec_of(text, f"mimic.adapter={adapter}", "trainer.max_iter=2", "mimic.warm_up_iters=-1")
    ) as run:
        own = {n: p.detach().clone() for n, p in run.trainee.named_parameters() if n.startswith("mimickers.")}
        assert own
        list(train(run))
        after = dict(run.trainee.named_parameters())
        assert all(
            not torch.equal(value, after[name]) for name, value in own.items() if name.endswith("weight")
        )
        assert saved_student(run.folder.student, run.student).keys() == run.student.state_dict().keys()


def test_an_adapter_of_one_loss_is_not_the_others() -> None:
    text = TWO_JOBS.replace("    adapter: auto\n", "").replace("type: sp,", "type: l2_loss,")
    own = "mimic.mimic_job1.cfgs.near.adapter=auto"
    with pytest.raises(SpecError) as caught, run_of(spec_of(text, own)):
        pass
    assert {d.code for d in caught.value.diagnostics} == {"KD430"}
    with run_of(spec_of(text, own, "mimic.mimic_job1.cfgs.late.adapter=auto")) as run:
        terms = run.trainee.mimickers["mimic_job1"].terms  # type: ignore[union-attr]
        assert len({id(term.adapters[0]) for term in terms.values()}) == 4  # type: ignore[union-attr]
