"""The spec that tests change in one place, the tables it uses, and findings in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcli.errors import Diagnostic, KdError, SpecError
from kdcli.spec.check.resolve import check_references
from kdcli.spec.parse import ParsedSpec, parse, with_more
from kdcli.spec.tables import Loss, Tables, Target
from kdcli.spec.text.overrides import parse_assignment
from tests.spec import fakes

BASE = """\
x-note: anything at all
crop: &crop {type: crop, kwargs: {size: 32}}
classes: &classes 10

runtime:
  runner: {type: kd}
  task_names: kd_cls

net:
  - name: backbone
    type: resnet18
    kwargs:
      out_layers: [4]
      normalize: {type: solo_bn}
  - name: head
    prev: backbone
    type: head
    kwargs: {num_classes: *classes}

teacher0:
  - name: backbone
    type: resnet50
    kwargs:
      normalize: {type: solo_bn}
  - name: head
    type: head
    kwargs: {num_classes: *classes}

mimic:
  mimic_ins_type: base
  loss_weight: 1.0
  warm_up_iters: -1
  cfgs:
    loss:
      type: kd_loss
      kwargs: {T: 4.0, loss_weight: 1.0}
  teacher0:
    mimic_name: [head.classifier]
    teacher_weight: teacher.pth
  student:
    mimic_name: [head.classifier]

dataset:
  train:
    dataset:
      type: fake
      kwargs:
        num_samples: 64
        image_reader: {type: reader, kwargs: {image_dir: images}}
        transformer: [*crop, {type: to_tensor}]
  test:
    dataset:
      type: fake
      kwargs:
        transformer: [{type: to_tensor}]
        evaluator: {type: imagenet, kwargs: {topk: [1, 5]}}
  batch_sampler:
    type: base
    kwargs: {batch_size: 8, sampler: {type: dist}}
  dataloader:
    type: base
    kwargs: {num_workers: 0, pin_memory: false}

trainer:
  max_epoch: 10
  optimizer: {type: SGD, kwargs: {lr: 0.1}}
  lr_scheduler:
    type: MultiStepLR
    warmup_iter: 5
    warmup_type: linear
    kwargs: {milestones: [4, 8]}

saver:
  save_dir: runs/it

hooks:
  - type: auto_save_best
"""

TABLES = Tables(
    losses={
        "l2_loss": Loss("tests.spec.fakes:l2_loss", kind="feature"),
        "kl_loss": Loss("tests.spec.fakes:kl_loss", kind="feature", rectifies=True),
        "kd_loss": Loss("tests.spec.fakes:kd_loss", kind="logit", softened=True),
        "dkd": Loss("tests.spec.fakes:dkd", kind="logit"),
        "ft": Loss("tests.spec.fakes:l2_loss", kind="feature", takes_over="ft_paraphrase"),
        "bank": Loss("tests.spec.fakes:Bank", kind="relational"),
    },
    mimickers={"base": fakes.ANY, "FRS": fakes.FRS, "unpaired": fakes.UNPAIRED, "needy": fakes.NEEDY},
    modules={f"resnet{depth}": Target("tests.spec.fakes:ResNet", {"depth": depth}) for depth in (18, 50)}
    | {"head": Target("tests.spec.fakes:Head")},
    adapters={"auto": Target("tests.spec.fakes:Auto")},
    datasets={"fake": Target("tests.spec.fakes:fake")},
    transforms={"crop": Target("tests.spec.fakes:Crop"), "to_tensor": Target("tests.spec.fakes:ToTensor")},
    batch_fns=dict.fromkeys(("batch_mixup", "batch_cutmixup"), Target("tests.spec.fakes:Mixup")),
    image_readers={"reader": Target("tests.spec.fakes:Reader")},
    samplers={"dist": Target("tests.spec.fakes:Dist"), "local": Target("tests.spec.fakes:Local")},
    evaluators={"imagenet": Target("tests.spec.fakes:imagenet")},
)


def changed(*changes: tuple[str, str], base: str = BASE) -> str:
    """The spec with texts replaced; each must be there."""
    for old, new in changes:
        assert old in base, old
        base = base.replace(old, new, 1)
    return base


def good(text: str = BASE, *assignments: str, base_dir: Path | None = None) -> ParsedSpec:
    """The parsed text."""
    overrides = [parse_assignment(one, number) for number, one in enumerate(assignments, 1)]
    return parse(text, "cfg.yaml", overrides=overrides, base_dir=base_dir)


def findings(
    text: str = BASE, *assignments: str, base_dir: Path | None = None, tables: Tables = TABLES
) -> list[Diagnostic]:
    """Everything that is found in a text, as far as the stages go."""
    try:
        parsed = good(text, *assignments, base_dir=base_dir)
    except SpecError as error:
        return list(with_more(error, lambda sound: check_references(sound, tables)).diagnostics)
    except KdError as error:
        return list(error.diagnostics)
    return [*parsed.warnings, *check_references(parsed, tables)]


def plain(found: Sequence[Diagnostic]) -> str:
    """Findings as text: place, message, the marked part of the line, help."""
    lines = []
    for one in found:
        place, marked = "?", ""
        if one.span is not None:
            span = one.span
            place = f"{span.source}:{span.line}:{span.column}"
            marked = span.excerpt[span.column - 1 : span.end_column - 1][:60]
        lines.append(f"{place}: {one.severity} {one.code}: {one.message}")
        lines.append(f"    > {marked}")
        if one.span is not None and one.span.written is not None:
            written = one.span.written
            lines.append(f"    written: {written.source}:{written.line}:{written.column}")
        if one.help is not None:
            lines.append(f"    help: {one.help}")
    return "\n".join(lines) + "\n"
