"""Detectors through validate: on a tiny real input, with no data."""

from __future__ import annotations

import pytest
import yaml

from kdcli.reference.methods import method_fragment
from kdcli.tasks.detection import sample
from tests.check.check_cases import examined
from tests.training.detectors import DATA, DEFEAT, FEATURE, FRS, NECK, SAMPLE, detector, indented

JOBS = (
    "mimic_as_jobs: true\n"
    f"mimic_job0:\n{indented(FRS)}"
    f"mimic_job1:\n{indented(FEATURE.replace('teacher0', 'teacher1'))}"
    f"  teacher2: {{mimic_name: {NECK}, teacher_weight: checkpoints/fpn152/ckpt_e12.pth}}\n"
)


SSD = (
    "net: {name: model, type: torchvision.ssd300_vgg16, kwargs: {num_classes: 11}}\n"
    f"{DATA.replace('runner: {type: kd}', 'runner: {type: base}')}"
)


@pytest.mark.parametrize(
    ("mimic", "teachers", "adapts"),
    [(FRS, 1, True), (DEFEAT, 1, True), (FEATURE, 1, False), (SAMPLE, 1, False), (JOBS, 3, True)],
    ids=["frs", "decouple_feature", "feature", "sample_feature", "multi_jobs"],
)
def test_what_united_perception_distils(mimic: str, teachers: int, adapts: bool) -> None:
    found = examined("d.yaml", detector(mimic, teachers, adapts=adapts))
    assert [f"{one.code}: {one.message}" for one in found] == []


@pytest.mark.parametrize("method", ["FRS", "DeFeat", "FGD", "SampleFeature"])
def test_validate_accepts_the_fragment(method: str) -> None:
    found = examined("d.yaml", detector(method_fragment(method), planes=12))
    assert [f"{one.code}: {one.message}" for one in found] == []


@pytest.mark.slow
def test_a_whole_detector_that_wants_larger_images_is_given_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.code for one in examined("d.yaml", SSD)] == []
    monkeypatch.setattr(sample, "SSD_SIZE", 128)
    found = examined("d.yaml", SSD)
    assert [one.code for one in found] == ["KD418"]
    assert "images of 128x128, at which it is checked, may be too small" in (found[0].help or "")


def test_a_level_of_a_whole_detector_is_named_in_brackets() -> None:
    net = {"type": "torchvision.fasterrcnn_mobilenet_v3_large_320_fpn", "kwargs": {"num_classes": 11}}
    nets = {"net": {"name": "model", **net}, "teacher0": {"name": "model", **net}}

    def said(tap: str) -> list[tuple[str, str]]:
        taps = {"mimic_name": [tap]}
        mimic = {"mimic": {"teacher0": {**taps, "allow_random": True}, "student": taps}}
        found = examined("d.yaml", yaml.safe_dump({**nets, **mimic}) + DATA)
        return [(one.code, (one.help or "").partition("?")[0]) for one in found]

    assert said("model.backbone.fpn.0") == [("KD422", "did you mean `model.backbone.fpn[0]`")] * 2
    assert said("model.backbone.fpn[0]") == []


def test_wrong_layers_are_told_with_the_nearest() -> None:
    text = detector(FEATURE.replace("neck.p3_conv", "neck.p3_cnv"))
    found = examined("d.yaml", text)
    assert [one.code for one in found] == ["KD422", "KD422"]
    assert all("neck.p3_conv" in (one.help or "") for one in found)
    assert all(one.span is not None and "p3_cnv" in one.span.excerpt for one in found)


def test_maps_of_other_widths_are_told_level_by_level() -> None:
    found = examined("d.yaml", detector(FEATURE, planes=12))
    assert [one.code for one in found] == ["KD430"] * 5
    assert "[B, 8, 32, 32]" in found[0].message and "[B, 12, 32, 32]" in found[0].message
    assert "adapter: auto" in (found[0].help or "")


def test_widths_that_do_not_fit_are_told_at_their_module() -> None:
    text = detector(FEATURE).replace("num_anchors: 3", "num_anchors: 5", 1)
    found = examined("d.yaml", text)
    assert found and all(one.severity == "error" and one.span is not None for one in found)
