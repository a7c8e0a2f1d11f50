"""Pairs that fit, and the block that validate accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.analysis.layers import inspect
from kdcli.analysis.pairs import fitting_pairs
from kdcli.analysis.proposals import PROPOSALS, mimic_block, proposal, proposals_for
from kdcli.commands.inspect import inspect_features
from kdcli.commands.options import InspectOptions
from kdcli.spec.networks import parse_networks
from tests.check.check_cases import CIFAR, examined

OTHER_WIDTHS = CIFAR.replace("cifar_resnet8x4", "cifar_resnet8")
SECOND = CIFAR + "teacher1: {name: model, type: wrn_16_2, kwargs: {num_classes: 10}}\n"
SWIN = (
    CIFAR.replace("cifar_resnet32x4", "torchvision.swin_t")
    .replace("cifar_resnet8x4", "torchvision.resnet18")
    .replace("kwargs: {num_samples: 640,", "kwargs: {num_samples: 640, shape: [3, 64, 64],")
)


def pasted(text: str) -> str:
    """A spec with the block that is proposed for it."""
    found = inspect(parse_networks(text, "n.yaml"))
    pairs = {n: fitting_pairs(found["net"], layers) for n, layers in found.items() if n != "net"}
    return text + mimic_block(proposals_for(pairs))


@pytest.mark.slow
@pytest.mark.parametrize("text", [CIFAR, OTHER_WIDTHS, SECOND, SWIN], ids=["same", "other", "two", "swin"])
def test_validate_accepts_the_block(text: str) -> None:
    assert [one for one in examined("pasted.yaml", pasted(text)) if one.severity == "error"] == []


def test_stages_are_paired_by_size() -> None:
    found = inspect(parse_networks(OTHER_WIDTHS, "n.yaml"))
    pairs = fitting_pairs(found["net"], found["teacher0"])
    assert [(pair.student.path, pair.teacher.path) for pair in pairs] == [
        (f"model.layer{i}", f"model.layer{i}") for i in (1, 2, 3)
    ]
    assert pairs[0].adapter == "a 1x1 convolution 16 to 64"


@pytest.mark.slow
def test_two_transformers_are_paired_by_depth() -> None:
    text = "net: {type: torchvision.vit_b_32}\nteacher0: {type: torchvision.vit_b_32}"
    found = inspect(parse_networks(text, "n.yaml"))
    pairs = fitting_pairs(found["net"], found["teacher0"])
    assert len(pairs) == 4
    assert all(pair.adapter is None and pair.student.path == pair.teacher.path for pair in pairs)


@pytest.mark.slow
def test_the_command_keeps_what_the_spec_says_of_the_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text(
        CIFAR
        + "mimic: {teacher0: {mimic_name: [logits], allow_random: true}, student: {mimic_name: [logits]}}\n"
    )
    inspect_features(InspectOptions(spec="n.yaml", pairs=True))
    text = capsys.readouterr().out
    assert "allow_random: true" in text and "teacher_weight" not in text
    assert "mimic_name: [model.layer3]" in text and "type: itrd" in text
    # The data is there: the weight is that of a pull of 1 on one of its batches, and the own one is 1.
    assert "with it the loss pulls as hard as the task's" in text and "loss_weight: 1.0" not in text


def test_what_is_proposed_goes_by_task_and_labels() -> None:
    assert proposal("detection", True, "map").loss == "l2_loss"
    assert (
        proposal("classification", False, "map").loss == "itrd"
        and proposal("classification", True, "map").last
    )
    assert all(one.evidence for one in PROPOSALS)


def test_what_cannot_be_measured_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text(CIFAR)  # the teacher's weights are in no file
    inspect_features(InspectOptions(spec="n.yaml", pairs=True))
    text = capsys.readouterr().out
    assert "not measured here: " in text and "loss_weight: 1.0" in text


def test_weights_beside_the_spec_are_found_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("specs").mkdir()
    Path("specs/w.safetensors").write_bytes(b"no weights")
    teacher = "{mimic_name: [logits], teacher_weight: w.safetensors}"
    Path("specs/n.yaml").write_text(
        CIFAR + f"mimic: {{teacher0: {teacher}, student: {{mimic_name: [logits]}}}}\n"
    )
    inspect_features(InspectOptions(spec="specs/n.yaml", pairs=True))
    text = capsys.readouterr().out
    assert "teacher_weight: w.safetensors" in text, "as the spec has it"
    assert "not measured here: " in text and "no weights file" not in text and "specs/w.safetensors" in text
