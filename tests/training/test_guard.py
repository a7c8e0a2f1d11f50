"""A loss that moves nothing stops the run before its first step, and is named."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import RunError
from kdcli.records import Step
from kdcli.spec.parse import read
from kdcli.training.guard import prove_losses, prove_teachers
from kdcli.training.train import train
from tests.scenes import SAMPLES, on_scenes, write_scenes
from tests.training.runs import SPEC, run_of, spec_of


def test_every_loss_reaches_the_student_and_nothing_is_left_changed() -> None:
    with run_of(spec_of(SPEC, "mimic.warm_up_iters=1000")) as run:
        before = copy.deepcopy(run.trainee.state_dict())
        generator = torch.get_rng_state()
        reach = prove_losses(run).reach
        assert set(reach) == {"task.loss", "mimic_job0.teacher0.loss"}
        assert all("student.model.conv1.weight" in names for names in reach.values())
        after = run.trainee.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(generator, torch.get_rng_state())
        assert all(p.grad is None for p in run.trainee.parameters())


def test_how_hard_a_loss_pulls_is_its_gradient_to_the_tasks() -> None:
    with run_of(spec_of(SPEC, "mimic.loss_weight=3", "mimic.warm_up_iters=1000")) as run:
        proven = prove_losses(run)
        batch = next(iter(run.train_loader.batches(0)))
        views = {"teacher0": run.teachers["teacher0"].view(batch)}
        losses = run.trainee.train()(batch, views, StepInfo(), weighted=False)
        lengths = {}
        for name, loss in losses.items():
            run.trainee.zero_grad()
            loss.backward(retain_graph=True)
            squares = [float(p.grad.square().sum()) for p in run.student.parameters() if p.grad is not None]
            lengths[name] = sum(squares) ** 0.5
    pull = 3 * lengths["mimic_job0.teacher0.loss"] / lengths["task.loss"]
    assert proven.pulls == {"mimic_job0.teacher0.loss": pytest.approx(pull, rel=1e-5)}
    assert proven.notices() == []


def test_a_loss_that_is_hardly_felt_is_told() -> None:
    with run_of(spec_of(SPEC, "mimic.loss_weight=1e-5")) as run:
        proven = prove_losses(run)
    (notice,) = proven.notices()
    assert notice.level == "warning" and "`mimic_job0.teacher0.loss` pulls" in notice.message


def test_without_a_task_loss_nothing_is_compared() -> None:
    with run_of(spec_of(SPEC, "mimic.task_loss=false")) as run:
        assert prove_losses(run).pulls == {}


def test_a_frozen_student_has_no_path() -> None:
    text = SPEC.replace("kd_loss, kwargs: {T: 2}", "l2_loss").replace("[logits]", "[model.conv1]")
    with run_of(spec_of(text, "mimic.adapter=auto")) as run:
        for name, parameter in run.student.named_parameters():
            if "conv1" in name and "layer" not in name:
                parameter.requires_grad_(False)
        with pytest.raises(RunError, match=r"`mimic_job0\.teacher0\.loss`.*no gradient") as caught:
            prove_losses(run)
    assert caught.value.diagnostics[0].code == "KD700"
    assert "model.conv1" in str(caught.value)


def test_a_gradient_of_zero_is_tried_on_many_batches_then_told() -> None:
    text = SPEC.replace("kd_loss, kwargs: {T: 2}", "kd_loss, kwargs: {loss_weight: 0}")
    with run_of(spec_of(text)) as run:
        if "loss_weight" not in str(run.joined.pairs):
            pytest.raises(RunError)
        with pytest.raises(RunError) as caught:
            prove_losses(run)
    assert caught.value.diagnostics[0].code == "KD702"
    assert "loss_weight" in (caught.value.diagnostics[0].help or "")


def test_a_task_loss_that_moves_nothing_is_no_matter_of_a_teacher() -> None:
    post = "{name: post, type: base_cls_postprocess, kwargs: {cls_loss: {type: ce, kwargs: {loss_weight: 1e-300}}}}"
    model = (
        "{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}}"
    )
    with run_of(spec_of(SPEC, "runtime.runner.type=base", f"net=[{model}, {post}]")) as run:
        with pytest.raises(RunError) as caught:
            prove_losses(run)
    (found,) = caught.value.diagnostics
    assert found.code == "KD702" and "`task.loss`" in found.message
    assert "teacher" not in (found.help or "") and "loss_weight" in (found.help or "")


def test_a_detector_whose_anchors_match_nothing_is_told_so(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    matcher = "net.post_process.kwargs.cfg.roi_supervisor.kwargs.matcher.kwargs"
    none = [f"{matcher}.positive_iou_thresh=0.999", f"{matcher}.allow_low_quality_match=false"]
    with run_of(read(str(SAMPLES / "scenes_student.yaml"), [*on_scenes(scenes), *none])) as run:
        with pytest.raises(RunError) as caught:
            prove_losses(run)
    assert {found.code for found in caught.value.diagnostics} == {"KD702"}
    helps = {found.help for found in caught.value.diagnostics}
    assert helps == {
        "no object of the batch can be matched: are there boxes, and are the images not too thin or too small "
        "for the anchors?"
    }


def silent_frs(folder: Path, *changes: str) -> list[str]:
    """A tiny FRS whose pred_loss is logged alone."""
    teacher = "mimic.teacher={mimic_name: [neck.p2_conv], allow_random: true, allow_weak_teacher: true}"
    taps = "mimic.student.mimic_name=[neck_adapt.conv.0.0]"
    return [
        *on_scenes(write_scenes(folder)),
        teacher,
        taps,
        "mimic.cfgs.pred_gradient=false",
        "mimic.warm_up_iters=0",
        *changes,
    ]


def test_a_loss_that_is_logged_alone_needs_no_gradient_and_is_told(tmp_path: Path) -> None:
    changes = silent_frs(tmp_path / "scenes", f"saver.save_dir={tmp_path / 'run'}")
    with run_of(read(str(SAMPLES / "scenes_frs.yaml"), changes)) as run:
        proven = prove_losses(run)
        name = "mimic_job0.teacher.pred_loss"
        assert proven.logged_only == {name: "`pred_gradient: false`"} and not proven.reach[name]
        told = [notice for notice in proven.notices() if name in notice.message]
        assert [(notice.level, notice.message) for notice in told] == [
            ("info", f"`{name}` is logged and moves nothing: `pred_gradient: false`")
        ]
        steps = [record for record in train(run) if isinstance(record, Step)]
    assert all(step.losses[name] > 0 for step in steps) and steps


def test_a_loss_that_is_logged_alone_has_to_be_finite(tmp_path: Path) -> None:
    with run_of(read(str(SAMPLES / "scenes_frs.yaml"), silent_frs(tmp_path / "scenes"))) as run:
        with torch.no_grad():
            next(run.student.parameters()).fill_(float("nan"))
        with pytest.raises(RunError) as caught:
            prove_losses(run)
    assert {found.code for found in caught.value.diagnostics} == {"KD701"}
    assert any("pred_loss" in found.message for found in caught.value.diagnostics)


def test_a_loss_that_is_not_finite_is_told() -> None:
    with run_of(spec_of()) as run:
        with torch.no_grad():
            next(run.teachers["teacher0"].net.parameters()).fill_(float("nan"))
        with pytest.raises(RunError) as caught:
            prove_losses(run)
    assert caught.value.diagnostics[0].code == "KD701"


def test_a_teacher_near_chance_stops_the_run_unless_allowed() -> None:
    weak = SPEC.replace(", allow_weak_teacher: true", "")
    with run_of(spec_of(weak)) as run, pytest.raises(RunError, match="guessing scores 25") as caught:
        prove_teachers(run)
    assert caught.value.diagnostics[0].code == "KD703"
    with run_of(spec_of(SPEC, "saver.save_dir=b")) as run:
        assert set(prove_teachers(run)[0]) == {"teacher0"}
