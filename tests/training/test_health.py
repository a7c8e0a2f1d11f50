"""NaN and Inf never reach the weights; probabilities in place of logits are warned of before training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.errors import RunError
from kdcli.models.weights import read_weights
from kdcli.parallel.sharding import watched
from kdcli.records import Notice, Saved, Step
from kdcli.spec.parse import ParsedSpec
from kdcli.training import train as loop
from kdcli.training.checkpoint import checkpoints, load_checkpoint
from kdcli.training.health import FiniteCheck, Seen, are_finite, are_probabilities, doubtful_logits
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all


def spoil(run: Run, *steps: int, gradient: bool = False) -> None:
    """Make the student's task loss (or a gradient alone) NaN at these steps, once training has begun."""
    forward, done = run.trainee.forward, [0]

    def spoiled(batch: Any, views: Any, step_info: Any, weighted: bool = True) -> dict[str, torch.Tensor]:
        losses = forward(batch, views, step_info, weighted)
        if weighted:
            done[0] += 1
            if done[0] in steps:
                loss = losses["task.loss"]
                if gradient:
                    loss.register_hook(lambda g: g * float("nan"))
                else:
                    losses["task.loss"] = loss * float("nan")
                    next(run.student.buffers()).data.fill_(float("nan"))
        return losses

    run.trainee.forward = spoiled  # type: ignore[method-assign]


def failed_run(**how: Any) -> tuple[list[Any], RunError, Path]:
    """The records of a run whose seventh step goes wrong, and the error it stops with."""
    records = []
    with run_of(spec_of(SPEC, "trainer.log_freq=2")) as run:
        spoil(run, 7, **how)
        with pytest.raises(RunError) as caught:
            for record in train(run):
                records.append(record)
        return records, caught.value, run.folder.root


@pytest.mark.parametrize("gradient", [False, True])
def test_the_run_stops_and_names_what_is_needed_to_do_the_step_again(gradient: bool) -> None:
    records, error, root = failed_run(gradient=gradient)
    diagnostic = error.diagnostics[0]
    assert diagnostic.code == "KD730" and "at step 7" in diagnostic.message
    assert ("the gradient of `student." if gradient else "the loss `task.loss`") in diagnostic.message
    assert [r.step for r in records if isinstance(r, Saved)] == [5]
    state = load_checkpoint(checkpoints(root / "checkpoints")[0])
    assert all(bool(t.isfinite().all()) for t in state["trainee"].values())
    replay = torch.load(root / "replay_00000007.pt", weights_only=True)
    assert replay["step"] == 7 and replay["epoch"] == 1
    own = replay["processes"][0]
    with run_of(spec_of(SPEC), overwrite=True) as run:
        batches = list(run.train_loader.batches(1))
    assert own["indices"] == [batches[1]["indices"].tolist()]
    assert set(own["losses"][0]) == {"task.loss", "mimic_job0.teacher0.loss"}
    assert own["generators"]["cpu"].dtype == torch.uint8


