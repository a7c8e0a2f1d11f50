"""The `sweep` block: as parameters, as the spec of a trial, and its errors at its own lines."""

from __future__ import annotations

import pytest

from kdcli.errors import SpecError
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.parse import ParsedSpec, parse
from kdcli.spec.sweep import Choice, Range, probes, space_of, trial_spec
from kdcli.spec.text.overrides import parse_assignment

SPEC = """runtime: {runner: {type: kd}}
net: {name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}}
teacher0: {name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}}
mimic:
  cfgs: {loss: {type: kd_loss, kwargs: {T: 4, loss_weight: 3}}}
  teacher0: {mimic_name: [logits], allow_random: true}
  student: {mimic_name: [logits]}
dataset:
  train: &part
    dataset:
      {type: fake, kwargs: {num_samples: 32, num_classes: 4, shape: [1, 8, 8], transformer: [{type: to_tensor}]}}
  test: *part
  batch_sampler: {kwargs: {batch_size: 8}}
trainer: {max_epoch: 1, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
sweep:
"""
LOSSES = tables().losses


def read(block: str, *arguments: str) -> ParsedSpec:
    overrides = [parse_assignment(one, number) for number, one in enumerate(arguments, 1)]
    return parse(SPEC + block, "cfg.yaml", overrides=overrides)


def wrong(block: str) -> list[tuple[int, str]]:
    return [
        (one.span.line, one.code)
        for one in check_references(read(block), tables())
        if one.severity == "error" and one.span is not None
    ]


def test_lists_and_ranges_are_parameters() -> None:
    parsed = read(
        "  mimic.loss_weight: {low: 0.1, high: 10, log: true}\n"
        "  mimic: {cfgs: {loss: {kwargs: {T: [1, 2]}}}}\n"
        "  trainer.accumulate_steps: {low: 1, high: 4}\n"
    )
    space = space_of(parsed)
    assert space is not None
    weight, temperature, steps = space.parameters
    assert isinstance(weight, Range)
    assert (weight.low, weight.high, weight.log, weight.whole) == (0.1, 10, True, False)
    assert isinstance(temperature, Choice)
    assert (temperature.name, temperature.labels) == ("mimic.cfgs.loss.kwargs.T", (1, 2))
    assert isinstance(steps, Range)
    assert steps.whole
    assert not steps.has(1.5)
    assert space.size is None


def test_whole_bounds_of_a_float_are_no_whole_numbers() -> None:
    """`loss_weight` is a float, whatever is written; T is the number that stands there."""
    weight, temperature = (space_of(read(block)) for block in (
        "  mimic.loss_weight: {low: 1, high: 10}\n", "  mimic.cfgs.loss.kwargs.T: {low: 1, high: 8}\n",
    ))  # fmt: skip
    assert weight is not None and temperature is not None
    assert isinstance(weight.parameters[0], Range) and isinstance(temperature.parameters[0], Range)
    assert not weight.parameters[0].whole and weight.parameters[0].has(2.5)
    assert temperature.parameters[0].whole


def test_a_range_with_steps_has_what_lies_on_them() -> None:
    space = space_of(read("  mimic.loss_weight: {low: 0.1, high: 0.7, step: 0.2}\n"))
    assert space is not None
    (one,) = space.parameters
    assert [value for value in (0.1, 0.3, 0.4, 0.5, 0.7, 0.9, -0.1, True, "0.3") if one.has(value)] == [
        *(0.1, 0.3, 0.5, 0.7)
    ]


def test_a_run_has_no_part_of_its_spec_from_the_block() -> None:
    with_block, without = (
        read("  mimic.loss_weight: [1, 2]\n"),
        parse(SPEC.replace("sweep:\n", ""), "cfg.yaml"),
    )
    assert with_block.hash() == without.hash()
    assert "sweep" not in with_block.resolved_yaml()


