"""Assignments after the spec."""

from __future__ import annotations

import pytest

from kdcli.errors import KdError, UsageError
from kdcli.spec.text.overrides import parse_assignment
from tests.spec.specs import changed, findings, good


def test_values_by_key_index_and_name() -> None:
    parsed = good(
        changed(),
        "trainer.max_epoch=3",
        "net.backbone.kwargs.out_layers=[3, 4]",
        "net.1.kwargs.num_classes=7",
        "dataset.train.dataset.kwargs.transformer.crop.kwargs.size=16",
        "mimic.cfgs.loss.kwargs.T=1e1",
        "mimic.teacher0.teacher_weight=a=b.pth",
        "hooks.-1.type=auto_checkpoint",
    )
    spec = parsed.spec
    assert spec.trainer.max_epoch == 3
    assert spec.net[0].kwargs["out_layers"] == [3, 4]
    assert spec.net[1].kwargs == {"num_classes": 7}
    assert spec.dataset.train.dataset.kwargs.transformer[0].kwargs == {"size": 16}
    assert spec.mimic is not None
    assert spec.mimic.jobs["mimic_job0"].losses["loss"].kwargs["T"] == 10.0
    assert spec.mimic.jobs["mimic_job0"].teachers["teacher0"].teacher_weight == "a=b.pth"
    assert spec.hooks[0].type == "auto_checkpoint"


def test_a_building_block_changes_wherever_it_is_used() -> None:
    spec = good(changed(), "classes=7", "crop.kwargs.size=64").spec
    assert [net[1].kwargs["num_classes"] for net in (spec.net, *spec.teachers.values())] == [7, 7]
    assert spec.dataset.train.dataset.kwargs.transformer[0].kwargs == {"size": 64}


def test_a_finding_in_a_building_block_points_at_the_argument() -> None:
    (found, *_) = findings(changed(), "crop.kwargs.sise=64")
    assert found.span is not None
    assert (found.code, found.span.source, found.span.column) == ("KD320", "argument 1", 13)


def test_what_is_absent_is_set_and_nothing_takes_away() -> None:
    assert good(changed(), "trainer.ema.kwargs.decay=0.9").spec.trainer.ema is not None
    assert good(changed(), "trainer.lr_scheduler=").spec.trainer.lr_scheduler is None
    assert good(changed(), "runtime.random_seed=null").spec.runtime.random_seed == 131


def test_one_side_of_shared_data() -> None:
    spec = good(changed(), "dataset.train.batch_sampler.kwargs.batch_size=4").spec
    assert spec.dataset.train.batch_sampler.kwargs.batch_size == 4
    assert spec.dataset.test.batch_sampler.kwargs.batch_size == 8


@pytest.mark.parametrize(
    ("assignment", "code", "column"),
    [
        ("trainer.max_epch=3", "KD202", 9),
        ("trianer.max_epoch=3", "KD201", 1),
        ("trainer.max_epoch=x", "KD204", 19),
        ("trainer.max_epoch=[3", "KD101", 19),
        ("trainer.optimizer.kwargs.lr=!x 1", "KD106", 29),
        ("net.3.type=a", "KD209", 5),
        ("net.bakbone.type=a", "KD208", 5),
        ("net.backbone.type.x=a", "KD209", 19),
        ("mimic.teacher0.mimic_nam=[a]", "KD202", 16),
        ("runtime=3", "KD204", 9),
        ("max_epoch=3", "KD201", 1),
    ],
)
def test_findings_point_into_the_argument(assignment: str, code: str, column: int) -> None:
    try:
        found = findings(changed(), assignment)
    except KdError as error:
        found = list(error.diagnostics)
    one = next(one for one in found if one.code == code)
    assert one.span is not None
    assert (one.span.source, one.span.line, one.span.column) == ("argument 1", 1, column)
    assert one.span.excerpt == assignment


@pytest.mark.parametrize("text", ["", "a", "=3", "a..b=1", ".a=1", "--lr"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_assignment(text, 2)
    assert caught.value.diagnostics[0].code == "KD207"


def test_a_name_that_two_elements_bear() -> None:
    text = changed(("[*crop, {type: to_tensor}]", "[*crop, *crop]"))
    (found,) = findings(text, "dataset.train.dataset.kwargs.transformer.crop.kwargs.size=1")
    assert found.code == "KD209"


def test_a_whole_model_is_reached_by_its_name() -> None:
    start = changed().index("net:\n")
    text = changed()[:start] + "net: {type: resnet18}\n" + changed()[changed().index("teacher0:\n") :]
    assert good(text, "net.model.kwargs.out_layers=[1]").spec.net[0].kwargs == {"out_layers": [1]}
    assert good(text, "net.0.kwargs.out_layers=[1]").spec.net[0].kwargs == {"out_layers": [1]}
    assert good(text, "net.model.outputs=[logits]").spec.net[0].outputs == ("logits",)
    assert good(text, "net.kwargs.out_layers=[2]").spec.net[0].kwargs == {"out_layers": [2]}
