"""Channels last, and tokens beside maps: refused by validate and by train alike, word by word the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcli.check.check import CheckOptions, check
from kdcli.commands.inspect import inspect_features
from kdcli.commands.options import InspectOptions
from kdcli.errors import Diagnostic, SpecError
from kdcli.spec.parse import parse
from tests.check.check_cases import examined
from tests.training.runs import run_of

SWIN = "torchvision.swin_t, kwargs: {num_classes: 4}"
VIT = "torchvision.vit_b_32, kwargs: {num_classes: 4, image_size: 64}"
CNN = "torchvision.resnet18, kwargs: {num_classes: 4}"
BLOCK = "model.encoder.layers.encoder_layer_1"
SPEC = """
runtime: {runner: {type: kd}}
net: {name: model, type: %s}
teacher0: {name: model, type: %s}
mimic:
  %s
  cfgs: {loss: {type: %s}}
  teacher0: {mimic_name: ['%s'], allow_random: true, allow_weak_teacher: true}
  student: {mimic_name: ['%s']}
dataset:
  train: &data
    dataset:
      type: fake
      kwargs: {num_samples: 8, num_classes: 4, shape: [3, 64, 64], transformer: [{type: to_tensor}]}
  test: *data
  batch_sampler: {type: base, kwargs: {batch_size: 4}}
trainer:
  max_epoch: 1
  optimizer: {type: SGD, kwargs: {lr: 0.1}}
