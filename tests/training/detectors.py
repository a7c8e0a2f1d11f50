"""Tiny detectors as specs, with the blocks and the mimic parts that United-Perception's specs have."""

from __future__ import annotations

import yaml

from tests.models.detection.nets import faster_rcnn

NECK = "[neck.p2_conv, neck.p3_conv, neck.p4_conv, neck.p5_conv, neck.p6_pool]"
ADAPTED = "[" + ", ".join(f"neck_adapt.conv.{i}.0" for i in range(5)) + "]"
L2 = "type: l2_loss, kwargs: {feat_norm: false, batch_mean: false, loss_weight: 1.0}"
FRS = f"""\
mimic_ins_type: FRS
loss_weight: 1.0
warm_up_iters: 500
cfgs:
  neck_loss: {{{L2}}}
  pred_loss: {{type: bce_loss, kwargs: {{T: 1.0, batch_mean: false, loss_weight: 0.1}}}}
teacher0: {{mimic_name: {NECK}, teacher_weight: checkpoints/fpn152/ckpt_e12.pth}}
student: {{mimic_name: {ADAPTED}}}
"""
FEATURE = f"""\
warm_up_iters: -1
cfgs:
  loss: {{type: l2_loss, kwargs: {{feat_norm: true, batch_mean: true, loss_weight: 1.0}}}}
teacher0: {{mimic_name: {NECK}, teacher_weight: teacher.pth.tar}}
student: {{mimic_name: {NECK}}}
"""
SAMPLE = f"""\
mimic_ins_type: SampleFeature
cfgs:
  rcnn_fpn_levels: [0, 1, 2, 3]
  rcnn_fpn_strides: [4, 8, 16, 32]
  rcnn_fpn_base_scale: 56
  teacher_proposal: true
  feature_loss: {{{L2}}}
teacher0: {{mimic_name: {NECK}, teacher_weight: teacher.pth.tar}}
student: {{mimic_name: {NECK}}}
"""
BACKBONE = "backbone.layer2.0, backbone.layer3.0, backbone.layer4.0"
BACKBONE_ADAPTED = "backbone_adapt.conv.0.1, backbone_adapt.conv.1.1, backbone_adapt.conv.2.1"
DEFEAT = f"""\
mimic_ins_type: DeFeat
cfgs:
  rpn_fpn_levels: [0, 1, 2, 3, 4]
  rpn_fpn_strides: [4, 8, 16, 32, 64]
  rpn_fpn_base_scale: 56
  neck_feature_nums: 5
  backbone_loss: {{{L2}}}
  neck_fg_loss: {{{L2}}}
  neck_bg_loss: {{{L2}}}
teacher0: {{mimic_name: [{BACKBONE}, {NECK[1:]}, teacher_weight: checkpoints/fpn152/ckpt_e12.pth}}
student: {{mimic_name: [{BACKBONE_ADAPTED}, {NECK[1:]}}}
"""

DATA = """
dataset:
  train:
    dataset:
      type: coco
      kwargs:
        meta_file: nowhere/train.json
        image_reader: {type: fs_opencv, kwargs: {image_dir: nowhere, color_mode: RGB}}
        transformer:
          - {type: flip, kwargs: {flip_p: 0.5}}
          - {type: keep_ar_resize, kwargs: {scales: [640, 672], max_size: 1333, separate_wh: true}}
          - {type: to_tensor}
  test:
    dataset:
      type: coco
      kwargs:
        meta_file: nowhere/test.json
        image_reader: {type: fs_opencv, kwargs: {image_dir: nowhere, color_mode: RGB}}
        transformer: [{type: to_tensor}]
        evaluator: {type: COCO, kwargs: {iou_types: [bbox]}}
  batch_sampler: {type: aspect_ratio_group, kwargs: {sampler: {type: dist}, batch_size: 2, aspect_grouping: [1]}}
  dataloader: {type: base, kwargs: {num_workers: 0, alignment: 32}}
trainer:
  max_epoch: 12
  optimizer: {type: SGD, kwargs: {lr: 0.00125, momentum: 0.9}}
  lr_scheduler: {warmup_iter: 500, type: MultiStepLR, kwargs: {milestones: [8, 11]}}
runtime: {task_names: kd_det, runner: {type: kd}}
"""


def network(planes: int = 8, *, adapts: bool = False, width: int = 4) -> list[dict[str, object]]:
    """A Faster R-CNN; adapts: with United-Perception's ADAP modules, to 8 planes and backbone widths of 4."""
    modules = [module.model_dump(exclude_none=True) for module in faster_rcnn(planes=planes)]
    modules[0]["type"] = "resnet_custom"
    modules[0]["kwargs"] |= {"block": "basic", "layers": [1, 1, 1, 1], "width": width}
    modules[0]["kwargs"]["normalize"] = {"type": "solo_bn"}
    del modules[4]["kwargs"]["with_drp"]
    if adapts:
        neck = {"outplanes": 8, "out_layers": [0, 1, 2, 3, 4], "kernel_size": 3, "with_relu": False}
        bone = {"outplanes": [8, 16, 32], "out_layers": [1, 2, 3], "with_relu": True}
        kind = {"type": "ADAP"}
        bone, neck = {**bone, "out_name": "adapt_bb_features"}, {**neck, "out_name": "adapt_neck_features"}
        modules.insert(1, {"name": "backbone_adapt", "prev": "backbone", **kind, "kwargs": bone})
        modules.append({"name": "neck_adapt", "prev": "neck", **kind, "kwargs": neck})
    return modules


def detector(
    mimic: str, teachers: int = 1, planes: int = 8, *, adapts: bool = False, keep: int | None = None
) -> str:
    """A spec whose data is not there.

    mimic: the block or its content. planes: of the teachers' necks. keep: so many modules of each network.
    """
    nets = {"net": network(adapts=adapts)[:keep]}
    nets |= {f"teacher{index}": network(planes)[:keep] for index in range(teachers)}
    block = mimic if mimic.startswith(("mimic:", "#")) else "mimic:\n" + indented(mimic)
    return yaml.safe_dump(nets, sort_keys=False) + block + DATA


def indented(text: str, by: str = "  ") -> str:
    """Every line moved right."""
    return "".join(f"{by}{line}" for line in text.splitlines(keepends=True))
