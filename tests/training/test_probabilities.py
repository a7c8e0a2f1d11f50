"""Probabilities where logits are meant are told before the first step, with the layer that holds the logits."""

from __future__ import annotations

import pytest
import torch

from kdcli.records import Notice, Step
from kdcli.spec.parse import ParsedSpec
from kdcli.training.probabilities import are_probabilities, doubtful_logits
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of

PLUGINS = ("tests",)
CENTRES = "kwargs: {centres: [0.44, 0.48, 0.52, 0.56]}"


def teacher(kind: str, *changes: str, tap: str = "logits") -> ParsedSpec:
    return spec_of(
        SPEC,
        f"teacher0={{name: model, type: 'tests.training.label_nets:{kind}', {CENTRES}}}",
        f"mimic.teacher0.mimic_name=['{tap}']",
        *changes,
    )


def told(parsed: ParsedSpec) -> list[Notice]:
    with run_of(parsed, plugins=PLUGINS) as run:
        return list(doubtful_logits(run))


@pytest.mark.parametrize(
    ("kind", "tap", "layer"),
    [
        ("Softmaxed", "logits", "model.softmax:in"),
        ("Softmaxed", "model.softmax", "model.softmax:in"),
        ("Functional", "logits", "model.fc"),
    ],
)
def test_a_teacher_that_ends_in_a_softmax(kind: str, tap: str, layer: str) -> None:
    (notice,) = told(teacher(kind, tap=tap))
    assert notice.level == "warning"
    assert notice.message.startswith(f"KD626: `{tap}` of teacher0 gives probabilities, and kd_loss takes a")
    assert f"`{layer}`" in notice.message
    assert told(teacher(kind, tap=layer)) == []


def test_it_is_told_before_the_first_step() -> None:
    with run_of(teacher("Softmaxed"), plugins=PLUGINS) as run:
        records = list(train(run))
    warned = next(i for i, r in enumerate(records) if isinstance(r, Notice) and "KD626" in r.message)
    assert warned < next(i for i, r in enumerate(records) if isinstance(r, Step))


@pytest.mark.parametrize("kind", ["Grey", "LogSoftmaxed"])
def test_logits_and_their_logarithms_are_fine(kind: str) -> None:
    assert told(teacher(kind)) == []


def test_a_feature_loss_may_read_probabilities() -> None:
    assert told(teacher("Softmaxed", "mimic.cfgs.loss={type: l2_loss}")) == []


def test_a_loss_that_reads_logits_beside_features() -> None:
    srd = "mimic.cfgs.loss={type: srd}"
    changes = (srd, "mimic.student.mimic_name=[model.layer3]", "teacher0.type=tests.training.label_nets:Mapped",
               "teacher0.model.kwargs={}", "mimic.teacher0.mimic_name=[model.conv2]")  # fmt: skip
    (notice,) = told(teacher("Softmaxed", *changes))
    assert notice.message.startswith("KD626: srd reads the logits of teacher0, and these are probabilities")


def test_probabilities_of_more_classes_are_seen_before_some_are_selected() -> None:
    wide = "teacher0.model.kwargs.centres=[0.42, 0.44, 0.46, 0.48, 0.5, 0.52]"
    (notice,) = told(teacher("Softmaxed", wide, "mimic.teacher0.classes=[0, 2, 3, 5]"))
    assert "`model.softmax:in`" in notice.message
    # ... and then the named input of the softmax has to be selected too
    found = teacher("Softmaxed", wide, "mimic.teacher0.classes=[0, 2, 3, 5]", tap="model.softmax:in")
    with run_of(found, plugins=PLUGINS) as run:
        batch = dict(next(run.train_loader.batches(0)))
        net = run.teachers["teacher0"].net
        shown = run.teachers["teacher0"].view(batch).features["model.softmax:in"]
        fc = net.get_submodule("model.fc")(batch["image"].mean((2, 3)))
        assert torch.equal(shown, fc[:, [0, 2, 3, 5]])  # type: ignore[arg-type]


def test_a_student_that_ends_in_a_softmax() -> None:
    student = f"net={{name: model, type: 'tests.training.label_nets:Softmaxed', {CENTRES}}}"
    cross_entropy, kd = sorted(told(spec_of(SPEC, student)), key=lambda notice: "kd_loss" in notice.message)
    assert "`logits` of the student are probabilities, and cross entropy" in cross_entropy.message
    assert "`logits` of the student gives probabilities, and kd_loss" in kd.message
    assert "`model.softmax:in`" in kd.message
    alone = told(spec_of(SPEC, student, "mimic.task_loss=false"))
    assert ["cross entropy" in notice.message for notice in alone] == [False]


def test_a_student_without_a_teacher() -> None:
    student = f"net={{name: model, type: 'tests.training.label_nets:Functional', {CENTRES}}}"
    (notice,) = told(spec_of(SPEC, student, "runtime.runner.type=base"))
    assert "cross entropy" in notice.message and "leave the softmax out" in notice.message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8004]], True),
        ([[0.2, 0.81]], False),
        ([[0.2, 0.8], [0.5, 0.6]], False),
        ([[-0.5, 1.5]], False),
        ([[1.0], [1.0]], False),
        ([[float("nan"), 0.5]], False),
    ],
)
def test_are_probabilities(rows: list[list[float]], expected: bool) -> None:
    assert are_probabilities(torch.tensor(rows)) is expected
