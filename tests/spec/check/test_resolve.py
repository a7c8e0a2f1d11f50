"""References: what the golden cases do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdcli.distill.mimickers import MIMICKERS, SampleFeatureOptions
from kdcli.losses import LOSSES
from kdcli.spec.check.components import fits
from kdcli.spec.check.resolve import check_references
from kdcli.spec.check.signatures import options_of
from kdcli.spec.parse import parse
from kdcli.spec.tables import OPTIMIZERS, SCHEDULERS, Method
from kdcli.spec.text.overrides import parse_assignment
from tests.spec.specs import BASE, TABLES, changed, findings


def codes(text: str, *assignments: str) -> list[str]:
    return [one.code for one in findings(text, *assignments)]


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("net.backbone.type=torchvision.resnet18", ""),
        ("net.backbone.type=timm.resnet18", ""),
        ("net.backbone.type=torchvision.", "KD308"),
        ("net.backbone.type=my_pkg.nets.Tiny", "KD308"),
        ("net.backbone.type=my_pkg:a b", "KD308"),
        ("net.backbone.type=my_pkg:Tiny", "KD309"),
        ("net.backbone.type=kdcli.models.nothing:Tiny", "KD309"),
        ("net.backbone.kwargs.aligned=true", "KD320"),
        ("net.backbone.kwargs.depth=50", "KD320"),
        ("net.head.kwargs.inplanes=50", "KD320"),
        ("net.head.kwargs.num_classes=null", "KD321"),
        ("net.head.kwargs.num_classes=1e1", "KD322"),
        ("net.head.kwargs.num_classes=[1, 2]", ""),
        ("net.head.name=a.b", "KD325"),
        ("net.backbone.prev=head", "KD324"),
        ("dataset.train.dataset.type=torchvision.CIFAR100", ""),
        ("dataset.train.dataset.kwargs.num_sample=3", "KD320"),
        ("dataset.train.dataset.kwargs.shape=[3, 8]", "KD322"),
        ("dataset.train.dataset.kwargs.image_reader.kwargs.color_mode=BGR", "KD322"),
        ("dataset.test.dataset.kwargs.evaluator.kwargs.topk=5", "KD322"),
        ("dataset.train.dataset.kwargs.transformer.0.type=torchvision.RandAugment", ""),
        ("dataset.train.dataset.kwargs.transformer.to_tensor.kwargs.x=1", "KD320"),
        ("mimic.adapter={type: auto, kwargs: {nrm: true}}", "KD320"),
        ("mimic.cfgs.loss.adapter=conv", "KD318"),
        ("mimic.cfgs.loss={type: bank, kwargs: {dim: 8}}", ""),
        ("mimic.cfgs.other={type: l2_loss}", ""),
        ("mimic.cfgs.level=3", "KD319"),
        ("mimic.cfgs.loss.temperature=2", "KD323"),
        ("mimic.mimic_ins_type=unpaired", ""),
        ("trainer.lr_scheduler.type=LambdaLR", "KD317"),
    ],
)
def test_one_assignment(assignment: str, code: str) -> None:
    found = codes(BASE, assignment)
    assert (code in found) if code else (found == [])


def test_a_methods_own_losses_need_not_be_repeated() -> None:
    frs = changed(("mimic_ins_type: base", "mimic_ins_type: FRS"))
    for given in ("{}", "{neck_loss: {type: kd_loss}}", "{bank_loss: {type: bank}}", "{levels: [3]}"):
        assert codes(frs, f"mimic.cfgs={given}") == []
    assert codes(frs, "mimic.cfgs={neck_loss: {type: bank}}") == ["KD321"]


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ("abc", (), "must be a list of whole numbers, got the text 'abc'"),
        ("[0, x]", (1,), "element 1 is the text 'x'"),
        ("[0, 1.5]", (1,), "element 1 is the number 1.5"),
        ("3", (), "got the number 3"),
        ("null", None, ""),
        ("[]", None, ""),
    ],
)
def test_an_option_is_of_its_type(value: str, path: tuple[int, ...] | None, words: str) -> None:
    frs = changed(("mimic_ins_type: base", "mimic_ins_type: FRS"))
    found = findings(frs, f"mimic.cfgs={{levels: {value}}}")
    if path is None:
        assert found == []
        return
    (one,) = found
    assert one.code == "KD322" and words in one.message and "`levels` of `FRS`" in one.message
    assert one.span is not None and one.span.source == "argument 1"


@pytest.mark.parametrize(
    ("option", "code", "words", "help"),
    [
        ("mode: rgb", "KD465", "must be one of `RGB`, `GRAY`, got the text 'rgb'", "did you mean `RGB`?"),
        ("mode: 3", "KD465", "must be one of `RGB`, `GRAY`, got the number 3", "colours"),
        ("scale: 0", "KD462", "must be a number more than 0, got the number 0", "of boxes"),
        ("scale: big", "KD322", "must be a number more than 0, got the text 'big'", "of boxes"),
        ("share: 2", "KD328", "must be a number of at least 0 and at most 1, got the number 2", "of pixels"),
        ("levels: [1.0]", "KD322", "element 0 is the number 1.0", "numbers of maps"),
    ],
)
def test_the_value_of_an_option(option: str, code: str, words: str, help: str) -> None:
    (one,) = findings(changed(("mimic_ins_type: base", "mimic_ins_type: FRS")), f"mimic.cfgs={{{option}}}")
    assert (one.code, one.help) == (code, help)
    assert words in one.message and one.span is not None and one.span.source == "argument 1"


def test_an_option_without_a_default_has_to_be_given() -> None:
    needy = changed(("mimic_ins_type: base", "mimic_ins_type: needy"))
    assert codes(needy, "mimic.cfgs={path: a.b}") == []
    for given in ("{}", "{path: null}"):
        (one,) = findings(needy, f"mimic.cfgs={given}")
        assert one.code == "KD321" and one.message == "`needy` needs the option `path`"
        assert one.help == "add `path` to `cfgs`: where it lies"


def plain() -> type[Any]:
    """A dataclass of options as United-Perception's users write them."""

    @dataclass(frozen=True)
    class Plain:
        mask: bool = True
        sides: Sequence[int] | None = None

    return Plain


