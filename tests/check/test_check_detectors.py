"""Detectors through validate: on a tiny real input, with no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml

from kdcli.models.adapt import Adapt
from kdcli.models.network import Network, build_network, shapes_only
from kdcli.models.torch_modes import NOT_FAKE, FlopCount, fake_mode, to_fake
from kdcli.reference.methods import method_fragment
from kdcli.report.live.plain_text import plan_text
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks.detection.task import detection_sample
from tests.check.check_cases import checked, examined
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
    monkeypatch.setattr("kdcli.tasks.detection.task.SSD_SIZE", 128)
    found = examined("d.yaml", SSD)
    assert [one.code for one in found] == ["KD418"]
    assert "images of 128x128, at which it is checked, may be too small" in (found[0].help or "")


@pytest.mark.slow
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


RESIZE = "dataset.train.dataset.kwargs.transformer.keep_ar_resize.kwargs={scales: [50, 60], max_size: 90}"
"""Images of at most 60 x 90 pixels, in batches of 64 x 96."""


def test_the_plan_has_the_shapes_and_operations_of_the_specs_own_size() -> None:
    text = detector(FRS, adapts=True)
    found = checked(RESIZE, text=text)
    assert found.plan is not None and found.plan.flops_size == (64, 96)
    shapes = [pair.student_shape for pair in found.plan.pairs]
    assert shapes[:5] == [f"[B, 8, {h}, {w}]" for h, w in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))]
    spec = yaml.safe_load(text)
    # Real images, and as much of the student as does not depend on boxes, which comes to the same operations.
    modules = [ModuleSpec(**module) for module in spec["net"]]
    kept = [m for m in modules if m.name in ("backbone", "backbone_adapt", "neck", "roi_head", "neck_adapt")]
    net = build_network(kept, path=("net",)).eval()
    with torch.no_grad(), FlopCount() as counter:
        net(detection_sample(shape=(3, 64, 96)))
    assert found.plan.networks[0].flops == counter.total // 2
    whole = checked(RESIZE.replace("{scales: [50, 60], max_size: 90}", "{scales: [0]}"), text=text)
    assert whole.plan is not None and whole.plan.flops_size == (128, 128)
    assert "checked at 64x96: the largest images that the transforms give" in plan_text(found.plan)
    few = "boxes at 128x128, at most 16 proposals of an image, and not in the FLOPs: bbox_head"
    assert few in plan_text(found.plan)
    fixed = "[{type: fix_output_resize, kwargs: {scales: [60, 90]}}, {type: to_tensor}]"
    found = checked(f"dataset.train.dataset.kwargs.transformer={fixed}", text=text)
    assert found.plan is not None and "boxes at 128x128, at most 16 proposals" in plan_text(found.plan)
    assert (
        "checked at 128x128, at most 16 proposals of an image: the spec does not resize its images"
        in plan_text(whole.plan)
    )


@pytest.mark.slow
def test_what_fails_at_the_specs_own_size_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Adapt.forward

    def narrow(self: Adapt, outputs: Mapping[str, Any]) -> dict[str, Any]:
        found = forward(self, outputs)
        cut = outputs["image"].shape[-1] == 96
        return {name: [one[..., :-1] if cut else one for one in maps] for name, maps in found.items()}

    assert [one.code for one in checked(RESIZE, text=detector(DEFEAT, adapts=True)).findings] == []
    monkeypatch.setattr(Adapt, "forward", narrow)
    found = checked(RESIZE, text=detector(DEFEAT, adapts=True)).findings
    assert {one.code for one in found} == {"KD430"}
    other = RESIZE.replace("max_size: 90", "max_size: 128")
    assert [one.code for one in checked(other, text=detector(DEFEAT, adapts=True)).findings] == []


def test_on_shapes_alone_a_network_leaves_out_what_needs_values() -> None:
    modules = yaml.safe_load(detector(FEATURE))["net"]
    net = build_network([ModuleSpec(**module) for module in modules], path=("net",))
    mode = fake_mode()
    to_fake(net, mode)
    with mode:
        batch = detection_sample(shape=(3, 64, 96))
        with shapes_only(net):
            outputs = net(batch)
            assert net.left_out == [
                "post_process",
                "bbox_head_pre_process",
                "bbox_head",
                "bbox_head_post_process",
            ]
        assert outputs["features"][0].shape == (2, 8, 16, 24)
        with pytest.raises(NOT_FAKE):
            net(batch)
    assert net.left_out is None and isinstance(net, Network)
