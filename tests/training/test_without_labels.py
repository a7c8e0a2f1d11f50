"""Runs on images without labels, and students whose head nothing trains."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kdcli.analysis.comparison import compare
from kdcli.check.check import CheckOptions, check
from kdcli.errors import SpecError
from kdcli.parallel.distributed import Processes
from kdcli.records import Evaluation, Finished, Notice, Plan
from kdcli.training.checkpoint import ANSWERS, FEATURES, UNTRAINED
from kdcli.training.run import RunOptions
from tests.training.runs import SPEC, run_of, spec_of, train_all

UNLABELLED = SPEC.replace("num_classes: 4, shape", "num_classes: 4, labels: none, shape").replace(
    "num_classes: 4\n        shape", "num_classes: 4\n        labels: none\n        shape"
)
FEATURES_ALONE = "\n".join(
    line.replace("[logits]", "[model.layer3]").replace(
        "loss: {type: kd_loss, kwargs: {T: 2}}",
        "loss: {type: l2_loss, adapter: auto, kwargs: {feat_norm: false, batch_mean: true}}",
    )
    for line in UNLABELLED.splitlines()
)
LABELLED_FEATURES = (
    FEATURES_ALONE.replace(", labels: none", "")
    .replace("        labels: none\n", "")
    .replace("mimic:\n", "mimic:\n  task_loss: false\n")
)


def evaluations(records: list[Any]) -> list[Evaluation]:
    return [one for one in records if isinstance(one, Evaluation)]


def test_features_without_labels_train_and_are_measured(tmp_path: Path) -> None:
    root = tmp_path / "run"
    records = train_all(
        spec_of(FEATURES_ALONE, f"saver.save_dir={root}", "trainer.optimizer.kwargs.lr=0.005")
    )
    (plan,) = (one for one in records if isinstance(one, Plan))
    assert not plan.labelled
    told = [one.message for one in records if isinstance(one, Notice)]
    assert sum("KD243" in one and "20 parameters" in one and "`model.fc`" in one for one in told) == 1
    first, last = evaluations(records)
    assert list(last.metrics) == ["explained_variance", "distill_loss"]
    assert last.primary == "explained_variance"
    assert last.metrics["distill_loss"] < first.metrics["distill_loss"]
    (finished,) = (one for one in records if isinstance(one, Finished))
    assert finished.primary == "explained_variance" and not finished.teachers
    with safe_open(root / "student_best.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata[ANSWERS] == FEATURES
    assert json.loads(metadata[UNTRAINED]) == ["model.fc.weight", "model.fc.bias"]


def test_images_without_labels_may_be_mixed(tmp_path: Path) -> None:
    """A plugin that says it mixes labels may not; what the teachers see is the mixed image."""
    mixing = "dataset.train.dataloader.kwargs.batch_fn={type: batch_cutmixup, kwargs: {switch_prob: 0.5}}"
    with run_of(spec_of(UNLABELLED, f"saver.save_dir={tmp_path}", mixing)) as run:
        (mixed, *_) = run.train_loader.batches(0)
    with run_of(spec_of(UNLABELLED, f"saver.save_dir={tmp_path}")) as run:
        (plain, *_) = run.train_loader.batches(0)
    assert set(mixed) == set(plain) and not torch.equal(mixed["image"], plain["image"])
    own = mixing.replace(
        "batch_cutmixup, kwargs: {switch_prob: 0.5}", "own.mix:Mix, kwargs: {num_classes: 4}"
    )
    with pytest.raises(SpecError, match="so it mixes labels") as error:
        spec_of(UNLABELLED, own)
    assert "KD242" in [one.code for one in error.value.diagnostics]


@pytest.mark.slow
def test_eval_measures_what_training_measured(tmp_path: Path) -> None:
    root = tmp_path / "run"
    parsed = spec_of(FEATURES_ALONE, f"saver.save_dir={root}")
    records = train_all(parsed)
    best = next(one for one in reversed(evaluations(records)) if one.best)
    rows, _ = compare(parsed, RunOptions(), Processes(device=torch.device("cpu")), None)
    assert rows[0].metrics == pytest.approx(best.metrics, rel=1e-6)
    assert [row.network for row in rows] == ["student"]  # its teacher is random
    for checkpoint in (root / "checkpoints").iterdir():
        checkpoint.unlink()
    rows, notices = compare(parsed, RunOptions(), Processes(device=torch.device("cpu")), None)
    assert rows[0].metrics == best.metrics
    assert any("not measured anew" in notice.message for notice in notices)


def test_the_distillation_loss_is_that_of_a_step(tmp_path: Path) -> None:
    """One batch of all test images, no warm-up: what the trainee itself gives on it in evaluation mode."""
    from kdcli.distill.mimickers.mimicker import StepInfo
    from kdcli.training.evaluate import measure_mimicry

    changes = ["mimic.loss_weight=0.25", "dataset.batch_sampler.kwargs.batch_size=20"]
    with run_of(spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path}", *changes)) as run:
        here = Processes(device=torch.device("cpu"))
        found = measure_mimicry(run.joined, run.teachers, run.test_loader, run.task, here)
        (batch,) = run.test_loader.batches(0)
        views = {name: teacher.view(batch) for name, teacher in run.teachers.items()}
        run.trainee.eval()
        losses = run.trainee(batch, views, StepInfo(step=9, stage_step=9))
        assert found["distill_loss"] == pytest.approx(
            float(losses["mimic_job0.teacher0.loss"].detach()), rel=1e-6
        )


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    from kdcli.training.evaluate import measure_mimicry

    with run_of(spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path}")) as run:
        run.trainee.train()
        before = {name: value.clone() for name, value in run.trainee.state_dict().items()}
        drawn = torch.get_rng_state()
        here = Processes(device=torch.device("cpu"))
        once = measure_mimicry(run.joined, run.teachers, run.test_loader, run.task, here)
        assert once == measure_mimicry(run.joined, run.teachers, run.test_loader, run.task, here)
        assert torch.equal(drawn, torch.get_rng_state())
        assert all(module.training for module in run.trainee.modules() if module is not run.student)
        for name, value in run.trainee.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_logits_without_labels_are_measured_by_agreement(tmp_path: Path) -> None:
    records = train_all(spec_of(UNLABELLED, f"saver.save_dir={tmp_path}"))
    found = evaluations(records)[-1]
    assert list(found.metrics) == ["agreement", "distill_loss"] and found.primary == "agreement"
    assert 0.0 <= found.metrics["agreement"] <= 100.0
    assert not any("KD243" in one.message for one in records if isinstance(one, Notice))


@pytest.mark.slow
def test_logits_without_labels_are_scored_where_the_test_data_has_them(tmp_path: Path) -> None:
    text = UNLABELLED.replace(", labels: none", "")
    assert text.count("labels: none") == 1
    found = evaluations(train_all(spec_of(text, f"saver.save_dir={tmp_path}")))[-1]
    assert found.primary == "top1" and "top1" in found.metrics


def test_a_head_that_nothing_trains_is_not_scored(tmp_path: Path) -> None:
    root = tmp_path / "run"
    parsed = spec_of(LABELLED_FEATURES, f"saver.save_dir={root}")
    assert "labels" not in parsed.text
    records = train_all(parsed)
    assert all("top1" not in one.metrics for one in evaluations(records))
    assert evaluations(records)[-1].primary == "explained_variance"
    rows, _ = compare(parsed, RunOptions(), Processes(device=torch.device("cpu")), None)
    assert "top1" not in rows[0].metrics and rows[0].metrics["explained_variance"] >= 0


@pytest.mark.slow
def test_a_head_from_weights_is_scored(tmp_path: Path) -> None:
    first = tmp_path / "first"
    train_all(spec_of(SPEC, f"saver.save_dir={first}", "trainer.max_epoch=1"))
    pretrained = [
        f"saver.save_dir={tmp_path / 'second'}",
        f"saver.pretrain_model={first / 'student.safetensors'}",
    ]
    records = train_all(spec_of(LABELLED_FEATURES, *pretrained))
    told = [one.message for one in records if isinstance(one, Notice)]
    assert evaluations(records)[-1].primary == "top1"
    assert not any("KD243" in one for one in told)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train_all(spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path / 'a'}"))
    part = spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path / 'b'}", "trainer.max_epoch=1")
    train_all(part)
    rest = train_all(
        spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path / 'b'}"), resume=True, allow_changed=("trainer",)
    )
    assert evaluations(rest)[-1].metrics == evaluations(whole)[-1].metrics
    assert not any("KD243" in one.message for one in rest if isinstance(one, Notice))
    with (
        safe_open(tmp_path / "a" / "student.safetensors", framework="pt") as one,
        safe_open(tmp_path / "b" / "student.safetensors", framework="pt") as other,
    ):
        assert one.metadata()[UNTRAINED] == other.metadata()[UNTRAINED]
        for name in one.keys():
            assert torch.equal(one.get_tensor(name), other.get_tensor(name)), name


def test_images_without_labels_need_a_teacher() -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(UNLABELLED, "runtime.runner.type=base")
    assert [found.code for found in caught.value.diagnostics if found.severity == "error"] == ["KD241"]


def test_the_tasks_loss_needs_labels() -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(UNLABELLED, "mimic.task_loss=true")
    assert [found.code for found in caught.value.diagnostics] == ["KD240"]
    assert spec_of(UNLABELLED).spec.mimic.task_loss is False  # type: ignore[union-attr]


@pytest.mark.slow
def test_labels_can_not_train_a_network_without_a_classifier() -> None:
    pytest.importorskip("timm")
    net = "net={name: model, type: timm.test_resnet, kwargs: {num_classes: 0, in_chans: 1}}"
    parsed = spec_of(SPEC, "runtime.runner.type=base", net)
    (error,) = [one for one in check(parsed, CheckOptions(plan=False)).findings if one.severity == "error"]
    assert error.code == "KD446" and "without a classifier" in error.message
    assert error.path == ("net", 0, "kwargs", "num_classes")


@dataclass(frozen=True, kw_only=True)
class Member(Processes):
    """One of two processes, whose sums are kept instead of exchanged."""

    kept: list[Any] = field(default_factory=list)

    def share(self, tensors: Any) -> None:
        """Both have the same here."""

    def gather(self, value: Any) -> list[Any]:
        self.kept.append(value)
        return [value]


@pytest.mark.parametrize("loss", ["sp", "l2_loss"])
def test_two_processes_measure_as_one(tmp_path: Path, loss: str) -> None:
    """Also a loss that compares the images of a batch: each batch is whole, in one of them."""
    from kdcli.tasks.mimicry import Mimicry
    from kdcli.training.evaluate import measure_mimicry

    text = FEATURES_ALONE.replace("l2_loss, adapter: auto", loss).replace(
        "kwargs: {feat_norm: false, batch_mean: true}", "kwargs: {}" if loss == "sp" else "adapter: auto"
    )
    with run_of(spec_of(text, f"saver.save_dir={tmp_path}")) as run:
        found = []
        for members in (
            [Processes(device=torch.device("cpu"))],
            [Member(device=torch.device("cpu"), rank=r, world_size=2) for r in (0, 1)],
        ):
            results = [
                measure_mimicry(run.joined, run.teachers, run.test_loader, run.task, one) for one in members
            ]
            sums = [one.kept[0] for one in members if isinstance(one, Member)]
            assert all(sums)
            found.append(Mimicry(run.trainee, None, ()).result(sums) if sums else results[0])
    assert found[0]["distill_loss"] > 0
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.slow
def test_a_cached_teacher_teaches_the_same(tmp_path: Path) -> None:
    live, cached = (
        evaluations(train_all(spec_of(FEATURES_ALONE, f"saver.save_dir={tmp_path / name}", *changes)))
        for name, changes in (
            ("live", ["mimic.teacher0.cache={views: 2, dir: %s, dtype: float32}" % (tmp_path / "caches")]),
            ("cached", ["mimic.teacher0.cache={views: 2, dir: %s, dtype: float32}" % (tmp_path / "caches")]),
        )
    )
    assert [one.metrics for one in live] == [one.metrics for one in cached]


@pytest.mark.slow
def test_a_network_without_a_classifier_is_never_scored(tmp_path: Path) -> None:
    """Its `logits` are features: neither as wide as the data has classes, nor with one class, is it a classifier."""
    pytest.importorskip("timm")
    text = LABELLED_FEATURES.replace(
        "  type: cifar_resnet8\n  kwargs: {num_classes: 4, in_channels: 1, widths: [4, 4, 4, 8]}",
        "  type: timm.test_resnet\n  kwargs: {num_classes: 0, in_chans: 1}",
    )
    text = text.replace("teacher0: {mimic_name: [model.layer3]", "teacher0: {mimic_name: [model.layer2]")
    text = text.replace(", allow_weak_teacher: true", "")
    assert "num_classes: 0" in text
    one_class = ["dataset.train.dataset.kwargs.num_classes=1", "dataset.test.dataset.kwargs.num_classes=1"]
    records = train_all(spec_of(text, f"saver.save_dir={tmp_path}", "trainer.max_epoch=1", *one_class))
    (finished,) = (one for one in records if isinstance(one, Finished))
    assert not finished.teachers and "top1" not in finished.last