def from_a_call() -> type[Any]:
    """One that no source of a class body shows."""
    return make_dataclass("Made", [("mask", bool, True), ("sides", Sequence[int] | None, None)], frozen=True)


def inherited() -> type[Any]:
    """One whose fields stand in its base."""
    return dataclass(frozen=True)(type("Below", (plain(),), {}))


@pytest.mark.parametrize("declared", [plain, from_a_call, inherited])
def test_a_slip_in_an_option_is_found_however_it_was_declared(declared: Callable[[], type[Any]]) -> None:
    mimickers = {**TABLES.mimickers, "mine": Method(options=declared())}
    text = changed(("mimic_ins_type: base", "mimic_ins_type: mine"))

    def found(cfgs: str) -> list[tuple[str, tuple[Any, ...]]]:
        parsed = parse(text, "cfg.yaml", overrides=[parse_assignment(f"mimic.cfgs={cfgs}", 1)])
        return [
            (one.code, (one.path or ())[3:])
            for one in check_references(parsed, replace(TABLES, mimickers=mimickers))
        ]

    assert found("{mask: false, sides: [1, 2]}") == [] == found("{sides: null}")
    assert found("{maks: false}") == [("KD319", ("options", "maks"))]
    assert found("{mask: 3, sides: [1, a]}") == [
        ("KD322", ("options", "mask")),
        ("KD322", ("options", "sides", 1)),
    ]


