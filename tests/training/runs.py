"""Small runs for tests: fake images, tiny networks, seconds at most."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcli.models.weights import read_weights, renamed
from kdcli.parallel.distributed import Processes
from kdcli.records import Record
from kdcli.spec.parse import ParsedSpec, parse
from kdcli.spec.text.overrides import parse_assignment
from kdcli.training.build import built
from kdcli.training.run import Run, RunOptions
from kdcli.training.train import train

DATA = """\
dataset:
  train:
    dataset:
      type: fake
      kwargs:
        num_samples: %d
        num_classes: 4
        shape: [1, 8, 8]
        transformer:
          - {type: torch_random_crop, kwargs: {size: 8, padding: 1}}
          - {type: to_tensor}
  test:
    dataset:
      type: fake
      kwargs: {num_samples: %d, num_classes: 4, shape: [1, 8, 8], transformer: [{type: to_tensor}]}
  batch_sampler: {type: base, kwargs: {batch_size: 8}}"""
"""How many images to train and to test on; batches of 8."""

SPEC = """
runtime:
  runner: {type: kd}
  random_seed: 3
net:
  name: model
  type: cifar_resnet8
  kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}
teacher0: &teacher
  name: model
  type: cifar_resnet8
  kwargs: {num_classes: 4, in_channels: 1, widths: [4, 4, 4, 8]}
mimic:
  warm_up_iters: 3
  cfgs:
    loss: {type: kd_loss, kwargs: {T: 2}}
  teacher0: {mimic_name: [logits], allow_random: true, allow_weak_teacher: true}
  student: {mimic_name: [logits]}
%s
trainer:
  max_epoch: 2
  optimizer: {type: SGD, kwargs: {lr: 0.05, momentum: 0.9}}
  lr_scheduler: {type: CosineAnnealingLR, warmup_register_type: no_scale_lr, kwargs: {T_max: 2}}
""" % (DATA % (40, 20))


def spec_of(text: str = SPEC, *assignments: str, source: str = "small.yaml") -> ParsedSpec:
    """A parsed spec with `key=value` overrides."""
    overrides = [parse_assignment(assignment, number) for number, assignment in enumerate(assignments, 1)]
    return parse(textwrap.dedent(text), source, overrides=overrides, base_dir=None)


@contextmanager
def run_of(parsed: ParsedSpec, **options: object) -> Iterator[Run]:
    """A built run on the CPU."""
    here = Processes(device=torch.device("cpu"))
    with ExitStack() as stack:
        yield stack.enter_context(built(parsed, RunOptions(**options), here))  # type: ignore[arg-type]


def saved_student(file: Path | str, net: nn.Module) -> dict[str, Tensor]:
    """The weights of a student's file under the names that they have in the network."""
    weights = read_weights(file)
    return {own: weights[name] for name, own in renamed(net, list(weights)).items()}


def train_all(parsed: ParsedSpec, **options: object) -> list[Record]:
    """Every record of a run."""
    with run_of(parsed, **options) as run:
        return list(train(run))
