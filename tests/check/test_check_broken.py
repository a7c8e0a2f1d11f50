"""A right spec broken in one place: a finding at that line, whatever the place, and never a traceback."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.errors import Diagnostic
from tests.check.check_cases import examined

BASE = """\
runtime:
  runner:
    type: kd
  random_seed: 3
net:
  - name: backbone
    type: resnet_custom
    kwargs:
      block: basic
      layers: [1, 1, 1, 1]
      width: 4
      normalize: {type: solo_bn}
      out_layers: [4]
  - name: head
    prev: backbone
    type: base_cls_head
    kwargs:
      num_classes: 4
      in_plane: 32
teacher0:
  - name: backbone
    type: resnet_custom
    kwargs:
      block: basic
      layers: [1, 1, 1, 1]
      width: 8
      normalize: {type: solo_bn}
      out_layers: [4]
  - name: head
    prev: backbone
    type: base_cls_head
    kwargs:
      num_classes: 4
mimic:
  adapter: auto
  cfgs:
    loss:
      type: l2_loss
      kwargs:
        feat_norm: true
  teacher0:
    mimic_name:
      - backbone.layer2
      - backbone.layer3
      - head.classifier
    teacher_weight: teacher.safetensors
  student:
    mimic_name:
      - backbone.layer2
      - backbone.layer3
      - head.classifier
dataset:
  train:
    dataset:
      type: fake
      kwargs:
        num_samples: 16
        num_classes: 4
        shape: [3, 32, 32]
        transformer:
          - type: to_tensor
  test:
    dataset:
      type: fake
      kwargs:
        num_classes: 4
        shape: [3, 32, 32]
  batch_sampler:
    kwargs:
      batch_size: 8
trainer:
  max_epoch: 2
  optimizer:
    type: SGD
    kwargs:
      lr: 0.1
"""
LINES = BASE.splitlines()
KEYED = [number for number, line in enumerate(LINES) if ":" in line]
INTO = {"resnet_custom": "resnet_custm", "l2_loss": "l2_los", "SGD": "SGDD", "fake": "fke", "auto": "outo"}

LAYERS = [number for number, line in enumerate(LINES) if line.strip().startswith(("- backbone.", "- head."))]
NAMES = ["backbone.layer7", "backbne.layer2", "head", "backbone.layer2.0.nothing", "post_process", "x y"]


def with_line(number: int, *lines: str) -> str:
    """The spec with one line replaced."""
    return "\n".join([*LINES[:number], *lines, *LINES[number + 1 :]]) + "\n"


def lines_of(found: list[Diagnostic]) -> set[int]:
    """The lines (from 0) that findings are at."""
    assert all(one.span is not None for one in found), [one.message for one in found]
    return {one.span.line - 1 for one in found if one.span is not None}


def test_it_is_right() -> None:
    assert [one.message for one in examined("base.yaml", BASE)] == []


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KEYED), st.sampled_from(["x", "q_"]))
def test_a_renamed_key(number: int, slip: str) -> None:
    line = LINES[number]
    start = len(line) - len(line.lstrip(" -"))
    key = line[start:].split(":")[0]
    if key == "loss" or (key == "teacher0" and line == "teacher0:"):
        return  # a loss may have any name; a network of another name leaves the job's without one
    found = examined("renamed.yaml", with_line(number, line[:start] + slip + line[start:]))
    assert number in lines_of(found), line


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KEYED))
def test_a_dropped_line_never_makes_a_traceback(number: int) -> None:
    lines_of(examined("dropped.yaml", "\n".join([*LINES[:number], *LINES[number + 1 :]]) + "\n"))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([n for n in KEYED if not LINES[n].rstrip().endswith(":")]))
def test_a_key_given_twice(number: int) -> None:
    line = LINES[number]
    again = line.replace("- ", "  ", 1)
    assert number + 1 in lines_of(examined("twice.yaml", with_line(number, line, again)))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([n for n in KEYED if not LINES[n].rstrip().endswith(":")]),
    st.sampled_from(["{a: 1}", "[[1]]", "-0.25x"]),
)
def test_a_value_of_another_type(number: int, value: str) -> None:
    head = LINES[number].split(":")[0]
    if head.strip(" -") in ("teacher_weight",) and value == "-0.25x":
        return  # a path may have any name
    if head.strip() == "name" or head.strip() == "- name":
        value = "{a: 1}"
    found = examined("typed.yaml", with_line(number, f"{head}: {value}"))
    assert found, LINES[number]
    # A module that changed its name is missed where it is named.
    assert number in lines_of(found) or "name" in head, (LINES[number], [one.message for one in found])


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(LAYERS), st.sampled_from(NAMES))
def test_a_wrong_layer(number: int, name: str) -> None:
    if name == "head":
        return
    line = LINES[number]
    found = examined("layer.yaml", with_line(number, line[: line.index("-") + 2] + name))
    assert number in lines_of(found), (name, [one.message for one in found])


@pytest.mark.parametrize("line", [line for line in LINES if line.split(": ")[-1].strip() in INTO])
def test_a_wrong_name(line: str) -> None:
    number = LINES.index(line)
    name = line.split(": ")[-1]
    found = examined("name.yaml", with_line(number, line.replace(name, INTO[name])))
    assert number in lines_of(found)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("in_plane: 32", "in_plane: 33"),
        ("num_classes: 4", "num_classes: 3"),
        ("layers: [1, 1, 1, 1]", "layers: [1]"),
    ],
)
def test_a_wrong_width(old: str, new: str) -> None:
    number = next(n for n, line in enumerate(LINES) if line.strip() == old)
    found = examined("width.yaml", with_line(number, LINES[number].replace(old, new)))
    lines = lines_of([one for one in found if one.severity == "error"])
    # A module is told as a whole: at its first line.
    first = max(n for n in range(number + 1) if LINES[n].strip().startswith("- name"))
    assert lines & set(range(first, number + 1)), [one.message for one in found]


def test_a_wrong_teacher() -> None:
    number = LINES.index("  teacher0:")
    assert number in lines_of(examined("teacher.yaml", with_line(number, "  teacher1:")))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_at_all(text: str) -> None:
    assert examined("any.yaml", text.encode("utf-8", "ignore").decode())
