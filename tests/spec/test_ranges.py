"""Ranges of arguments: read from signatures, told at the line, the same in every table."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace
from typing import Any

import pytest

from kdcli.losses import LOSSES
from kdcli.reference.schema_json import annotation_schema
from kdcli.reference.tables import tables
from kdcli.spec.check.components import check_type, fits, wording
from kdcli.spec.check.signatures import Parameter, signature
from kdcli.spec.ranges import Range, range_of, shown
from kdcli.spec.ranges import parsed as parsed_hint
from kdcli.spec.tables import OPTIMIZERS, SCHEDULERS, Target, torch_arguments
from kdcli.training.optim import optimizer_class, scheduler_class
from tests.spec.specs import BASE, TABLES, changed, findings

REAL = replace(TABLES, losses=LOSSES)

POSITIVE = "Annotated[float, Range(more_than=0)]"
SHARE = "Annotated[float, Range(at_least=0, less_than=1)]"
COUNT = "Annotated[int, Range(at_least=1)]"


def parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def kwargs_of(target: Target) -> dict[str, Parameter]:
    found = signature(target)
    assert found is not None
    return dict(found.kwargs)


WITH_T = sorted(name for name, target in LOSSES.items() if "T" in kwargs_of(target))
TEMPERATURES = [(name, "T") for name in WITH_T] + [("rld", "alpha_T"), ("ttm", "gamma"), ("wttm", "gamma")]


def test_losses_with_a_temperature_are_found() -> None:
    assert {"kd_loss", "gkd_loss", "bce_loss", "cwd", "crd", "fgd", "wkd_l", "srd"} <= set(WITH_T)


@pytest.mark.parametrize(
    ("value", "code"),
    [("0", "KD328"), ("-1", "KD328"), ("-1e-9", "KD328"), (".nan", "KD223"), (".inf", "KD223")],
)
@pytest.mark.parametrize(("loss", "argument"), TEMPERATURES)
def test_a_temperature_is_more_than_0(loss: str, argument: str, value: str, code: str) -> None:
    text = changed(("kd_loss", loss), ("T: 4.0, loss_weight: 1.0", f"loss_weight: 1.0, {argument}: {value}"))
    (one,) = (one for one in findings(text, tables=REAL) if one.severity == "error")
    assert one.code == code and one.span is not None
    line = next(index for index, line in enumerate(text.splitlines(), 1) if f"{argument}: {value}" in line)
    written = text.splitlines()[line - 1]
    assert (one.span.line, one.span.column) == (line, written.index(f": {value}}}") + 3)
    assert f"`{argument}`" in one.message


@pytest.mark.parametrize("loss", WITH_T)
def test_under_its_other_name(loss: str) -> None:
    text = changed(("kd_loss", loss), ("T: 4.0", "temperature: -2"))
    (one,) = (one for one in findings(text, tables=REAL) if one.severity == "error")
    assert one.code == "KD328" and one.span is not None
    assert one.span.excerpt[one.span.column - 1 :].startswith("-2")


@pytest.mark.parametrize("loss", WITH_T)
def test_a_small_temperature_is_right(loss: str) -> None:
    text = changed(("kd_loss", loss), ("T: 4.0", "T: 1e-3"))
    assert [one for one in findings(text, tables=REAL) if one.severity == "error"] == []


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("mimic.temperature", ""),
        ("mimic.cfgs.loss.temperature", ""),
        ("mimic.temperature.start", "learned: true, "),
    ],
)
@pytest.mark.parametrize(("value", "code"), [("0", "KD206"), ("-1", "KD206"), (".nan", "KD223")])
def test_temperatures_of_jobs(path: str, where: str, value: str, code: str) -> None:
    key = path.rpartition(".")[2]
    given = f"{path}={value}" if not where else f"mimic.temperature={{{where}{key}: {value}}}"
    (one,) = findings(changed(("T: 4.0, ", "")), given)
    assert one.code == code and one.span is not None and one.span.source == "argument 1"
    assert given[one.span.column - 1 :].removesuffix("}") == value
    assert f"`{key}`" in one.message


@pytest.mark.parametrize("path", ["mimic.temperature", "mimic.cfgs.loss.temperature"])
@pytest.mark.parametrize(
    ("options", "right"),
    [
        ("start: 1, range: -1", False),
        ("range: -1.5", False),
        ("start: 4, range: -3", True),
        ("start: 0.5", True),
        ("start: 3, range: 0", True),
    ],
)
def test_a_learned_temperature_stays_above_0(path: str, options: str, right: bool) -> None:
    given = f"{path}={{learned: true, {options}}}"
    found = findings(changed(("T: 4.0, ", "")), given)
    assert [one.code for one in found] == ([] if right else ["KD206"])
    if not right:
        assert found[0].span is not None and given[found[0].span.column - 1 :].startswith("-1")


@pytest.mark.parametrize(
    ("loss", "argument", "wrong", "right"),
    [
        ("mlkd", "temperatures", "[2, 0]", "[2]"),
        ("mgd", "mask_ratio", "1", "0"),
        ("mgd", "mask_ratio", "-0.1", "0.99"),
        ("crd", "momentum", "1.5", "1"),
        ("crd", "K", "0", "1"),
        ("tfkd_reg", "correct_probability", "1.01", "0"),
        ("wkd_f", "grid", "0", "1"),
        ("wkd_l", "sinkhorn_lambda", "0", "0.05"),
        ("cat_kd", "resolution", "0", "1"),
        ("cosine", "beta", "0", "0.1"),
        ("prototypes", "queue_size", "0", "1"),
        ("prototypes", "positions", "0", "1"),
        ("cosine", "cosine_weight", "-0.1", "null"),
        ("simkd", "factor", "0", "1"),
        ("ft", "k", "0", "2.5"),
        ("pkt", "eps", "0", "1e-9"),
        ("itrd", "alpha", "0", "1.01"),
    ],
)
def test_other_arguments(loss: str, argument: str, wrong: str, right: str) -> None:
    for value, code in ((wrong, "KD328"), (right, "")):
        text = changed(("kd_loss", loss), ("T: 4.0", f"{argument}: {value}"))
        found = [one.code for one in findings(text, tables=REAL) if one.severity == "error"]
        assert found == ([code] if code else []), value


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("trainer.clip_grad_norm=0", "KD206"),
        ("trainer.clip_grad_norm=-1", "KD206"),
        ("trainer.clip_grad_norm=.inf", "KD223"),
        ("trainer.clip_grad_norm=1e-3", ""),
        ("trainer.clip_grad_norm=null", ""),
        ("trainer.save_every_minutes=0", "KD206"),
        ("trainer.save_every_minutes=0.5", ""),
        ("trainer.lr_scheduler.warmup_ratio=-0.1", "KD206"),
        ("trainer.lr_scheduler.warmup_ratio=0", ""),
        ("runtime.threads=1025", "KD206"),
        ("dataset.dataloader.kwargs.num_workers=1000000", "KD206"),
        ("mimic.teacher0.input={std: [0.5, 0]}", "KD206"),
        ("mimic.teacher0.input={std: 0.5}", ""),
        ("mimic.teacher0.input={size: 0}", "KD206"),
        ("mimic.teacher0.input={size: [8, 0]}", "KD206"),
        ("mimic.teacher0.input={size: [8, 16]}", ""),
        ("mimic.teacher0.cache={limit_gb: 0}", "KD206"),
    ],
)
def test_keys_of_the_language(assignment: str, code: str) -> None:
    found = findings(BASE, assignment)
    assert [one.code for one in found] == ([code] if code else [])


def test_what_to_do_instead_of_clipping_at_0() -> None:
    (one,) = findings(changed(("max_epoch: 10", "max_epoch: 10\n  clip_grad_norm: 0")))
    assert one.message == "`clip_grad_norm` must be more than 0, got the number 0"
    assert one.help == "leave it out to clip nothing"
    assert one.span is not None and one.span.excerpt == "  clip_grad_norm: 0"


EVERY: dict[str, Target] = {
    f"{kind}.{name}": target
    for kind in ("losses", "modules", "adapters", "transforms", "batch_fns", "datasets", "samplers")
    for name, target in getattr(tables(), kind).items()
}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_default_is_in_its_range(name: str) -> None:
    for parameter in kwargs_of(EVERY[name]).values():
        if not parameter.required and parameter.annotation is not None:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            found = check_type(parameter.name, default, parameter.annotation, (), name)
            assert "KD328" not in [one.code for one in found]


def test_an_alias_of_kdcli_in_other_code() -> None:
    found = signature(Target("tests.spec.fakes:kd_loss"))
    assert found is not None and found.kwargs["T"].annotation is not None
    assert range_of(found.kwargs["T"].annotation) == Range(more_than=0)
    assert found.kwargs["T"].type_text == "float (more than 0)"


@pytest.mark.parametrize(
    ("annotation", "inside", "outside"),
    [
        (POSITIVE, [1, 0.5, 1e-300], [0, -0.0, -1]),
        (SHARE, [0, 0.99], [1, -0.1, 5]),
        (COUNT, [1, 10**9], [0, -3]),
        (f"{POSITIVE} | None", [None, 2], [0]),
        (f"{COUNT} | list[{COUNT}]", [1, [1, 2]], [0, [1, 0]]),
        (f"Sequence[{POSITIVE}]", [[], [1, 2]], [[1, 0]]),
        (f"tuple[{POSITIVE}, int]", [[1, 0]], [[0, 1]]),
        (f"Literal['none'] | {SHARE}", ["none", 0.5], [1]),
    ],
)
def test_in_and_out(annotation: str, inside: list[Any], outside: list[Any]) -> None:
    node = parsed(annotation)
    assert all(fits(node, value) for value in [*inside, *outside])
    assert [value for value in inside if list(check_type("a", value, node, (), "it"))] == []
    assert [[one.code for one in check_type("a", value, node, (), "it")] for value in outside] == [
        ["KD328"]
    ] * len(outside)


@pytest.mark.parametrize(
    ("annotation", "words", "type_words", "schema"),
    [
        (POSITIVE, "a number more than 0", "float (more than 0)", {"type": "number", "exclusiveMinimum": 0}),
        (
            SHARE,
            "a number of at least 0 and less than 1",
            "float (at least 0 and less than 1)",
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        ),
        (
            f"list[{COUNT}]",
            "a list of whole numbers of at least 1",
            "list[int (at least 1)]",
            {"type": "array", "items": {"type": "integer", "minimum": 1}},
        ),
        ("Annotated[int, 'x']", "a whole number", "Annotated[int, 'x']", {"type": "integer"}),
    ],
)
def test_in_words_and_for_editors(
    annotation: str, words: str, type_words: str, schema: dict[str, Any]
) -> None:
    node = parsed(annotation)
    assert wording(node) == words
    assert shown(node) == type_words
    assert ast.unparse(node) == annotation
    assert annotation_schema(node) == schema


# arguments of torch's optimizers and schedulers


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("trainer.optimizer.kwargs.lr=-1", "KD328"),
        ("trainer.optimizer.kwargs.lr=fast", "KD322"),
        ("trainer.optimizer.kwargs.lr=0", "KD630"),
        ("trainer.optimizer.kwargs.lr=1000", "KD632"),
        ("trainer.optimizer.kwargs.momentum=2", "KD328"),
        ("trainer.optimizer.kwargs.momentum=1", "KD328"),
        ("trainer.optimizer.kwargs.momentum=0", ""),
        ("trainer.optimizer.kwargs.weight_decay=-0.1", "KD328"),
        ("trainer.optimizer.kwargs.weight_decay=10", "KD632"),
        ("trainer.optimizer.kwargs.maximize=true", "KD633"),
        ("trainer.optimizer={type: Adam, kwargs: {lr: 0.001, betas: [0.9, 1]}}", "KD328"),
        ("trainer.optimizer={type: Adam, kwargs: {lr: 0.001, betas: [0.9, 0.999]}}", ""),
        ("trainer.optimizer={type: Adam, kwargs: {lr: 0.001, eps: 0}}", "KD328"),
        ("trainer.optimizer={type: Adafactor, kwargs: {lr: 0.001, eps: [null, 0.001]}}", ""),
        ("trainer.optimizer={type: Rprop, kwargs: {lr: 0.001, etas: [0.5, 0.9]}}", "KD328"),
        ("trainer.optimizer={type: Rprop, kwargs: {lr: 0.001, etas: [0.5, 1.2]}}", ""),
        ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 0}}", "KD328"),
        ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 10}}", ""),
        ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 12}}", "KD635"),
        ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 10, eta_min: -1}}", "KD328"),
        ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 10.0}}", ""),
        ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 9.5}}", "KD635"),
        ("trainer.lr_scheduler={type: PolynomialLR, kwargs: {total_iters: 9}}", "KD635"),
        ("trainer.lr_scheduler={type: StepLR, kwargs: {step_size: 0}}", "KD328"),
        ("trainer.lr_scheduler={type: StepLR, kwargs: {step_size: 3, gamma: 0}}", "KD328"),
        ("trainer.lr_scheduler={type: StepLR, kwargs: {step_size: 3, gamma: 2}}", "KD634"),
        ("trainer.lr_scheduler={type: MultiStepLR, kwargs: {milestones: [4, 0]}}", "KD328"),
        ("trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 0.1, pct_start: 2}}", "KD328"),
        ("trainer.lr_scheduler.warmup_register_type=no_scaled_lr", "KD205"),
        ("trainer.lr_scheduler.warmup_register_type=base", ""),
        ("trainer.lr_scheduler.warmup_ratio=2", "KD206"),
        ("trainer.max_epoch=1e18", "KD206"),
        ("runtime.random_seed=-1", "KD206"),
        ("trainer.ema={kwargs: {decay: 2}}", "KD206"),
    ],
)
def test_values_that_turn_training_off_or_around(assignment: str, code: str) -> None:
    text = changed(("    warmup_iter: 5\n", ""), ("batch_size: 8", "batch_size: 4"))
    found = findings(text, assignment)
    assert [one.code for one in found] == ([code] if code else []), found
    assert all(one.span is not None and one.span.source == "argument 1" for one in found)


@pytest.mark.parametrize("name", [*OPTIMIZERS, *SCHEDULERS])
def test_every_number_of_torch_has_a_range(name: str) -> None:
    target = optimizer_class(name) if name in OPTIMIZERS else scheduler_class(name)
    free = {
        "ns_coefficients",
        "last_epoch",
    }  # a polynomial's coefficients have any sign; kdcli gives the other
    for argument in inspect.signature(target).parameters.values():
        default = argument.default
        if type(default) in (int, float) or (isinstance(default, tuple) and argument.name not in free):
            if argument.name not in free:
                hint = parsed_hint(torch_arguments(name)[argument.name])
                given = list(default) if isinstance(default, tuple) else default
                assert list(check_type(argument.name, given, hint, (), name)) == [], argument


def test_adaptive_optimizers_are_told_of_a_scaled_lr_with_a_warm_up() -> None:
    adam = "trainer.optimizer={type: AdamW, kwargs: {lr: 0.002}}"
    text = changed(("batch_size: 8", "batch_size: 32"))
    (one,) = findings(text, adam)
    assert one.code == "KD611" and "to 0.064" in one.message
    assert findings(text, adam, "trainer.lr_scheduler.warmup_register_type=no_scale_lr") == []
    assert findings(text, adam.replace("0.002", "0.0002")) == []
    assert findings(text) == [], "SGD with a warm-up is scaled as in United-Perception"


@pytest.mark.parametrize(
    ("assignments", "codes"),
    [
        (("mimic.loss_weight=-1",), ["KD228"]),
        (("mimic.loss_weight=-1", "mimic.allow_negative=true"), []),
        (("mimic.loss_weight=-1", "mimic.allow_negative=false"), ["KD228"]),
        (("mimic.loss_weight=0",), ["KD631"]),
        (("mimic.cfgs.loss.kwargs.loss_weight=-1",), ["KD228"]),
        (("mimic.cfgs.loss.kwargs.loss_weight=-1", "mimic.cfgs.loss.allow_negative=true"), []),
        (("mimic.cfgs.loss.kwargs.loss_weight=-1", "mimic.allow_negative=true"), ["KD228"]),
        (("mimic.cfgs.loss.kwargs.loss_weight=0",), ["KD631"]),
        (("mimic.cfgs.loss={type: dkd, kwargs: {alpha: -1}}",), ["KD228"]),
        (("mimic.cfgs.loss={type: dkd, allow_negative: true, kwargs: {alpha: -1, T: 0}}",), ["KD328"]),
    ],
)
def test_weights(assignments: tuple[str, ...], codes: list[str]) -> None:
    found = findings(BASE, *assignments, tables=REAL)
    assert [one.code for one in found] == codes
    assert all(one.span is not None and one.span.source.startswith("argument") for one in found)


def test_stages_share_a_scheduler_that_fits_one_of_them() -> None:
    stages = "mimic.stages=[{name: a, max_epoch: 1}, {name: b, max_epoch: %d}]"
    cosine = "trainer.lr_scheduler={type: CosineAnnealingLR, warmup_register_type: no_scale_lr, kwargs: {T_max: 5}}"
    assert findings(BASE, cosine, stages % 5, "trainer.max_epoch=6") == []
    assert [one.code for one in findings(BASE, cosine, stages % 6, "trainer.max_epoch=7")] == ["KD635"]


FREE = {
    f"{head}.input_feature_idx": "counts from the end too"
    for head in ("base_cls_head", "convnext_head", "vit_head")
}
"""Numbers without a range, and why."""


def test_every_number_of_the_tables_has_a_range() -> None:
    every = tables()
    kinds = (
        "losses",
        "modules",
        "adapters",
        "transforms",
        "batch_fns",
        "image_readers",
        "datasets",
        "samplers",
    )
    free = set()
    for kind in (*kinds, "evaluators"):
        for name, target in getattr(every, kind).items():
            for parameter in kwargs_of(target).values():
                written = "int" if parameter.annotation is None else ast.unparse(parameter.annotation)
                if re.search(r"\b(int|float)\b", written) and "Range" not in written:
                    free.add(f"{name}.{parameter.name}")
    assert free == set(FREE)
