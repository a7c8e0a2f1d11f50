"""Specs written as United-Perception's own classification ones: checked as they are, run with small sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.commands.validate import examine
from kdcli.models.network import build_network
from kdcli.models.weights import read_weights
from kdcli.records import Finished, Step
from kdcli.spec.parse import read
from tests.training.runs import train_all

CLASSES = 6

SPEC = """
num_classes: &classes 1000
crop: &crop {type: torch_random_resized_crop, kwargs: {size: 224, scale: [0.08, 1]}}
mirror: &mirror {type: torch_random_horizontal_flip}
colours: &colours
  type: torch_color_jitter
  kwargs: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1}
middle: &middle {type: torch_center_crop, kwargs: {size: 224}}
smaller: &smaller {type: torch_resize, kwargs: {size: 256}}
tensor: &tensor {type: to_tensor}
norm: &norm {type: normalize, kwargs: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}

runtime: {runner: {type: kd}, task_names: kd_cls}
dataset:
  train:
    dataset:
      type: cls
      kwargs:
        meta_file: lists/train.txt
        image_reader: {type: fs_pillow, kwargs: {image_dir: pictures, color_mode: RGB, memcached: false}}
        transformer: [*crop, *mirror, *colours, *tensor, *norm]
    batch_sampler: {type: base, kwargs: {sampler: {type: dist, kwargs: {}}, batch_size: 64}}
    dataloader: {type: cls_base, kwargs: {num_workers: 4, pin_memory: true}}
  test:
    dataset:
      type: cls
      kwargs:
        meta_file: lists/test.txt
        image_reader: {type: fs_pillow, kwargs: {image_dir: pictures, color_mode: RGB}}
        transformer: [*smaller, *middle, *tensor, *norm]
        evaluator: {type: imagenet, kwargs: {topk: [1, 5]}}
    batch_sampler: {type: base, kwargs: {sampler: {type: dist, kwargs: {}}, batch_size: 32}}
    dataloader: {type: cls_base, kwargs: {num_workers: 4, pin_memory: false}}
trainer:
  max_epoch: 100
  test_freq: 5
  save_freq: 5
  only_save_latest: true
  optimizer: {type: SGD, kwargs: {lr: 0.4, nesterov: true, momentum: 0.9, weight_decay: 0.0001}}
  lr_scheduler:
    warmup_iter: 2500
    warmup_type: linear
    warmup_register_type: no_scale_lr
    warmup_ratio: 0.25
    type: MultiStepLR
    kwargs: {milestones: [30, 60, 90], gamma: 0.1}
saver: {save_dir: run/checkpoints, pretrain_model: student.pth, results_dir: run/results, auto_resume: true}
hooks:
- type: auto_save_best
net:
- name: backbone
  type: resnet18
  kwargs: &body
    frozen_layers: []
    out_layers: [4]
    out_strides: [32]
    normalize: {type: solo_bn}
    initializer: {method: msra}
- name: head
  type: base_cls_head
  kwargs: {num_classes: *classes, in_plane: 512, input_feature_idx: -1}
- name: post_process
  type: base_cls_postprocess
  kwargs: {cls_loss: {type: label_smooth_ce, kwargs: {smooth_ratio: 0.1, num_classes: *classes}}}
teacher:
- {name: backbone, type: resnet152, kwargs: *body}
- name: head
  type: base_cls_head
  kwargs: {num_classes: *classes, in_plane: 2048, input_feature_idx: -1}
mimic:
  mimic_ins_type: base
  loss_weight: 1.0
  warm_up_iters: -1
  cfgs: {loss: {type: kl_loss, kwargs: {loss_weight: 1.0}}}
  teacher: {mimic_name: [head.classifier], teacher_weight: teacher.pth.tar}
  student: {mimic_name: [head.classifier]}
