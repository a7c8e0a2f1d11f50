"""`trainer`, `saver` and `hooks`: each key by what a run does with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from kdcli.errors import KdError
from kdcli.records import Evaluation, Finished, Plan, Record, Saved, Step
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.training.checkpoint import checkpoints
from kdcli.training.evaluate import evaluate, evaluation_mode
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, saved_student, spec_of, train_all


def lrs(records: list[Record]) -> list[float]:
    return [record.lr for record in records if isinstance(record, Step)]


def at(records: list[Record], kind: type[Record]) -> list[int]:
    return [record.step for record in records if isinstance(record, kind)]  # type: ignore[union-attr]


def test_the_lr_of_a_whole_run_warms_up_to_the_scaled_target() -> None:
    scheduler = (
        "trainer.lr_scheduler={type: MultiStepLR, warmup_iter: 4, kwargs: {milestones: [1], gamma: 0.1}}"
    )
    records = train_all(spec_of(SPEC, scheduler, "trainer.optimizer.kwargs.lr=0.001"))
    # lr x batch 8 x 1 process, by equal factors from the written lr; 5 steps an epoch
    assert lrs(records) == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.008] + [0.0008] * 5)
    assert next(r.effective_lr for r in records if isinstance(r, Plan)) == pytest.approx(0.008)


def test_the_lr_of_a_whole_run_by_ratio_and_without_scaling() -> None:
    scheduler = (
        "trainer.lr_scheduler={type: CosineAnnealingLR, warmup_iter: 3, warmup_type: linear, warmup_ratio: 0.25, "
        "warmup_register_type: no_scale_lr, kwargs: {T_max: 2, warmup_iter: 3}}"
    )
    found = lrs(train_all(spec_of(SPEC, scheduler, "trainer.optimizer.kwargs.lr=0.4")))
    assert found[:3] == pytest.approx([0.1, 0.25, 0.4])
    # 10 steps in all, 3 of which are the warm-up, where the cosine begins
    assert found[3:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 7)) for step in range(7)])


def test_max_iter_wins_over_max_epoch() -> None:
    records = train_all(spec_of(SPEC, "trainer.max_iter=7", "trainer.max_epoch=1"))
    assert at(records, Step) == list(range(1, 8))
    assert at(records, Evaluation) == [5, 7] and at(records, Saved) == [5, 7]


def test_how_often_is_tested_and_saved() -> None:
    records = train_all(spec_of(SPEC, "trainer.max_epoch=5", "trainer.test_freq=2", "trainer.save_freq=3"))
    assert at(records, Evaluation) == [10, 20, 25] and at(records, Saved) == [15, 25]


def test_only_the_latest_is_kept() -> None:
    changes = ["trainer.max_epoch=4", "trainer.save_freq=1", "trainer.test_freq=4"]
    with run_of(spec_of(SPEC, *changes, "trainer.only_save_latest=true")) as run:
        list(train(run))
        assert [path.name[:13] for path in checkpoints(run.folder.checkpoints)] == ["step_00000020"]


AVERAGE = ["trainer.ema={enable: true, ema_type: linear, kwargs: {decay: 0.9}}"]


def test_the_average_is_what_is_evaluated_and_exported() -> None:
    with run_of(spec_of(SPEC, *AVERAGE, "trainer.log_freq=1")) as run:
        average = {n: p.detach().clone() for n, p in run.student.named_parameters()}
        for record in train(run):
            if isinstance(record, Step):
                live = {n: p.detach().clone() for n, p in run.student.named_parameters()}
                average = {n: 0.9 * value + 0.1 * live[n] for n, value in average.items()}
        assert isinstance(record, Finished)
        exported = saved_student(run.folder.student, run.student)
        run.student.load_state_dict(exported, strict=False)
        with evaluation_mode(run.student):
            again = evaluate(run.student, run.test_loader, run.task, run.processes)
    assert again == pytest.approx(record.last)
    for name, value in average.items():
        assert torch.allclose(exported[name], value, atol=1e-6)
        assert not torch.allclose(exported[name], live[name], atol=1e-6)


def test_what_a_run_starts_from_auto_resume_then_resume_model_then_pretrain_model() -> None:
    train_all(spec_of(SPEC, "saver.save_dir=one", "trainer.max_epoch=1"))
    checkpoint = next(Path("one/checkpoints").glob("*.pt"))
    pretrain = "saver.pretrain_model=one/student.safetensors"
    resume = f"saver.resume_model={checkpoint}"

    with run_of(spec_of(SPEC, "saver.save_dir=two", pretrain)) as run:
        weights = saved_student("one/student.safetensors", run.student)
        assert all(torch.equal(weights[n], t) for n, t in run.student.state_dict().items())
        assert at(list(train(run)), Step)[0] == 1
    # resume_model over pretrain_model (which is not even looked for)
    longer = [resume, "saver.pretrain_model=nowhere.safetensors"]
    kept = ("trainer.max_epoch",)
    records = train_all(spec_of(SPEC, "saver.save_dir=three", *longer), allow_changed=kept)
    assert at(records, Step)[0] == 6
    # auto_resume over both: its own checkpoint of step 5, not the one named
    with run_of(spec_of(SPEC, "saver.save_dir=four")) as run:
        for record in train(run):
            if isinstance(record, Saved):
                break
    named = f"saver.resume_model={max(Path('three/checkpoints').glob('*.pt'))}"
    records = train_all(spec_of(SPEC, "saver.save_dir=four", "saver.auto_resume=true", named, pretrain))
    assert at(records, Step)[0] == 6
    # ... and where there is none of its own, resume_model
    records = train_all(
        spec_of(SPEC, "saver.save_dir=five", "saver.auto_resume=true", *longer), allow_changed=kept
    )
    assert at(records, Step)[0] == 6


def test_results_dir_gets_the_figures() -> None:
    records = train_all(spec_of(SPEC, "saver.results_dir=out/results", "trainer.max_iter=2"))
    figures = json.loads(Path("out/results/small.json").read_text())
    assert isinstance(records[-1], Finished) and figures["last"] == records[-1].last


@pytest.mark.parametrize("hook", ["auto_save_best", "auto_checkpoint", "train_val_logger"])
def test_united_perceptions_hooks_that_kdcli_has(hook: str) -> None:
    assert not [
        d
        for d in check_references(spec_of(SPEC, f"hooks=[{{type: {hook}}}]"), tables())
        if "hook" in d.message
    ]


def test_a_hook_that_kdcli_has_not_is_a_warning_and_the_run_goes_on() -> None:
    parsed = spec_of(SPEC, "hooks=[{type: grad_collector}]", "trainer.max_iter=1")
    found = [d for d in check_references(parsed, tables()) if d.code == "KD612"]
    assert [d.severity for d in found] == ["warning"] and "grad_collector" in found[0].message
    assert isinstance(train_all(parsed)[-1], Finished)


FROZEN = SPEC.replace(
    """net:
  name: model
  type: cifar_resnet8
  kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}
