"""Keys of United-Perception: mapped, named once, or refused."""

from __future__ import annotations

import pytest

from kdcli.errors import SpecError
from kdcli.models.detection.assigners import ANCHOR_SUPERVISORS
from kdcli.models.detection.blocks import build_block
from kdcli.models.detection.losses import CLASS_LOSSES
from kdcli.models.detection.proposals import DENSE_PREDICTORS
from kdcli.models.heads import CLS_LOSSES
from kdcli.reference.tables import tables
from kdcli.spec.form.up_types import FOREIGN_TYPES
from kdcli.training.run import plan_stages, schedule_unit
from tests.spec.specs import BASE, changed, findings, good

CLIPPER = ("hooks:\n", "hooks:\n  - {type: grad_clipper, kwargs: {mode: pre_defined, max_norm: 35}}\n")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("runner: {type: kd}", "runner: {type: sparse}", "sparsity"),
        ("x-note: anything at all", "bignas: {}", "architecture search"),
        ("task_names: kd_cls", "task_names: 3d", "3-D"),
        ("task_names: kd_cls", "task_names: quant_cls\n  task_names: quant_cls", "quantisation"),
        ("  dataloader:\n    type: base", "  dataloader:\n    type: seg_base", "segmentation"),
        ("    prev: backbone\n    type: head", "    wrappers: []\n    type: hed", "self-supervised"),
    ],
)
def test_a_spec_of_another_runner_has_one_error(old: str, new: str, word: str) -> None:
    (found,) = findings(changed((old, new)))
    assert found.code == "KD229"
    assert word in found.message


def test_what_is_mapped_holds() -> None:
    text = changed(
        (
            "x-note: anything at all",
            "fp16: {scale_factor: dynamic}\niter_base: true\nlr_scheduler: {type: StepLR}",
        ),
        (BASE[BASE.index("  lr_scheduler:\n") : BASE.index("saver:")], "\n"),
        ("max_epoch: 10", "max_epoch: 1.75"),
        CLIPPER,
    )
    spec = good(text).spec
    assert spec.runtime.fp16
    assert spec.runtime.iter_base
    assert spec.trainer.lr_scheduler is not None
    assert spec.trainer.clip_grad_norm == 35
    assert [hook.type for hook in spec.hooks] == ["auto_save_best"]
    assert schedule_unit(spec, 50) == 1
    assert plan_stages(spec, 7)[0].steps == 12  # int(1.75 * 7)


def test_a_whole_number_of_epochs_stays_whole() -> None:
    assert repr(good().spec.trainer.max_epoch) == "10"


def test_a_tuple_of_python_is_a_list() -> None:
    spec = good(changed(("out_layers: [4]", "out_layers: !!python/tuple [4]"))).spec
    assert spec.net[0].kwargs["out_layers"] == [4]


def test_a_warm_up_in_epochs_is_the_longer_of_both() -> None:
    scheduler = good(
        changed(("warmup_iter: 5", "warmup_iter: 5\n    warmup_epochs: 1.5"))
    ).spec.trainer.lr_scheduler
    assert scheduler is not None
    assert scheduler.warmup(11) == 16  # int(1.5 * 11)
    assert scheduler.warmup(2) == 5


def test_errors_of_form_and_of_names_are_told_together() -> None:
    text = changed(
        ("max_epoch: 10", "max_epoch: 10\n  tset_freq: 2"),
        ("pin_memory: false", "pin_memory: 3"),
        ("type: SGD", "type: SDG"),
    )
    assert sorted(one.code for one in findings(text)) == ["KD202", "KD204", "KD316"]


def test_a_block_that_is_used_is_no_leftover() -> None:
    text = changed(("x-note: anything at all", "optimizer: &it {type: SGD, kwargs: {lr: 0.1}}"))
    text = changed(("{type: SGD, kwargs: {lr: 0.1}}\n  lr_sch", "*it\n  lr_sch"), base=text)
    assert findings(text) == []


def test_one_notice_names_them_all() -> None:
    text = changed(("runtime:\n", "runtime:\n  rank_init: true\n  async_norm: true\n"), CLIPPER)
    (notice,) = good(text).warnings
    assert notice.code == "KD641"
    assert all(word in notice.message for word in ("`rank_init`", "`async_norm`", "`grad_clipper`"))


def test_slips_of_parameter_groups() -> None:
    group = "{type: bias, kwargs: {weight_decay: 0.0}, nodecay: [table]}"
    parsed = good(
        changed(("optimizer: {type: SGD,", f"optimizer: {{pconfig: {{linear: {group}}}, type: SGD,"))
    )
    groups = parsed.spec.trainer.optimizer.pconfig
    assert groups is not None
    assert groups.linear_b is not None
    assert groups.nodecay == ()
    assert "`linear` of `pconfig` as `linear_b`" in parsed.warnings[0].message
    assert "`nodecay inside linear_b`" in parsed.warnings[0].message


def test_what_is_switched_off_is_named_and_what_is_on_is_not_swallowed() -> None:
    off = changed(("sampler: {type: dist}", "sampler: {type: dist, kwargs: {fix_seed: false}}"))
    assert [one.code for one in findings(off)] == ["KD641"]
    on = changed(("sampler: {type: dist}", "sampler: {type: dist, kwargs: {fix_seed: true}}"))
    assert good(on).spec.dataset.train.batch_sampler.kwargs.sampler.kwargs == {"fix_seed": True}


def test_a_training_without_a_whole_step_is_refused_where_the_data_is_known() -> None:
    spec = good(changed(("max_epoch: 10", "max_epoch: 0.1"))).spec
    assert plan_stages(spec, None)[0].steps == 1
    assert plan_stages(spec, 10)[0].steps == 1
    with pytest.raises(SpecError, match="KD445"):
        plan_stages(spec, 9)


def test_arguments_of_a_neck_that_do_nothing_are_named() -> None:
    text = changed(
        (
            "  - name: head",
            "  - {name: neck, type: FPN, kwargs: {skip: true, tocaffe_friendly: true}}\n  - name: head",
        )
    )
    parsed = good(text)
    assert parsed.spec.net[1].kwargs == {}
    assert "without effect here: `skip`, `tocaffe_friendly`" in parsed.warnings[0].message


def test_switches_that_are_off_are_named_in_modules_and_evaluators_too() -> None:
    text = changed(
        ("{num_classes: *classes}", "{num_classes: *classes, multilabel: false}"),
        ("topk: [1, 5]", "topk: [1, 5], multilabel: false"),
    )
    assert [one.code for one in findings(text)] == ["KD641"]


def test_types_that_kdcli_has_not_are_in_no_table_of_its_own() -> None:
    known = tables()
    named = (
        known.modules,
        known.datasets,
        known.transforms,
        known.samplers,
        known.evaluators,
        known.schedulers,
    )
    for table in (*named, CLASS_LOSSES, ANCHOR_SUPERVISORS, DENSE_PREDICTORS, CLS_LOSSES):
        assert not FOREIGN_TYPES.keys() & set(table)


def test_a_type_that_kdcli_has_not_says_why() -> None:
    (finding,) = findings(changed(("type: to_tensor", "type: mosaic")))
    assert finding.message.startswith("kdcli has no transform `mosaic`: it is one of")
    assert finding.help is None
    with pytest.raises(
        ValueError, match=r"can't be `cross_sigmoid_focal_loss`; it is for training on several"
    ):
        build_block({"type": "cross_sigmoid_focal_loss"}, "cfg.cls_loss", CLASS_LOSSES)