"""

TRICKS = (
    SPEC.replace("colours: &colours", "colours:")
    .replace("*mirror, *colours,", "*mirror,")
    .replace(
        "{num_workers: 4, pin_memory: true}",
        "{num_workers: 4, pin_memory: true,\n"
        "        batch_fn: {type: batch_mixup, kwargs: {alpha: 0.2, num_classes: *classes}}}",
    )
    .replace("weight_decay: 0.0001", "weight_decay: 0")
    .replace("warmup_iter: 2500", "warmup_iter: 0")
    .replace("warmup_ratio: 0.25", "warmup_ratio: 0")
    .replace("type: MultiStepLR", "type: CosineAnnealingLR")
    .replace("{milestones: [30, 60, 90], gamma: 0.1}", "{T_max: 180, eta_min: 0.0, warmup_iter: 0}")
    .replace("max_epoch: 100", "max_epoch: 180")
    .replace("resnet152, kwargs: *body}", "resnet152, kwargs: {<<: *body, deep_stem: true, avg_down: true}}")
)

SIZES = [
    "dataset.train.dataset.kwargs.transformer.0.kwargs.size=32",
    "dataset.test.dataset.kwargs.transformer.0.kwargs.size=36",
    "dataset.test.dataset.kwargs.transformer.1.kwargs.size=32",
    "dataset.train.batch_sampler.kwargs.batch_size=4",
    "dataset.train.dataloader.kwargs.num_workers=0",
    "dataset.test.dataloader.kwargs.num_workers=0",
    "net.backbone.kwargs.multiplier=0.0625",
    "net.head.kwargs.in_plane=32",
    "teacher.backbone.type=resnet50",
    "teacher.backbone.kwargs.multiplier=0.0625",
    "teacher.head.kwargs.in_plane=128",
    "trainer.max_iter=3",
    "trainer.log_freq=1",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures with their lists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "lists").mkdir()
    draw = np.random.default_rng(0)
    for side, count in (("train", 12), ("test", 6)):
        lines = []
        for index in range(count):
            name = f"{side}{index}.jpg"
            Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(f"pictures/{name}")
            lines.append(f"{name} {index % CLASSES}\n")
        Path(f"lists/{side}.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "codes"),
    [(SPEC, {"KD606"}), (TRICKS, {"KD601", "KD606"})],
    ids=["kd", "bag_of_tricks"],
)
def test_it_is_right_as_it_stands(text: str, codes: set[str], folder: Path) -> None:
    (folder / "spec.yaml").write_text(text)
    found, plan = examine("spec.yaml")
    assert {d.severity for d in found} == {"warning"} and {d.code for d in found} == codes
    assert plan is not None and plan.effective_lr == pytest.approx(0.4)


@pytest.mark.parametrize("text", [SPEC, TRICKS], ids=["kd", "bag_of_tricks"])
def test_it_trains_with_small_sizes(text: str, folder: Path) -> None:
    (folder / "spec.yaml").write_text(text)
    parsed = read("spec.yaml", SIZES)
    torch.manual_seed(0)
    for modules, path, wrapped in (
        (parsed.spec.net, "student.pth", ""),
        (parsed.spec.teachers["teacher"], "teacher.pth.tar", "module."),
    ):
        state = build_network(modules, path=("net",)).state_dict()
        # as United-Perception saves: the weights under `model`, with the name that data parallel gives
        torch.save({"model": {wrapped + key: value for key, value in state.items()}, "epoch": 3}, path)
    records = train_all(parsed, places=parsed.places)
    steps = [record for record in records if isinstance(record, Step)]
    assert [set(step.losses) for step in steps] == [{"task.loss", "mimic_job0.teacher.loss"}] * 3
    first = 0.1 if text is SPEC else 0.4
    assert steps[0].lr == pytest.approx(first)
    finished = records[-1]
    assert isinstance(finished, Finished) and set(finished.last) >= {"top1", "top5"}
    names = read_weights(folder / "run/checkpoints/student.safetensors").keys()
    assert {"backbone.layer0.0.weight", "backbone.layer4.1.bn2.running_var", "head.classifier.bias"} <= names