""",
    """net:
  - name: model
    type: cifar_resnet8
    kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}
  - type: self
    kwargs: {freeze_patterns: [model.conv1, 'r:layer1.*bn']}
""",
)


def test_what_self_freezes_never_moves() -> None:
    with run_of(spec_of(FROZEN, "trainer.optimizer.kwargs.weight_decay=0.1")) as run:
        before = {name: value.clone() for name, value in run.student.state_dict().items()}
        list(train(run))
        after = run.student.state_dict()
    frozen = [n for n in before if n.startswith("model.conv1") or ("layer1" in n and "bn" in n)]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["model.layer2.0.conv1.weight"], after["model.layer2.0.conv1.weight"])


RESNET = SPEC.replace(
    "  name: model\n  type: cifar_resnet8\n  kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}\n",
    """  - name: backbone
    type: resnet_custom
    kwargs: {block: basic, layers: [1, 1, 1, 1], multiplier: 0.0625, input_channel: 1, stem: cifar,
      frozen_layers: [0, 1], normalize: {type: solo_bn}}
  - {name: head, type: base_cls_head, kwargs: {num_classes: 4, in_plane: 32}}
""",
)


def test_frozen_layers_never_move() -> None:
    with run_of(spec_of(RESNET)) as run:
        before = {name: value.clone() for name, value in run.student.state_dict().items()}
        list(train(run))
        after = run.student.state_dict()
    for name, value in before.items():
        still = torch.equal(value, after[name])
        if name.startswith(("backbone.layer0", "backbone.layer1")):
            assert still, name
        elif name.endswith("weight"):
            assert not still, name


def test_a_pretrain_path_that_leads_nowhere_is_told_at_its_key() -> None:
    with pytest.raises(KdError) as caught, run_of(spec_of(SPEC, "saver.pretrain_model=nowhere.pth")):
        pass
    assert caught.value.diagnostics[0].path == ("saver", "pretrain_model")