@pytest.mark.parametrize(
    ("method", "option", "wrong", "right"),
    [
        ("DeFeat", "rpn_fpn_base_scale", ["abc", True, [1]], [56, 0.5]),
        ("DeFeat", "neck_feature_nums", [1.5, "3"], [3]),
        ("SampleFeature", "rcnn_fpn_levels", ["abc", 3, [0, "x"]], [[0, 1]]),
        ("SampleFeature", "teacher_proposal", ["yesplease", 1], [True, False]),
        ("SampleFeature", "student_roipooler", [3], ["a.b"]),
        ("SampleFeature", "teacher_roipooler", ["a.b", [3]], [["a.b"], [None, "a.b"]]),
    ],
)
def test_types_of_kdclis_own_options(method: str, option: str, wrong: list[Any], right: list[Any]) -> None:
    annotation = options_of(MIMICKERS[method].options)[option].annotation
    assert [value for value in wrong if fits(annotation, value)] == []
    assert [value for value in right if not fits(annotation, value)] == []


@pytest.mark.parametrize(
    ("method", "option", "value", "code", "path"),
    [
        ("FRS", "mask_count", "channels", "KD465", ()),
        ("FRS", "mask_count", "position", "KD465", ()),
        ("DeFeat", "rpn_fpn_strides", "[4, 8, 16, 0, 64]", "KD462", (3,)),
        ("DeFeat", "rpn_fpn_base_scale", "0", "KD462", ()),
        ("DeFeat", "neck_feature_nums", "0", "KD462", ()),
        ("SampleFeature", "rcnn_fpn_strides", "[4, -8, 16, 32]", "KD462", (1,)),
        ("SampleFeature", "rcnn_fpn_base_scale", "-1.0", "KD462", ()),
    ],
)
def test_values_of_kdclis_own_options(
    method: str, option: str, value: str, code: str, path: tuple[int, ...]
) -> None:
    text = changed(("mimic_ins_type: base", f"mimic_ins_type: {method}"))
    parsed = parse(text, "cfg.yaml", overrides=[parse_assignment(f"mimic.cfgs={{{option}: {value}}}", 1)])
    known = replace(TABLES, losses={**TABLES.losses, **LOSSES}, mimickers=MIMICKERS)
    (found,) = check_references(parsed, known)
    assert (found.code, (found.path or ())[4:]) == (code, (option, *path))


def test_options_as_the_class_takes_them() -> None:
    found = MIMICKERS["SampleFeature"].options_of(
        {"rcnn_fpn_levels": [1, 2], "teacher_roipooler": ["a.b"], "teacher_proposal": None}
    )
    assert found == SampleFeatureOptions(rcnn_fpn_levels=(1, 2), teacher_roipooler=("a.b",))
    assert found.teacher_proposal


def test_labels_of_a_methods_default_loss_count() -> None:
    text = changed(("type: kd_loss\n      kwargs: {T: 4.0, loss_weight: 1.0}", "type: dkd"))
    mixed = "dataset.train.dataloader.kwargs.batch_fn={type: batch_mixup, kwargs: {alpha: 0.2}}"
    assert codes(text) == []
    assert codes(text, mixed) == ["KD326"]
    assert codes(BASE, mixed) == []


def test_unequal_numbers_where_the_method_pairs_nothing() -> None:
    two = "mimic.teacher0.mimic_name=[a, head.classifier]"
    assert codes(BASE, two, "mimic.mimic_ins_type=unpaired") == []
    assert codes(BASE, two) == ["KD302"]


