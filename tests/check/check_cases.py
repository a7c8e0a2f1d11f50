"""Specs that are checked, and what was found in plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from kdcli.check.check import Checked, CheckOptions, check
from kdcli.commands.validate import examine
from kdcli.errors import Diagnostic
from tests.training.runs import SPEC, spec_of

CIFAR = """
runtime: {runner: {type: kd}}
net: {name: model, type: cifar_resnet8x4, kwargs: {num_classes: 10}}
teacher0: {name: model, type: cifar_resnet32x4, kwargs: {num_classes: 10}}
dataset:
  train: {dataset: {type: fake, kwargs: {num_samples: 640, transformer: [{type: to_tensor}]}}}
  test: {dataset: {type: fake, kwargs: {num_samples: 64, transformer: [{type: to_tensor}]}}}
  batch_sampler: {type: base, kwargs: {batch_size: 64}}
trainer:
  max_epoch: 2
  optimizer: {type: SGD, kwargs: {lr: 0.1}}
"""
"""A teacher and a student of one shape, without `mimic`."""


def checked(*changes: str, text: str = SPEC, plugins: Sequence[str] = ()) -> Checked:
    """The build stage alone, on the small spec with changes."""
    return check(spec_of(text, *changes), CheckOptions(plugins=tuple(plugins)))


def told(found: Checked | Sequence[Diagnostic]) -> list[tuple[str, str]]:
    """Code and message of every finding."""
    findings = found.findings if isinstance(found, Checked) else found
    return [(one.code, one.message) for one in findings]


def codes(*changes: str, text: str = SPEC, plugins: Sequence[str] = ()) -> list[str]:
    """The codes of the build stage."""
    return [code for code, _ in told(checked(*changes, text=text, plugins=plugins))]


def examined(path: str, text: str, **options: object) -> list[Diagnostic]:
    """Every stage over a text, written to a file first."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(textwrap.dedent(text))
    return examine(path, **options)[0]  # type: ignore[arg-type]
