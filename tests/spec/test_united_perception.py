"""What United-Perception's own specs do, in one spec of ours, against kdcli's real tables."""

from __future__ import annotations

import pytest

from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.parse import parse

TEXT = """\
num_classes: &num_classes 20
resize: &big {type: torch_resize, kwargs: {size: 40}}
resize: &small {type: torch_resize, kwargs: {size: 32}}
colour:
  type: torch_color_jitter
  kwargs: {brightness: 0.2, hue: 0.1}
to_tensor: &to_tensor
  type: to_tensor

dataset: # Required.
  train:
    dataset:
      type: cls
      kwargs:
        source: train  # dataset id
        meta_file: lists/train.txt
        image_reader:
          type: fs_pillow
          kwargs: {image_dir: pictures, color_mode: RGB, memcached: false}
        transformer: [*big, *to_tensor]
  test:
    dataset:
      type: cls
      kwargs:
        meta_file: lists/val.txt
        image_reader: {type: fs_opencv, kwargs: {image_dir: pictures, color_mode: RGB}}
        transformer: [*small, *to_tensor]
        evaluator: {type: imagenet, kwargs: {topk: [1, 5]}}
  batch_sampler:
    type: base
    kwargs:
      sampler:
        type: dist
        kwargs: {}
      batch_size: 4
      aspect_grouping: [1,]
  dataloader:
    type: cls_base
    kwargs:
      num_workers: 2
      pin_memory: True
      batch_fn: {type: batch_mixup, kwargs: {alpha: 0.2, num_classes: *num_classes}}

trainer: # Required.
  max_epoch: 12
  only_save_latest: true
  optimizer: {type: SGD, kwargs: {lr: 4e-1, nesterov: true, momentum: 0.9, weight_decay: 0}}
  lr_scheduler:
    warmup_iter: 0
    warmup_type: linear
    warmup_register_type: no_scale_lr
    warmup_ratio: 0
    type: CosineAnnealingLR
    kwargs: {T_max: 12, eta_min: 0.0, warmup_iter: 0}

saver: # Required.
  save_dir: out/checkpoints
  results_dir: out/results
  auto_resume: True

hooks:
- type: auto_save_best
- type: auto_checkpoint
- type: train_val_logger

net:
- name: backbone
  type: resnet18
  kwargs:
    frozen_layers: []
    out_layers: [4]
    out_strides: [32]
    normalize:
      type: solo_bn
    initializer:
      method: msra
- name: head
  type: base_cls_head
  kwargs:
    num_classes: *num_classes
    in_plane: &width 512
    input_feature_idx: -1
- name: post_process
  type: base_cls_postprocess
  kwargs:
    cls_loss: {type: label_smooth_ce, kwargs: {smooth_ratio: 0.1, num_classes: *num_classes}}

teacher:
- name: backbone
  type: resnet50
  kwargs: {out_layers: [4], out_strides: [32], normalize: {type: solo_bn}, deep_stem: true, avg_down: true}
- name: head
  type: base_cls_head
  kwargs: {num_classes: *num_classes, in_plane: &teacher_width 2048}
mimic:
  # mimic_ins_type: base   # by default
  loss_weight: 1.0
  warm_up_iters: -1
  cfgs:
    loss:
      type: kd_loss
      kwargs:
        loss_weight: 1.0
  teacher:
    mimic_name: ['head.classifier']
    teacher_weight: out/teacher.pth.tar
  student:
    mimic_name: [head.classifier]

runtime:
  runner:
    type: kd
  task_names: kd_cls
"""


def test_it_loads_with_warnings_only() -> None:
    parsed = parse(TEXT, "up.yaml")
    assert [one.code for one in parsed.warnings] == ["KD604", "KD601"]
    assert check_references(parsed, tables()) == []
    transformers = [
        part.dataset.kwargs.transformer for part in (parsed.spec.dataset.train, parsed.spec.dataset.test)
    ]
    assert [one[0].kwargs["size"] for one in transformers] == [40, 32]
    assert parsed.spec.trainer.optimizer.kwargs["lr"] == 0.4
    assert parse(parsed.resolved_yaml(), "up.yaml").spec == parsed.spec


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("FRS", {"rpn_loss": "{type: bce_loss, kwargs: {T: 1.0, batch_mean: False, loss_weight: 0.1}}"}),
        (
            "DeFeat",
            {
                "rcnn_fpn_levels": "[0, 1, 2, 3]",
                "rcnn_fpn_strides": "[4, 8, 16, 32]",
                "rcnn_fpn_base_scale": "56",
                "teacher_proposal": "True",
                "head_fg_loss": "{type: l2_loss, kwargs: {feat_norm: False}}",
                "head_bg_loss": "{type: l2_loss, kwargs: {feat_norm: False}}",
            },
        ),
    ],
)
def test_keys_that_change_nothing_there_are_left_out(method: str, keys: dict[str, str]) -> None:
    cfgs = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    text = TEXT.replace("  # mimic_ins_type: base   # by default\n", f"  mimic_ins_type: {method}\n")
    loss = "    loss:\n      type: kd_loss\n      kwargs:\n        loss_weight: 1.0\n"
    assert loss in text
    parsed = parse(text.replace(loss, cfgs), "up.yaml")
    told = [one for one in parsed.warnings if one.code == "KD614"]
    assert [one.message for one in told] == [f"`{key}` has no effect in `{method}`" for key in keys]
    assert check_references(parsed, tables()) == []
    assert parsed.spec.mimic is not None
    (job,) = parsed.spec.mimic.jobs.values()
    assert not job.losses and not job.options


def test_a_module_that_stands_twice_counts_once() -> None:
    head = "- name: head\n  type: base_cls_head\n  kwargs: {num_classes: 20, in_plane: 512, dropout: 0.5}\n"
    parsed = parse(TEXT.replace("- name: post_process\n", head + "- name: post_process\n"), "up.yaml")
    assert [one.code for one in parsed.warnings].count("KD615") == 1
    names = [module.name for module in parsed.spec.net]
    assert names == ["backbone", "head", "post_process"]
    assert parsed.spec.net[1].kwargs["dropout"] == 0.5