def test_own_code_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "allowed_pkg.py").write_text(
        "class Tiny:\n    def __init__(self, width: int, depth=3): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = replace(TABLES, plugins=("allowed_pkg",))
    text = changed(
        (
            "type: resnet18\n    kwargs:\n      out_layers: [4]\n      normalize: {type: solo_bn}",
            "type: allowed_pkg:Tiny\n    kwargs: {width: 3}",
        )
    )
    assert findings(text, tables=tables) == []
    assert [d.code for d in findings(text, "net.backbone.kwargs.wdth=3", tables=tables)] == ["KD320"]
    assert [d.code for d in findings(text, tables=TABLES)] == ["KD309"]


@pytest.mark.parametrize(
    ("assignments", "code"),
    [
        (("mimic.teacher0.teacher_weight=runs/xxx/best.pth",), "KD609"),
        (("mimic.teacher0.teacher_weight=runs/resnext/best.pth",), ""),
        (("saver.pretrain_model=pretrain_path",), "KD609"),
        (("net.backbone.kwargs.normalize.type=freeze_bn",), "KD610"),
        (("net.backbone.kwargs.normalize.type=freeze_bn", "saver.pretrain_model=a.pth"), ""),
        (("mimic.stages=[{name: a, max_epoch: 4}, {name: b, max_epoch: 6}]", "trainer.max_epoch=10"), ""),
        (
            ("mimic.stages=[{name: a, max_epoch: 4}, {name: b, max_epoch: 6}]", "trainer.max_epoch=11"),
            "KD648",
        ),
        (("mimic.stages=[{name: a, max_epoch: 4}, {name: b, max_iter: 6}]", "trainer.max_epoch=4"), "KD648"),
        (("mimic.cfgs.loss={type: kl_loss}", "mimic.student.mimic_name=['backbone.fc:in']"), "KD606"),
        (("trainer.lr_scheduler.warmup_iter=0", "dataset.batch_sampler.kwargs.batch_size=16"), "KD611"),
        (
            (
                "trainer.lr_scheduler.warmup_iter=0",
                "trainer.lr_scheduler.warmup_register_type=no_scale_lr",
                "dataset.batch_sampler.kwargs.batch_size=16",
            ),
            "",
        ),
        (("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 9, warmup_iter: 5}}",), "KD603"),
        (
            (
                "trainer.lr_scheduler={type: CosineAnnealingLR, warmup_iter: 4, kwargs: {T_max: 9, warmup_iter: 5}}",
            ),
            "KD603",
        ),
        (
            (
                "trainer.lr_scheduler={type: CosineAnnealingLR, warmup_iter: 5, kwargs: {T_max: 10, warmup_iter: 5}}",
            ),
            "",
        ),
        (("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 10, warmup_iter: 0}}",), ""),
    ],
)
def test_cautions(assignments: tuple[str, ...], code: str) -> None:
    found = codes(BASE, *assignments)
    assert (code in found) if code else (found == [])


def test_there_is_a_class_for_every_name_that_is_written_down() -> None:
    from kdcli.training.optim import optimizer_class, scheduler_class

    assert [name for name in OPTIMIZERS if optimizer_class(name) is None] == []
    assert [name for name in SCHEDULERS if scheduler_class(name) is None] == []


@pytest.mark.parametrize(
    ("file", "images", "same"),
    [("a", "i", True), ("./a", "i/", True), ("x/../a", "./i", True), ("a", "j", False), ("b", "i", False)],
)
def test_test_data_that_is_the_training_data_in_other_letters(file: str, images: str, same: bool) -> None:
    reads = "dataset.%s.dataset={type: coco, kwargs: {meta_file: %s, image_reader: {type: r, kwargs: {image_dir: %s}}}}"
    found = codes(BASE, reads % ("train", "a", "i"), reads % ("test", file, images))
    assert ("KD646" in found) is same


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("weighting", ["confidence", "entropy", "average"])
def test_a_teachers_confidence_in_a_mixed_label(weighting: str, mixes: bool) -> None:
    batch_fn = "dataset.train.dataloader.kwargs.batch_fn={type: batch_mixup, kwargs: {num_classes: 4}}"
    found = codes(BASE, f"mimic.teacher_weighting={weighting}", *([batch_fn] if mixes else []))
    assert ("KD326" in found) is (mixes and weighting == "confidence")
