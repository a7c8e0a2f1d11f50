"""Another student in a sample: the network of `--student`, or the one that a run without labels has trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kdcli.disk import is_file, text_in
from kdcli.errors import UsageError, did_you_mean
from kdcli.spec.parse import read
from kdcli.spec.schema import ModuleSpec, Spec

FAMILIES = {
    "mobilenetv4": "mobilenetv4_conv_small",
    "convnext": "convnext_atto",
    "repvit": "repvit_m0_9",
    "fastvit": "fastvit_t8",
    "resnet": "resnet18",
}
"""Families that `--student` knows by one word, and the network of timm that each stands for."""

STRIDES = (16, 32)
"""Of the maps that the samples mimic: one level and the last."""

AFTER = "foundation.yaml"
"""The spec whose student `finetune` begins with, where it lies in the same folder."""

_STUDENT = re.compile(r"^  type: timm\.(\w+) # <-- the student.*$", re.MULTILINE)
_KWARGS = re.compile(r"^  kwargs: \{num_classes: \*num_classes\}$", re.MULTILINE)
_START = re.compile(r"^  pretrain_model: \S+", re.MULTILINE)
_SIZE = re.compile(r"^x-size: &size (\d+)", re.MULTILINE)
_LAYERS = re.compile(r"(^  student:\n    mimic_name: \[)([^\]]*)(\])", re.MULTILINE)


def has_student(text: str) -> bool:
    """Whether the text of a sample marks its student as one that `--student` may replace."""
    return _STUDENT.search(text) is not None


def with_student(text: str, student: str) -> str:
    """The sample's text with this student of timm, and the paths of its layers; raises UsageError.

    student: a key of FAMILIES, or a name of timm's, with or without `timm.`.
    """
    marked = _STUDENT.search(text)
    assert marked is not None
    name = _timm_name(student)
    text = text.replace(f"  type: timm.{marked[1]} #", f"  type: timm.{name} #")
    layers = _LAYERS.search(text)
    if layers is None or name == marked[1]:
        return text
    renamed = dict(zip(_levels(marked[1]), _levels(name), strict=True))
    paths = ", ".join(renamed.get(path.strip(), path.strip()) for path in layers[2].split(","))
    return text.replace(layers[0], f"{layers[1]}{paths}{layers[3]}")


def begun_after(text: str, spec: Path) -> str:
    """The text of `finetune` with the student, its weights and the image size of the spec of a run without labels.

    Raises UsageError where that spec's student is no single network of timm or torchvision, and what `read` raises.
    """
    trained = read(spec).spec
    network = _whole(trained, spec)
    kwargs = {key: value for key, value in network.kwargs.items() if key not in ("num_classes", "pretrained")}
    written = "".join(f"{key}: {json.dumps(value)}, " for key, value in kwargs.items())
    saved = trained.saver.save_dir or f"runs/{spec.stem}"
    text = _STUDENT.sub(lambda _: f"  type: {network.type} # <-- the student of {spec.name}", text)
    text = _KWARGS.sub(lambda _: f"  kwargs: {{{written}num_classes: *num_classes}}", text)
    text = _START.sub(lambda _: f"  pretrain_model: {saved}/student.safetensors", text)
    size = _SIZE.search(text_in(spec))
    return text if size is None else _SIZE.sub(lambda _: size[0], text)


def spec_before(folder: Path, after: Path | None) -> Path | None:
    """The spec of the run without labels: the one named, else the usual one in the folder; raises UsageError."""
    if after is not None:
        if not is_file(after):
            raise UsageError.of(
                f"there is no file {after}", "`--after` names the spec of the run without labels"
            )
        return after
    usual = folder / AFTER
    return usual if is_file(usual) else None


def _whole(spec: Spec, path: Path) -> ModuleSpec:
    """The one module that the student is."""
    if len(spec.net) == 1 and spec.net[0].type.startswith(("timm.", "torchvision.")):
        return spec.net[0]
    raise UsageError.of(
        f"the student of {path} is no single network of timm or torchvision",
        "copy `finetune` into another folder, then write that `net` into it, with a head",
    )


def _timm_name(student: str) -> str:
    """The name that timm knows; raises UsageError."""
    name = FAMILIES.get(student, student.removeprefix("timm.").split(".")[0])
    timm = _timm()
    if not timm.is_model(name):
        known = [*FAMILIES, *timm.list_models()]
        raise UsageError.of(
            f"there is no student `{student}`: neither a network of timm nor one of {', '.join(FAMILIES)}",
            did_you_mean(name, known),
        )
    return name


def _levels(name: str) -> tuple[str, ...]:
    """The paths of the last layers at STRIDES of a network of timm; raises UsageError."""
    network = _timm().create_model(name, pretrained=False, num_classes=0)
    stages = list(getattr(network, "feature_info", None) or [])
    strides = {stage["reduction"]: stage["module"] for stage in stages}
    if len(strides) != len(stages) or not set(STRIDES) <= set(strides):
        raise UsageError.of(
            f"timm's `{name}` has no maps of stride {STRIDES[0]} and {STRIDES[1]} that timm names",
            "copy the sample without `--student`, and see `kdcli inspect-features` for its layers",
        )
    return tuple(strides[stride] for stride in STRIDES)


def _timm() -> Any:
    """The package timm; raises UsageError where it isn't installed."""
    try:
        import timm
    except ImportError as error:
        raise UsageError.of("timm is not installed", "install it: `pip install 'kdcli[timm]'`") from error
    return timm