def test_a_trial_is_what_the_same_arguments_make() -> None:
    parsed = read(
        "  mimic.loss_weight: [1, 2]\n  mimic.cfgs.loss.kwargs.T: {low: 1, high: 8}\n", "trainer.max_epoch=7"
    )
    space = space_of(parsed)
    assert space is not None
    values = {"mimic.loss_weight": 2, "mimic.cfgs.loss.kwargs.T": 3}
    made = trial_spec(parsed, space, values, LOSSES, ["saver.save_dir=runs/x"])
    by_hand = read(
        "  a: 1\n",
        "trainer.max_epoch=7",
        "mimic.loss_weight=2",
        "mimic.cfgs.loss.kwargs.T=3",
        "saver.save_dir=runs/x",
    )
    assert made.hash() == by_hand.hash()


def test_another_method_keeps_the_arguments_that_it_takes_but_not_the_weight() -> None:
    parsed = read("  method: [kd_loss, dkd, pkd]\n  mimic.cfgs.loss.kwargs.T: [2]\n")
    space = space_of(parsed)
    assert space is not None
    kwargs = {}
    for name in ("kd_loss", "dkd", "pkd"):
        values = {"method": name, "mimic.cfgs.loss.kwargs.T": 2}
        spec = trial_spec(parsed, space, values, LOSSES).spec
        assert spec.mimic is not None
        kwargs[name] = spec.mimic.jobs["mimic_job0"].losses["loss"].kwargs
    # pkd takes no T: the parameter means nothing to it.
    assert kwargs == {"kd_loss": {"T": 2, "loss_weight": 3}, "dkd": {"T": 2}, "pkd": {}}


def test_values_between_them_are_all_proved() -> None:
    space = space_of(
        read("  mimic.loss_weight: [1, 2, 3]\n  trainer.optimizer.kwargs.lr: {low: 0.1, high: 0.2}\n")
    )
    assert space is not None
    found = list(probes(space))
    assert [one["mimic.loss_weight"] for one in found] == [1, 2, 3, 1]
    assert {one["trainer.optimizer.kwargs.lr"] for one in found} == {0.1, 0.2}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("  mimic.los_weight: [1, 2]\n", [(16, "KD202")]),
        ("  mimic.cfgs.loss.kwargs.T: [1, -2]\n  method: [kd_loss, dkkd]\n", [(16, "KD328"), (17, "KD306")]),
        ("  mimic.loss_weight: {low: -1, high: 1}\n", [(16, "KD228")]),
        ("  net.nobody.kwargs.depth: [1, 2]\n", [(16, "KD202")]),
        ("  mimic.loss_weight: 1\n", [(16, "KD270")]),
        ("  mimic.loss_weight: []\n", [(16, "KD270")]),
        ("  mimic.loss_weight: [1, 1]\n", [(16, "KD270")]),
        ("  mimic.loss_weight: {low: 2, high: 1}\n", [(16, "KD270")]),
        ("  mimic.loss_weight: {low: 1}\n", [(16, "KD270")]),
        ("  mimic.loss_weight: {low: 1, high: 2, lgo: true}\n", [(16, "KD270")]),
        ("  mimic.loss_weight: {low: 1, high: x}\n", [(16, "KD270")]),
        ("  mimic.loss_weight: {low: 1, high: 2, step: 0.1, log: true}\n", [(16, "KD270")]),
        ("  mimic.loss_weight: {low: 1, high: 8, step: 2}\n", [(16, "KD270")]),
        ("  pairs: [layer1]\n", [(16, "KD270")]),
        ("  dataset.hold_out: [0.1, 0.2]\n", [(16, "KD272")]),
        ("  dataset.test.dataset.kwargs.limit: [50, 100]\n", [(16, "KD272")]),
        ("  dataset.train.dataset.kwargs.limit: [50, 100]\n", [(16, "KD272")]),
        ("  dataset.train.dataset.type: [digits, fake]\n", [(16, "KD272")]),
        ("  saver.save_dir: [a, b]\n", [(16, "KD272")]),
    ],
)
def test_what_is_wrong_is_said_at_its_line(block: str, expected: list[tuple[int, str]]) -> None:
    assert wrong(block) == expected


def test_method_is_about_the_one_job() -> None:
    with pytest.raises(SpecError) as raised:
        space_of(read("  method: [kd_loss, dkd]\n", "runtime.runner.type=base"))
    assert raised.value.diagnostics[0].code == "KD272"
