"""A loss that moves nothing stops the run before its first step, and is named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import RunError
from kdcli.losses.wkd_l import WassersteinLogit
from kdcli.records import Plan, Step
from kdcli.spec.parse import read
from kdcli.tasks.classification.task import Classification
from kdcli.training.first_step import refuse_strong_pulls
from kdcli.training.guard import prove_losses, prove_teachers
from kdcli.training.start import prepare
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


def test_a_block_that_is_skipped_at_random_is_looked_at_on_more_batches() -> None:
    block = "student.model.layer1.0.conv1.weight"
    with run_of(spec_of()) as run:
        first: list[float] = []

        def skip(_module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
            """Skip the block on the first batch; a draw says that it happens at random."""
            torch.rand(())
            first.append(float(given[0].detach().sum()))
            return given[0] if first[-1] == first[0] else output

        hook = run.student.get_submodule("model.layer1.0").register_forward_hook(skip)
        generator = torch.get_rng_state()
        reach = prove_losses(run).reach
        hook.remove()
        assert torch.equal(generator, torch.get_rng_state())
    assert all(block in names for names in reach.values())


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_runs_under_the_runs_autocast_and_scaler(precision: str) -> None:
    with run_of(spec_of()) as run:
        exact = prove_losses(run).pulls
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        reduced = replace(run, autocast=torch.autocast("cpu", dtype=dtype))
        seen: list[torch.dtype] = []
        conv = run.student.get_submodule("model.conv1")
        hook = conv.register_forward_hook(lambda _m, _a, out: seen.append(out.dtype))
        if precision == "fp16":
            # At this scale every gradient overflows: smaller ones are tried, as the run's scaler would.
            reduced = replace(reduced, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))
        found = prove_losses(reduced).pulls
        hook.remove()
    assert set(seen) == {dtype}
    assert found == pytest.approx(exact, rel=0.1) and found != exact


def test_a_pull_is_told_with_the_weight_that_would_make_it_even() -> None:
    with run_of(spec_of(SPEC, "mimic.loss_weight=2000")) as run:
        proven = prove_losses(run)
        (name,) = proven.pulls
        (notice,) = proven.notices()
        plan = run.stages[0]
        refuse_strong_pulls(run, proven, plan, 1.0)  # 100 to 10,000: a notice
    assert notice.level == "info" and f"`{name}` pulls the student" in notice.message
    even = 2000 / proven.pulls[name]
    assert f"`loss_weight: {even:.2g}` at the job (now 2000)" in notice.message
    with run_of(spec_of(SPEC, f"mimic.loss_weight={even}", "saver.save_dir=b")) as run:
        assert prove_losses(run).pulls[name] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("losses", ["{loss: {type: kd_loss}}", "{kd: {type: kd_loss}, l2: {type: l2_loss}}"])
def test_a_job_of_weight_0_pulls_nothing(losses: str) -> None:
    with run_of(spec_of(SPEC, "mimic.loss_weight=0", f"mimic.cfgs={losses}")) as run:
        proven = prove_losses(run)
        refuse_strong_pulls(run, proven, run.stages[0], 1.0)
    assert set(proven.pulls.values()) == {0.0}
    assert all(
        notice.level == "warning" and "raise its `loss_weight`" in notice.message
        for notice in proven.notices()
    )


def test_a_negative_weight_pulls_as_hard_the_other_way() -> None:
    with run_of(spec_of(SPEC, "mimic.loss_weight=-2000", "mimic.allow_negative=true")) as run:
        (notice,) = prove_losses(run).notices()
    assert "`loss_weight: -" in notice.message and "(now -2000)" in notice.message


def test_of_several_losses_the_weight_is_each_ones_own() -> None:
    losses = "mimic.cfgs={kd: {type: kd_loss, kwargs: {loss_weight: 3000}}, l2: {type: l2_loss}}"
    with run_of(spec_of(SPEC, losses)) as run:
        (notice,) = prove_losses(run).notices()
    assert "teacher0.kd`" in notice.message and "in its `kwargs` (now 3000)" in notice.message


def test_a_pull_beyond_the_scale_of_the_weights_stops_a_fresh_run_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strong = "mimic.loss_weight=1e7"
    with run_of(spec_of(SPEC, strong)) as run, pytest.raises(RunError, match="KD704") as caught:
        for record in train(run):
            seen = record
    (problem,) = caught.value.diagnostics
    assert "allow_strong_pull: true" in (problem.help or "") and problem.path == (
        "mimic",
        "jobs",
        "mimic_job0",
    )
    assert isinstance(seen, Plan) and seen.pulls["mimic_job0.teacher0.loss"] > 1e4, "the table is there"
    with run_of(spec_of(SPEC, strong, "mimic.allow_strong_pull=true", "saver.save_dir=b")) as run:
        proven, plan = prove_losses(run), run.stages[0]
        refuse_strong_pulls(run, proven, plan, 0.05)
    with run_of(spec_of(SPEC, strong, "saver.save_dir=c")) as run:
        (pull,) = proven.strengths.values()
        even = pull.weights / pull.gradient
        refuse_strong_pulls(run, proven, plan, 0.99 * even)  # such an lr keeps the step in scale
        with pytest.raises(RunError, match="times their norm"):
            refuse_strong_pulls(run, proven, plan, 1.01 * even)
    with run_of(spec_of(SPEC, strong, "trainer.clip_grad_norm=1", "saver.save_dir=d")) as run:
        refuse_strong_pulls(run, proven, plan, 0.05)  # and so does clipping


def test_a_student_that_knows_its_task_never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_of(spec_of()) as run:
        batches = [
            {**batch, "labels": torch.zeros_like(batch["labels"])} for batch in run.train_loader.batches(0)
        ]
        monkeypatch.setattr(run.train_loader, "batches", lambda *_: iter(batches))
        classifier = run.student.get_submodule("model.fc")
        assert isinstance(classifier, torch.nn.Linear)
        with torch.no_grad():  # sure of class 0, which all labels say: the task has hardly a gradient left
            classifier.bias.copy_(torch.tensor([18.0, 0.0, 0.0, 0.0]))
        proven = prove_losses(run)
        refuse_strong_pulls(run, proven, run.stages[0], 0.05)
    assert proven.pulls["mimic_job0.teacher0.loss"] > 1e6


def test_a_job_that_trains_without_the_task_is_not_compared_with_it() -> None:
    stages = (
        "mimic.stages=[{name: hint, max_iter: 2, task_loss: false, jobs: [mimic_job0]},"
        " {name: task, max_iter: 2, jobs: []}]"
    )
    with run_of(spec_of(SPEC, stages, "trainer.max_epoch=null", "mimic.loss_weight=1e-5")) as run:
        proven = prove_losses(run)
    assert proven.pulls == {} and proven.notices() == []


def test_each_loss_is_differentiated_from_the_same_draws() -> None:
    with run_of(spec_of()) as run:
        draws: list[float] = []
        run.student.register_forward_hook(lambda *_: draws.append(float(torch.rand(()))))
        before = copy.deepcopy(run.trainee.state_dict())
        prove_losses(run)
        after = run.trainee.state_dict()
    assert len(draws) == 2 and draws[0] == draws[1], "task and mimic loss, one pass each"
    assert all(torch.equal(before[name], after[name]) for name in before)


AUGMENTED = SPEC.replace("type: kd_loss, kwargs: {T: 2}", "type: wkd_l")
CROP = "{type: torch_random_crop, kwargs: {size: 8, padding: 1}}"


def prepared_costs(text: str, *changes: str) -> torch.Tensor:
    """The costs of `wkd_l` after the pass over the training data."""
    with run_of(spec_of(text, *changes)) as run:
        list(prepare(run))
        term = next(m for m in run.trainee.modules() if isinstance(m, WassersteinLogit))
        return term.cost.clone()


def test_a_method_that_prepares_sees_the_training_data_not_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = AUGMENTED.replace(f"          - {CROP}\n", "", 1)
    assert plain != AUGMENTED
    with run_of(spec_of(AUGMENTED)) as run:
        bare = run.unaugmented()
        assert bare is not None
        trained = {}
        for batch in run.train_loader.batches(0):
            trained |= dict(zip(batch["indices"].tolist(), batch["image"], strict=True))
        pixels = {
            i: x for b in bare.batches(0) for i, x in zip(b["indices"].tolist(), b["image"], strict=True)
        }
    with run_of(spec_of(plain, "saver.save_dir=b")) as run:
        truth = {
            i: x
            for b in run.train_loader.batches(0)
            for i, x in zip(b["indices"].tolist(), b["image"], strict=True)
        }
    assert pixels.keys() == truth.keys() == set(range(40))
    assert all(torch.equal(pixels[i], truth[i]) for i in truth)
    assert not all(torch.equal(pixels[i], trained[i]) for i in truth), "training itself stays augmented"
    # The same costs as without any augmentation, beside a cache, and read image by image.
    costs = prepared_costs(AUGMENTED, "saver.save_dir=c")
    assert torch.equal(costs, prepared_costs(plain, "saver.save_dir=d"))
    assert torch.equal(
        costs, prepared_costs(AUGMENTED, "mimic.teacher0.cache={views: 2}", "saver.save_dir=e")
    )
    one_by_one = "dataset.train.dataloader={type: base, kwargs: {in_memory: false}}"
    assert torch.equal(costs, prepared_costs(AUGMENTED, one_by_one, "saver.save_dir=f"))
    assert not torch.equal(costs, WassersteinLogit(4).cost)


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
    # 0 itself is refused; this weight is 0 in float32.
    post = "{name: post, type: base_cls_postprocess, kwargs: {cls_loss: {type: ce, kwargs: {loss_weight: 1.0e-60}}}}"
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


@pytest.mark.slow
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


def test_a_teacher_with_one_answer_for_every_image_stops_the_run_however_often_that_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Classification, "near_chance", lambda *_: False
    )  # as where most images are of one class
    weak = SPEC.replace(", allow_weak_teacher: true", "")
    with run_of(spec_of(weak)) as run:
        with torch.no_grad():
            dict(run.teachers["teacher0"].net.named_parameters())["model.fc.bias"][2] = 1e6
        said = "teacher0 scores top1 25.0 on this data; it answers every image with class 2"
        with pytest.raises(RunError, match=said) as caught:
            prove_teachers(run)
    assert caught.value.diagnostics[0].code == "KD703"
    with run_of(spec_of(SPEC, "saver.save_dir=b")) as run:
        with torch.no_grad():
            dict(run.teachers["teacher0"].net.named_parameters())["model.fc.bias"][2] = 1e6
        _, told = prove_teachers(run)
    assert [one.message for one in told] == ["teacher0 answers every image with class 2, whatever is on it"]