saver: {save_dir: runs}
"""


def spec(
    student: str, teacher: str, ours: str, theirs: str, loss: str = "l2_loss", adapter: str = "adapter: auto"
) -> str:
    return SPEC % (student, teacher, adapter, loss, theirs, ours)


def refused(text: str) -> list[Diagnostic]:
    """The errors of the build stage of validate, which are those of a run."""
    parsed = parse(text, "cfg.yaml")
    with pytest.raises(SpecError) as caught, run_of(parsed):
        pass
    told = [f for f in check(parsed, CheckOptions()).findings if f.severity == "error"]
    assert [(f.code, f.message, f.help) for f in told] == [
        (d.code, d.message, d.help) for d in caught.value.diagnostics
    ]
    return told


@pytest.mark.parametrize(
    ("loss", "adapter"),
    [
        ("at", "adapter: auto"),
        ("l2_loss", "loss_weight: 1.0"),
        *(
            pytest.param(loss, adapter, marks=pytest.mark.slow)
            for loss, adapter in (
                *((loss, "adapter: auto") for loss in ("l2_loss", "cwd", "fitnet")),
                *((loss, "loss_weight: 1.0") for loss in ("at", "cwd", "fitnet")),
            )
        ),
    ],
)
def test_swin_is_refused_whatever_the_loss(loss: str, adapter: str) -> None:
    told = refused(spec(SWIN, SWIN, "model.features.3", "model.norm:in", loss, adapter))
    assert [(d.code, d.help) for d in told] == [
        ("KD425", "name a layer that gives [B, C, H, W]; the nearest is `model.permute`, [B, 768, 2, 2]")
    ] * 2
    assert {d.message for d in told} == {
        f"`{tap}` of {whose} has its channels last: {shape}; kdcli reads maps as [B, C, H, W] and does not guess"
        for tap, whose, shape in (
            ("model.features.3", "the student", "[B, 8, 8, 192]"),
            ("model.norm:in", "teacher0", "[B, 2, 2, 768]"),
        )
    }


def test_what_swin_gives_channels_first_is_a_map() -> None:
    text = spec(CNN, SWIN, "model.layer4", "model.permute")
    assert [f for f in examined("cfg.yaml", text) if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "why"),
    [
        (CNN, VIT, "model.layer3", BLOCK, "[B, 256, 4, 4] and [B, 5, 768]: tokens have no known grid"),
        pytest.param(
            *(VIT, CNN, BLOCK, "model.layer3", "[B, 5, 768] and [B, 256, 4, 4]: tokens have no known grid"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(CNN, VIT, "model.fc:in", BLOCK, "[B, 512] and [B, 5, 768]: a vector has no places"),
            marks=pytest.mark.slow,
        ),
        (CNN, CNN, "model.fc:in", "model.layer3", "[B, 512] and [B, 256, 4, 4]: a vector has no places"),
        pytest.param(
            VIT,
            VIT.replace("b_32", "b_16"),
            BLOCK,
            BLOCK,
            "[B, 5, 768] and [B, 17, 768]: their grids, and which tokens are class tokens or registers",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_places_that_no_adapter_matches(student: str, teacher: str, ours: str, theirs: str, why: str) -> None:
    (told,) = refused(spec(student, teacher, ours, theirs))
    assert told.code == "KD426" and told.path is not None and told.path[-1] == "adapter"
    assert why in told.message
    assert told.help is not None and told.help.startswith("name layers that give maps in both networks")
    linears = {CNN: "`model.fc:in`"}
    assert f"{linears.get(student, '`model.heads.head:in`')} of the student" in told.help
    assert f"{linears.get(teacher, '`model.heads.head:in`')} of teacher0" in told.help
    (without,) = refused(spec(student, teacher, ours, theirs, adapter="loss_weight: 1.0"))
    assert without.code == "KD430" and without.help is not None
    assert without.help.startswith("no adapter joins them: ") and "adapter: auto" not in without.help


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["fitnet", "vid", "review"])
def test_losses_that_size_themselves_match_no_tokens_with_a_map(loss: str) -> None:
    (told,) = refused(spec(CNN, VIT, "model.layer3", BLOCK, loss, "loss_weight: 1.0"))
    assert told.code == "KD450"
    assert f"`{loss}` cannot match the positions of [2, 256, 4, 4] with those of [2, 5, 768]" in told.message


@pytest.mark.parametrize("loss", ["at", "pkd", "nst"])
def test_losses_of_any_shape_match_no_tokens_with_a_map(loss: str) -> None:
    text = spec(CNN, VIT, "model.layer3", BLOCK, loss, "loss_weight: 1.0")
    (told,) = [f for f in check(parse(text, "cfg.yaml"), CheckOptions()).findings if f.severity == "error"]
    assert told.code == "KD450" and f"`{loss}` cannot match the positions of " in told.message


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "what"),
    [
        (
            VIT,
            CNN,
            BLOCK,
            "model.fc:in",
            "the mean over all tokens, class tokens included, then a linear layer 768 to 512",
        ),
        (
            CNN,
            VIT,
            "model.layer3",
            "model.heads.head:in",
            "the mean over all positions, then a linear layer 256 to 768",
        ),
        (CNN, VIT, "model.fc:in", "model.heads.head:in", "a linear layer 512 to 768"),
    ],
)
def test_the_plan_tells_what_joins_a_pair(
    student: str, teacher: str, ours: str, theirs: str, what: str
) -> None:
    plan = check(parse(spec(student, teacher, ours, theirs), "cfg.yaml"), CheckOptions()).plan
    assert plan is not None
    assert [pair.adapter for pair in plan.pairs] == [what]


def test_inspect_features_marks_channels_last_and_pairs_none_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("n.yaml").write_text(f"net: {{name: model, type: {CNN}}}\nteacher0: {{name: model, type: {SWIN}}}\n")
    inspect_features(InspectOptions(spec="n.yaml", net="teacher0", format="json", input="3x64x96"))
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert rows["model.features.3"]["shape"] == "[B, 8, 12, 192]"
    assert (rows["model.features.3"]["status"], rows["model.features.3"]["stride"]) == ("channels last", 8)
    assert (rows["model.permute"]["status"], rows["model.permute"]["stride"]) == ("once", 32)
    assert rows["model.features.0.0"]["status"] == "once"
    inspect_features(InspectOptions(spec="n.yaml", pairs=True, input="3x64x64"))
    text = capsys.readouterr().out
    assert "mimic_name: [model.features.0.0, model.permute]" in text
    assert "mimic_name: [model.layer1, model.layer4]" in text


def test_a_vit_and_a_cnn_have_no_pair_of_maps(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text(f"net: {{name: model, type: {CNN}}}\nteacher0: {{name: model, type: {VIT}}}\n")
    inspect_features(InspectOptions(spec="n.yaml", pairs=True, input="3x64x64"))
    assert "name vectors in both networks by hand" in capsys.readouterr().out
