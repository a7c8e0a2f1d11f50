"""Channels last, and tokens beside maps, by their layout; what isn't known validate and train refuse alike."""

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
        ("at", "loss_weight: 1.0"),
        ("l2_loss", "adapter: auto"),
        *(
            pytest.param(loss, "adapter: auto", marks=pytest.mark.slow)
            for loss in ("cwd", "fitnet", "mgd", "fsp")
        ),
    ],
)
def test_swins_maps_are_read_channels_first(loss: str, adapter: str) -> None:
    teacher = "model.features.3" if loss != "fsp" else "model.features.3', 'model.features.3"
    student = "model.layer2" if loss != "fsp" else "model.layer2', 'model.layer2"
    made = check(parse(spec(CNN, SWIN, student, teacher, loss, adapter), "cfg.yaml"), CheckOptions())
    assert [f.message for f in made.findings if f.severity == "error"] == []
    assert made.plan is not None
    assert {(pair.student_shape, pair.teacher_shape) for pair in made.plan.pairs} == {
        ("[B, 128, 8, 8]", "[B, 192, 8, 8]")
    }


def test_heads_of_an_attention_are_no_map() -> None:
    """[B, heads, tokens, d]: the norm of the queries says that its channels are last, and no map is 5 by 12."""
    vit = "timm.vit_tiny_patch32_224, kwargs: {num_classes: 4, qk_norm: true, img_size: 64}".replace(
        "tiny_patch32", "tiny_patch16"
    )
    pytest.importorskip("timm")
    told = refused(spec(CNN, vit, "model.layer3", "model.blocks.0.attn.q_norm"))
    assert [d.code for d in told] == ["KD425"]
    assert "which axis holds its channels isn't known" in told[0].message


def test_what_swin_gives_channels_first_is_a_map() -> None:
    text = spec(CNN, SWIN, "model.layer4", "model.permute")
    assert [f for f in examined("cfg.yaml", text) if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "why"),
    [
        pytest.param(
            *(CNN, VIT, "model.fc:in", BLOCK, "[B, 512] and [B, 4, 768]: a vector has no places"),
            marks=pytest.mark.slow,
        ),
        (CNN, CNN, "model.fc:in", "model.layer3", "[B, 512] and [B, 256, 4, 4]: a vector has no places"),
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


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "ours", "theirs", "shapes"),
    [
        ("l2_loss", CNN, VIT, "model.layer3", BLOCK, ("[B, 256, 4, 4]", "[B, 768, 2, 2]")),
        *(
            pytest.param(loss, CNN, VIT, "layer3", BLOCK, ("[B, 256, 4, 4]", "[B, 768, 2, 2]"), marks=mark)
            for loss, mark in (
                ("at", ()),
                *((loss, pytest.mark.slow) for loss in ("nst", "pkd", "mgd", "vid")),
            )
        ),
        pytest.param(
            *("l2_loss", VIT, CNN, BLOCK, "model.layer3", ("[B, 768, 2, 2]", "[B, 256, 4, 4]")),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("l2_loss", VIT, VIT.replace("b_32", "b_16"), BLOCK, BLOCK),
            ("[B, 768, 2, 2]", "[B, 768, 4, 4]"),
            marks=pytest.mark.slow,
        ),
        # Of one layout: all tokens, the class token too.
        pytest.param("l2_loss", VIT, VIT, BLOCK, BLOCK, ("[B, 5, 768]",) * 2, marks=pytest.mark.slow),
    ],
)
def test_the_plan_shows_in_which_form_tokens_are_compared(
    loss: str, student: str, teacher: str, ours: str, theirs: str, shapes: tuple[str, str]
) -> None:
    made = check(parse(spec(student, teacher, ours, theirs, loss), "cfg.yaml"), CheckOptions())
    assert [f.message for f in made.findings if f.severity == "error"] == [] and made.plan is not None
    (pair,) = made.plan.pairs
    assert (pair.student_shape, pair.teacher_shape) == shapes
    for layer, name, shape in (
        (pair.student_layer, ours, pair.student_shape),
        (pair.teacher_layer, theirs, pair.teacher_shape),
    ):
        whole = name if name.startswith("model.") else f"model.{name}"
        patches = "encoder_layer" in name and shape != "[B, 5, 768]"
        assert layer == (f"{whole}:patches" if patches else whole)


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "what"),
    [
        (
            VIT,
            CNN,
            BLOCK,
            "model.fc:in",
            "the mean over all tokens, then a linear layer 768 to 512",
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


def test_inspect_features_shows_layouts_and_pairs_by_them(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text(f"net: {{name: model, type: {CNN}}}\nteacher0: {{name: model, type: {SWIN}}}\n")
    inspect_features(InspectOptions(spec="n.yaml", net="teacher0", format="json", input="3x64x96"))
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    swin = rows["model.features.3"]
    assert (swin["shape"], swin["layout"]) == ("[B, 8, 12, 192]", "map, channels last")
    assert (swin["status"], swin["stride"]) == ("once", 8)
    assert (rows["model.permute"]["layout"], rows["model.permute"]["stride"]) == ("map", 32)
    inspect_features(InspectOptions(spec="n.yaml", pairs=True, input="3x64x64"))
    text = capsys.readouterr().out
    pairs = [line.split()[0] for line in text.splitlines() if "a 1x1 convolution" in line]
    assert pairs == ["model.layer1", "model.layer2", "model.layer3", "model.layer4"]
    assert "mimic_name: [model.features]" in text and "mimic_name: [model.layer4]" in text
    assert "a 1x1 convolution 128 to 192" in text


def test_a_vit_and_a_cnn_are_paired_in_its_grid(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text(f"net: {{name: model, type: {CNN}}}\nteacher0: {{name: model, type: {VIT}}}\n")
    inspect_features(InspectOptions(spec="n.yaml", pairs=True, input="3x64x64"))
    text = capsys.readouterr().out
    assert "mimic_name: [model.layer4]" in text and "a 1x1 convolution 512 to 768" in text
    inspect_features(InspectOptions(spec="n.yaml", net="teacher0", format="json", input="3x64x64"))
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert (rows[BLOCK]["layout"], rows[BLOCK]["stride"]) == ("tokens 1+2x2", 32)
