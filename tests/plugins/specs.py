"""A spec in which everything that can be is a plugin's."""

from __future__ import annotations

MINE = """
runtime: {runner: {type: kd}, random_seed: 3}
net:
  name: model
  type: cifar_resnet8
  kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}
teacher0:
  name: model
  type: cifar_resnet8
  kwargs: {num_classes: 4, in_channels: 1, widths: [4, 4, 4, 8]}
mimic:
  cfgs:
    loss: {type: kd_loss, kwargs: {T: 2}}
  teacher0: {mimic_name: [logits], allow_random: true, allow_weak_teacher: true}
  student: {mimic_name: [logits]}
dataset:
  train:
    dataset:
      type: mine_kd.data:Dots
      kwargs:
        samples: 24
        image_reader: {type: 'mine_kd.data:Painter', kwargs: {value: 220}}
        transformer:
          - {type: to_tensor}
          - {type: 'mine_kd.data:Noise', kwargs: {strength: 0.05}}
          - {type: 'mine_kd.data:Flip'}
    dataloader: {type: base, kwargs: {num_workers: 0, batch_fn: {type: 'mine_kd.data:Dim', kwargs: {least: 0.7}}}}
  test:
    dataset:
      type: mine_kd.data:Dots
      kwargs:
        samples: 12
        image_reader: {type: 'mine_kd.data:Painter'}
        transformer: [{type: to_tensor}]
        evaluator: {type: 'mine_kd.training:Recall', kwargs: {smooth: 0.0}}
    dataloader: {type: base, kwargs: {num_workers: 0}}
  batch_sampler:
    type: base
    kwargs: {batch_size: 8, sampler: {type: 'mine_kd.data:Backwards', kwargs: {shuffled: true}}}
trainer:
  max_epoch: 2
  optimizer: {type: 'mine_kd.training:Signs', kwargs: {lr: 0.01, beta: 0.8}}
  lr_scheduler: {type: 'mine_kd.training:Halving', warmup_register_type: no_scale_lr, kwargs: {every: 1}}
saver: {save_dir: out}
"""