@pytest.mark.parametrize("gradient", [False, True])
def test_on_cuda_a_flag_is_read_at_log_points_and_no_bad_weights_are_saved(
    gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FiniteCheck", lambda run: FiniteCheck(run, deferred=True))
    records, error, root = failed_run(gradient=gradient)
    assert "at step 7" in error.diagnostics[0].message
    assert max(r.step for r in records if isinstance(r, Step)) == 8
    assert [r.step for r in records if isinstance(r, Saved)] == [5]
    replay = torch.load(root / "replay_00000007.pt", weights_only=True)
    assert len(replay["processes"][0]["indices"][0]) == 8


def test_bad_steps_are_skipped_within_the_budget() -> None:
    spec = spec_of(SPEC, "trainer.on_nonfinite=skip", "trainer.nonfinite_budget=2")
    with run_of(spec) as run:
        spoil(run, 3, 8)
        records = list(train(run))
    told = [r.message for r in records if isinstance(r, Notice) and "skipped" in r.message]
    assert told == [
        "step 3 skipped: the loss `task.loss` is not finite (1 of at most 2)",
        "step 8 skipped: the loss `task.loss` is not finite (2 of at most 2)",
    ]
    weights = read_weights(Path("runs/small/student.safetensors"))
    assert all(bool(t.isfinite().all()) for t in weights.values())
    with run_of(spec, overwrite=True) as run:
        spoil(run, 3, 5, 8)
        with pytest.raises(RunError, match="at step 8"):
            list(train(run))


def test_the_budget_holds_over_a_resume() -> None:
    spec = spec_of(SPEC, "trainer.on_nonfinite=skip", "trainer.nonfinite_budget=1", "saver.auto_resume=true")
    with run_of(spec) as run:
        spoil(run, 3)
        for record in train(run):
            if isinstance(record, Saved):
                break
    with run_of(spec) as run:
        spoil(run, 1)
        with pytest.raises(RunError, match="at step 6"):
            list(train(run))


def test_a_good_run_leaves_no_replay() -> None:
    train_all(spec_of(SPEC, "trainer.max_iter=2"))
    assert not list(Path("runs/small").glob("replay_*"))


PLUGINS = ("tests",)
CENTRES = "kwargs: {centres: [0.44, 0.48, 0.52, 0.56]}"


def teacher(kind: str, *changes: str, tap: str = "logits") -> ParsedSpec:
    return spec_of(
        SPEC,
        f"teacher0={{name: model, type: 'tests.training.label_nets:{kind}', {CENTRES}}}",
        f"mimic.teacher0.mimic_name=['{tap}']",
        *changes,
    )


def told(parsed: ParsedSpec) -> list[Notice]:
    with run_of(parsed, plugins=PLUGINS) as run:
        return list(doubtful_logits(run))


@pytest.mark.parametrize(
    ("kind", "tap", "layer"),
    [
        ("Softmaxed", "logits", "model.softmax:in"),
        ("Softmaxed", "model.softmax", "model.softmax:in"),
        ("Functional", "logits", "model.fc"),
    ],
)
def test_a_teacher_that_ends_in_a_softmax(kind: str, tap: str, layer: str) -> None:
    (notice,) = told(teacher(kind, tap=tap))
    assert notice.level == "warning"
    assert notice.message.startswith(f"KD626: `{tap}` of teacher0 gives probabilities, and kd_loss takes a")
    assert f"`{layer}`" in notice.message
    assert told(teacher(kind, tap=layer)) == []


def test_a_teacher_whose_weights_are_held_in_half_precision() -> None:
    (notice,) = told(teacher("SoftmaxedInFull", "runtime.teacher_precision=bf16"))
    assert "KD626" in notice.message and "`model.softmax:in`" in notice.message


def test_it_is_told_before_the_first_step() -> None:
    with run_of(teacher("Softmaxed"), plugins=PLUGINS) as run:
        records = list(train(run))
    warned = next(i for i, r in enumerate(records) if isinstance(r, Notice) and "KD626" in r.message)
    assert warned < next(i for i, r in enumerate(records) if isinstance(r, Step))


@pytest.mark.parametrize("kind", ["Grey", "LogSoftmaxed"])
def test_logits_and_their_logarithms_are_fine(kind: str) -> None:
    assert told(teacher(kind)) == []


def test_a_feature_loss_may_read_probabilities() -> None:
    assert told(teacher("Softmaxed", "mimic.cfgs.loss={type: l2_loss}")) == []


def test_a_loss_that_reads_logits_beside_features() -> None:
    srd = "mimic.cfgs.loss={type: srd}"
    changes = (srd, "mimic.student.mimic_name=[model.layer3]", "teacher0.type=tests.training.label_nets:Mapped",
               "teacher0.model.kwargs={}", "mimic.teacher0.mimic_name=[model.conv2]")  # fmt: skip
    (notice,) = told(teacher("Softmaxed", *changes))
    assert notice.message.startswith("KD626: srd reads the logits of teacher0, and these are probabilities")


def test_probabilities_of_more_classes_are_seen_before_some_are_selected() -> None:
    wide = "teacher0.model.kwargs.centres=[0.42, 0.44, 0.46, 0.48, 0.5, 0.52]"
    (notice,) = told(teacher("Softmaxed", wide, "mimic.teacher0.classes=[0, 2, 3, 5]"))
    assert "`model.softmax:in`" in notice.message
    # ... and then the named input of the softmax has to be selected too
    found = teacher("Softmaxed", wide, "mimic.teacher0.classes=[0, 2, 3, 5]", tap="model.softmax:in")
    with run_of(found, plugins=PLUGINS) as run:
        batch = dict(next(run.train_loader.batches(0)))
        net = run.teachers["teacher0"].net
        shown = run.teachers["teacher0"].view(batch).features["model.softmax:in"]
        fc = net.get_submodule("model.fc")(batch["image"].mean((2, 3)))
        assert torch.equal(shown, fc[:, [0, 2, 3, 5]])  # type: ignore[arg-type]


def test_a_student_that_ends_in_a_softmax() -> None:
    student = f"net={{name: model, type: 'tests.training.label_nets:Softmaxed', {CENTRES}}}"
    cross_entropy, kd = sorted(told(spec_of(SPEC, student)), key=lambda notice: "kd_loss" in notice.message)
    assert "`logits` of the student are probabilities, and cross entropy" in cross_entropy.message
    assert "`logits` of the student gives probabilities, and kd_loss" in kd.message
    assert "`model.softmax:in`" in kd.message
    alone = told(spec_of(SPEC, student, "mimic.task_loss=false"))
    assert ["cross entropy" in notice.message for notice in alone] == [False]


def test_a_student_without_a_teacher() -> None:
    student = f"net={{name: model, type: 'tests.training.label_nets:Functional', {CENTRES}}}"
    (notice,) = told(spec_of(SPEC, student, "runtime.runner.type=base"))
    assert "cross entropy" in notice.message and "leave the softmax out" in notice.message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8004]], True),
        ([[0.2, 0.81]], False),
        ([[0.2, 0.8], [0.5, 0.6]], False),
        ([[-0.5, 1.5]], False),
        ([[1.0], [1.0]], False),
        ([[float("nan"), 0.5]], False),
    ],
)
def test_are_probabilities(rows: list[list[float]], expected: bool) -> None:
    assert are_probabilities(torch.tensor(rows)) is expected


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_pass_over_gradients_finds_what_is_not_finite_and_keeps_their_bits(
    dtype: torch.dtype, wrong: float
) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 2
    largest = torch.finfo(dtype).max  # its square overflows, as a norm of such a gradient would
    gradients = [
        torch.tensor([0.0, -0.0, tiny, largest, 1.5], dtype=dtype),
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ]
    before = [gradient.clone() for gradient in gradients]
    found, norm = watched(gradients, torch.ones(()))
    assert found is not None and float(found) == 0.0 and norm is None
    for gradient, other in zip(gradients, before, strict=True):
        assert torch.equal(gradient, other) and torch.equal(gradient.signbit(), other.signbit())
    gradients[0][1] = wrong
    found, _ = watched(gradients, torch.ones(()))
    assert found is not None and float(found) > 0.0
    assert watched([], torch.ones(())) == (None, None)


def test_of_many_steps_each_bad_one_is_found() -> None:
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    clean, marked = torch.tensor(0.0), torch.tensor(1.0)
    steps = [
        Seen([{"a": good, "b": good}], None, clean),
        Seen([{"a": good, "b": bad}], None, clean),
        Seen([{"a": good}, {"a": good}], None, marked),
        Seen([{"a": good}], bad, None),
        Seen([{"a": good}], good, None),
        Seen([{"a": good}], None, None),
    ]
    assert are_finite(steps) == [True, False, False, False, True, True]
